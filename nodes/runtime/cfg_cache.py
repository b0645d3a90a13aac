"""CFG's term used again: a wrapper around the evaluation of conditionings, below every guider.

What the guider and all patches of CFG get is an uncond in its usual place, made of the cond that
was computed and the term that was held. So they compose as if it had been computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
from comfy_api.latest import io
from torch import Tensor

from ...guidance.sampling.cfg_cache import CFGCache, CFGCacheConfig
from ..host import comfy_adapter as adapter

KEY = "cfg_reuse"


def cfg_cache_inputs() -> list[io.Input]:
    """How often CFG's term is computed."""
    return [
        io.Int.Input(
            "every",
            default=1,
            min=1,
            max=100,
            optional=True,
            advanced=True,
            tooltip="Above 1: the negative is computed at each so-many-th evaluation, and CFG's "
            "last term (cond - uncond) is used again between.",
        ),
        io.Float.Input(
            "tolerance",
            default=0.0,
            min=0.0,
            max=0.99,
            step=0.05,
            round=0.001,
            optional=True,
            advanced=True,
            tooltip="Above 0: the negative is computed less often while CFG's last term foretells "
            "the next one to within this share of the longest, and more often where it does not. "
            "0.5 is a beginning. 0 is off.",
        ),
    ]


def cache_cfg(model: Any, reuse: CFGCacheConfig) -> Any:
    """The MODEL, its CFG term computed as `reuse` says."""
    if reuse.always:
        return model
    model = model.clone()
    wrappers = comfy.patcher_extension.WrappersMP
    model.add_wrapper_with_key(wrappers.CALC_COND_BATCH, KEY, CFGCacheWrapper(reuse))
    return model


@dataclass(frozen=True)
class CFGCacheWrapper:
    """A CALC_COND_BATCH wrapper that leaves the negative out where the last term serves."""

    reuse: CFGCacheConfig

    def __call__(
        self, executor: Any, model: Any, conds: list, x: Tensor, sigma: Tensor, options: dict
    ) -> Any:
        """The denoised images of cond and uncond (B, ...) at x and sigma (B,)."""
        # windows of a long video are parts of one evaluation, and each would need a term
        if len(conds) != 2 or "context_handler" in options:
            return executor(model, conds, x, sigma, options)
        held = self._held(options)
        due = held.due()
        if any(cond is None for cond in conds):
            return executor(model, conds, x, sigma, options)
        levels = adapter.levels_of(model.model_sampling, sigma)
        if due or not held.matches_shape(x):
            output = executor(model, conds, x, sigma, options)
            held.renew((output[0] - output[1]).detach(), *levels)
            return output
        for trace in options["transformer_options"].get(adapter.TRACE_KEY, ()):
            trace.saved(len(conds[1]))
        cond = executor(model, [conds[0], None], x, sigma, options)[0]
        return [cond, cond - held.at(*levels)]

    def _held(self, options: dict) -> CFGCache:
        """This run's; the options are the run's own."""
        kept = options["transformer_options"].setdefault(adapter.HELD_KEY, {})
        return kept.setdefault(id(self), CFGCache(self.reuse))
