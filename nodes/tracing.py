"""Nodes that see what guidance did."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..guidance.sampling.trace import Trace
from .runtime.trace_wrapper import traced
from .sockets import CATEGORY, GuidanceTraceType


class GuidanceTrace(io.ComfyNode):
    """Keeps what guidance does at each evaluation of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceTrace",
            display_name="Guidance Trace",
            category=CATEGORY,
            description="Sample with this MODEL, and Guidance Plot shows what guidance did: "
            "scales, lengths of the terms, what the classifier thought, passes of the network.",
            search_aliases=["guidance log", "trace", "CFG monitor"],
            inputs=[io.Model.Input("model", tooltip="A guided model, or any other.")],
            outputs=[
                io.Model.Output(tooltip="Sample with this one."),
                GuidanceTraceType.Output(display_name="trace", tooltip="For Guidance Plot."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        trace = Trace()
        node = getattr(cls.hidden, "unique_id", None)
        return io.NodeOutput(traced(model, trace, node), trace)


class GuidancePlot(io.ComfyNode):
    """The picture of a trace."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidancePlot",
            display_name="Guidance Plot",
            category=CATEGORY,
            description="Draws what Guidance Trace saw: scales, lengths of the terms, "
            "p(label given x) of each image, and the passes of the network.",
            search_aliases=["guidance plot", "CFG plot", "trace"],
            is_output_node=True,
            inputs=[
                GuidanceTraceType.Input("trace", tooltip="From Guidance Trace."),
                io.Latent.Input(
                    "samples",
                    tooltip="What was sampled with Guidance Trace's MODEL: so that the plot is "
                    "drawn afterwards.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The picture."),
                io.String.Output(display_name="json", tooltip="The same as JSON."),
            ],
        )

    @classmethod
    def execute(cls, trace, samples) -> io.NodeOutput:
        from ..guidance.sampling.trace_plot import plot_trace  # matplotlib, on first use

        image = torch.from_numpy(plot_trace(trace).copy()).float()[None] / 255
        text = trace.to_json()
        shown = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(image, text, ui=shown | {"guidance_trace": [text]})
