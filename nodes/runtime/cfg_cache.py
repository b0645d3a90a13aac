"""CFG's term from a cache: a wrapper around the evaluation of conditionings, below every guider.

What the guider and all patches of CFG get is an uncond in its usual place, made of the cond that
was computed and the cached term. So they compose as if it had been computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...guidance.sampling.cfg_cache import CFGCache, CFGCacheConfig
from ..host import hooks, model_info
from ..host.run_state import keep_run_state, run_state

KEY = "cfg_cache"


def cache_cfg(model: Any, config: CFGCacheConfig) -> Any:
    """The MODEL, its CFG term computed as `config` says."""
    if config.is_off:
        return model
    model = model.clone()
    keep_run_state(model)
    hooks.around_conditionings(model, KEY, CFGCacheWrapper(config))
    return model


@dataclass(frozen=True)
class CFGCacheWrapper:
    """Leaves the negative out where the last term still serves."""

    config: CFGCacheConfig

    def __call__(
        self, executor: Any, model: Any, conds: list, x: Tensor, sigma: Tensor, options: dict
    ) -> Any:
        """The denoised images of cond and uncond (B, ...) at x and sigma (B,)."""
        # windows of a long video are parts of one evaluation, and each would need a term
        if len(conds) != 2 or "context_handler" in options:
            return executor(model, conds, x, sigma, options)
        cache = run_state(options).cache(id(self), lambda: CFGCache(self.config))
        due = cache.due()
        if any(cond is None for cond in conds):
            return executor(model, conds, x, sigma, options)
        levels = model_info.levels_of(model.model_sampling, sigma)
        if due or not cache.matches_shape(x):
            output = executor(model, conds, x, sigma, options)
            cache.store((output[0] - output[1]).detach(), *levels)
            return output
        for trace in hooks.options_of(options).get(hooks.TRACES, ()):
            trace.saved(len(conds[1]))
        cond = executor(model, [conds[0], None], x, sigma, options)[0]
        return [cond, cond - cache.term_at(*levels)]
