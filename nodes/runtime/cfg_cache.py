"""The cached CFG term: a wrapper around the evaluation of conditionings, inside every guider.

The guider and all CFG patches get an uncond as usual. It is cond minus the cached term, so they
work as if it had been computed.
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
    """The MODEL with a CFG cache as configured."""
    if config.is_off:
        return model
    model = model.clone()
    keep_run_state(model)
    hooks.around_conditionings(model, KEY, CFGCacheWrapper(config))
    return model


@dataclass(frozen=True)
class CFGCacheWrapper:
    """Skips the negative while the cached term can be used."""

    config: CFGCacheConfig

    def __call__(
        self, executor: Any, model: Any, conds: list, x: Tensor, sigma: Tensor, options: dict
    ) -> Any:
        """The denoised images of cond and uncond (B, ...) at x and sigma (B,)."""
        # the windows of a long video are parts of one evaluation; each would need its own term
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
