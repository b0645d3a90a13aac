"""Nodes that record and draw what guidance did."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..guidance.sampling.trace import Trace
from .runtime.trace_wrapper import traced
from .sockets import CATEGORY, GuidanceTraceType


class GuidanceTrace(io.ComfyNode):
    """Records what guidance does at each evaluation of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceTrace",
            display_name="Guidance Trace",
            category=CATEGORY,
            description="Records what guidance does while you sample with this model, and shows it "
            "live on the node: the scales, the classifier's probability and the number of model "
            "passes. Guidance Plot draws the whole record.",
            search_aliases=["guidance log", "trace", "CFG monitor", "debug guidance"],
            inputs=[io.Model.Input("model", tooltip="A guided model, or any other model.")],
            outputs=[
                io.Model.Output(tooltip="The recorded model. Connect it to the sampler."),
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
    """A trace as an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidancePlot",
            display_name="Guidance Plot",
            category=CATEGORY,
            description="Draws the record of Guidance Trace: the scales, the lengths of the "
            "guidance terms, p(label given x) of each image, and the number of model passes.",
            search_aliases=["guidance plot", "CFG plot", "trace"],
            is_output_node=True,
            inputs=[
                GuidanceTraceType.Input("trace", tooltip="From Guidance Trace."),
                io.Latent.Input(
                    "samples",
                    tooltip="The latent that was sampled with Guidance Trace's model. It makes the "
                    "plot wait for the sampler.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The plot."),
                io.String.Output(display_name="json", tooltip="The record as JSON."),
            ],
        )

    @classmethod
    def execute(cls, trace, samples) -> io.NodeOutput:
        from ..guidance.sampling.trace_plot import plot_trace  # matplotlib, on first use

        image = torch.from_numpy(plot_trace(trace).copy()).float()[None] / 255
        text = trace.to_json()
        shown = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(image, text, ui=shown | {"guidance_trace": [text]})
