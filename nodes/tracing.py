"""Nodes that see what guidance did."""

from __future__ import annotations

from typing import Any

import comfy.patcher_extension
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..guidance.sampling.trace import Trace
from .host import comfy_adapter as adapter
from .sockets import CATEGORY, GuidanceTraceType

KEY = "guidance_trace"
EVENT = "classifier_guidance.trace"
TRANSFORMER_OPTIONS = 5  # where core's apply_model hands them on
Wrappers = comfy.patcher_extension.WrappersMP


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


def traced(model: Any, trace: Trace, node: str | None = None) -> Any:
    """The MODEL, telling the trace what happens to it, and the page where there is a node on it."""
    model = model.clone()
    options = model.model_options["transformer_options"]
    options[adapter.TRACE_KEY] = (*options.get(adapter.TRACE_KEY, ()), trace)

    told = TracePublisher(trace, node)

    def begin(executor: Any, *args: Any, **options: Any) -> Any:
        trace.begin()
        told.begin()
        try:
            return executor(*args, **options)
        finally:
            told.rest()

    def evaluation(executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any = None):
        told.arrived()
        trace.evaluation(sigma, adapter.run_of(executor.class_obj, model_options).place)
        return executor(x, sigma, model_options, seed)

    def passes(executor: Any, *inputs: Any, **conds: Any) -> Any:
        trace.passes(len(inputs[TRANSFORMER_OPTIONS]["cond_or_uncond"]))
        return executor(*inputs, **conds)

    def cfg(args: dict) -> Tensor:
        # where uncond was not computed, core hands out zeros
        uncond = None if args.get("uncond") is None else args.get("uncond_denoised")
        if args.get("cond_denoised") is not None:
            trace.cfg(args["cond_scale"], args["cond_denoised"], uncond)
        return args["denoised"]

    model.add_wrapper_with_key(Wrappers.OUTER_SAMPLE, KEY, begin)
    model.add_wrapper_with_key(Wrappers.PREDICT_NOISE, KEY, evaluation)
    model.add_wrapper_with_key(Wrappers.APPLY_MODEL, KEY, passes)
    model.set_model_sampler_post_cfg_function(cfg)
    return model


class TracePublisher:
    """What the page has been told of a trace; there is none to tell without a node on it."""

    def __init__(self, trace: Trace, node: str | None):
        self.trace, self.node = trace, node
        self.count = 0

    def begin(self) -> None:
        """A new run."""
        self.count = 0

    def arrived(self) -> None:
        """Tells of evaluations whose numbers have come from the device."""
        while self.count < len(self.trace.evaluations):
            if not self.trace.evaluations[self.count].arrived:
                return
            self._tell()

    def rest(self) -> None:
        """Tells of the others; waits for their numbers."""
        while self.count < len(self.trace.evaluations):
            self._tell()

    def _tell(self) -> None:
        number, self.count = self.count, self.count + 1
        if self.node is not None:
            seen = self.trace.evaluations[number]
            about = {"node": self.node, "number": number, "steps": seen.place.steps}
            adapter.send_event(EVENT, about | {"evaluation": seen.to_plain()})


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
