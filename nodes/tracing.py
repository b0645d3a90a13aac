"""Nodes that record and draw what guidance did."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..guidance.sampling.trace import Trace
from .host.server import show_on_node
from .runtime.trace_wrapper import traced
from .schema import GuidanceTraceType, Schema

NO_SAMPLES = (
    "samples is not connected: connect the LATENT of the sampler that uses the traced MODEL, so "
    "that the plot is drawn after sampling."
)


class GuidanceTrace(io.ComfyNode):
    """Records what guidance does at each evaluation of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="GuidanceTrace",
            search_aliases=["guidance log", "trace", "CFG monitor", "debug guidance"],
            inputs=[io.Model.Input("model")],
            outputs=[
                io.Model.Output(),
                GuidanceTraceType.Output(display_name="trace"),
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
        return Schema(
            node_id="GuidancePlot",
            search_aliases=["guidance plot", "CFG plot", "trace"],
            is_output_node=True,
            inputs=[
                GuidanceTraceType.Input("trace"),
                io.Latent.Input("samples", optional=True),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Image.Output(display_name="plot"),
                io.String.Output(display_name="json"),
            ],
        )

    @classmethod
    def execute(cls, trace, samples=None) -> io.NodeOutput:
        if samples is None:
            # no error: the nodes that are complete still run
            show_on_node(NO_SAMPLES, getattr(cls.hidden, "unique_id", None))
            return io.NodeOutput(None, None, block_execution=NO_SAMPLES)
        from ..guidance.sampling.trace_plot import plot_trace  # matplotlib, on first use

        if isinstance(samples["samples"], torch.Tensor):  # not for packed sound and video
            trace = trace.run_of(samples["samples"])
        image = torch.from_numpy(plot_trace(trace).copy()).float()[None] / 255
        text = trace.to_json()
        shown = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(image, text, ui=shown | {"guidance_trace": [text]})
