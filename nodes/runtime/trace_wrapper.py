"""A MODEL that writes to a trace, and sends the trace to the page."""

from __future__ import annotations

import uuid
from typing import Any

from torch import Tensor

from ...guidance.sampling.trace import Trace
from ..host import hooks
from ..host.run_state import keep_run_state, run_state
from ..host.server import send_event

KEY = "guidance_trace"
EVENT = "classifier_guidance.trace"


def traced(model: Any, trace: Trace, node: str | None = None) -> Any:
    """The MODEL, recorded in the trace; with a node id, the page shows it live."""
    model = model.clone()
    keep_run_state(model)
    options = hooks.options_of(model.model_options)
    options[hooks.TRACES] = (*options.get(hooks.TRACES, ()), trace)
    publisher = TracePublisher(trace, node)

    def run(executor: Any, *args: Any, **options: Any) -> Any:
        trace.begin()
        publisher.begin()
        try:
            samples = executor(*args, **options)
        finally:
            publisher.publish(wait=True)
        if isinstance(samples, Tensor):
            trace.end(samples)
        return samples

    def prediction(executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any = None):
        publisher.publish(wait=False)
        guider = executor.class_obj
        sigmas = run_state(model_options).sigmas(guider.inner_model, model_options)
        trace.evaluation(sigma, sigmas.position)
        if "negative" in guider.conds:
            trace.cfg(guider.cfg)  # core may call no CFG function where it is 1
        return executor(x, sigma, model_options, seed)

    def network(executor: Any, *inputs: Any, **conds: Any) -> Any:
        trace.passes(len(inputs[hooks.NETWORK_OPTIONS]["cond_or_uncond"]))
        return executor(*inputs, **conds)

    def cfg(args: dict) -> Tensor:
        # core passes zeros if uncond was not computed
        uncond = None if args.get("uncond") is None else args.get("uncond_denoised")
        if args.get("cond_denoised") is not None:
            trace.cfg(args["cond_scale"], args["cond_denoised"], uncond)
        return args["denoised"]

    model.add_wrapper_with_key(hooks.RUN, KEY, run)
    model.add_wrapper_with_key(hooks.PREDICTION, KEY, prediction)
    # patches further in may skip an evaluation, and guides report to it all the same
    hooks.move_outermost(model, hooks.PREDICTION, KEY)
    model.add_wrapper_with_key(hooks.NETWORK, KEY, network)
    model.set_model_sampler_post_cfg_function(cfg)
    return model


class TracePublisher:
    """Sends each evaluation of a trace to the page once; does nothing without a node id."""

    def __init__(self, trace: Trace, node: str | None):
        self.trace, self.node = trace, node
        self.begin()

    def begin(self) -> None:
        """A new run: the page may have missed its first evaluation, so it has a name."""
        self.run = uuid.uuid4().hex[:8]
        self.count = 0  # of the run's evaluations that have been sent
        self._sent: set[str] = set()  # the plans that have been sent

    def publish(self, wait: bool) -> None:
        """Sends the evaluations that have been copied from the device, or waits for all."""
        if self.node is None:
            return
        for seen in self.trace.evaluations[self.count :]:
            if not wait and not seen.arrived:
                return
            about = {"node": self.node, "run": self.run, "number": self.count}
            about |= {"steps": seen.position.steps, "planned": self._new_plans()}
            self.count += 1
            which = {record.number: record.classifier.to_dict() for record in seen.classifiers}
            send_event(EVENT, about | {"classifiers": which, "evaluation": seen.to_plain()})

    def _new_plans(self) -> dict[str, list[float | None]]:
        """The plans that the page has not got yet."""
        plans = {name: plan for name, plan in self.trace.plans().items() if name not in self._sent}
        self._sent.update(plans)
        return plans
