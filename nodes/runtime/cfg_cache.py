"""The cached CFG term: a wrapper around the evaluation of conditionings, inside every guider.

The guider and all CFG patches get an uncond as usual. It is cond minus the cached term, so they
work as if it had been computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...guidance.sampling.cfg_cache import CFGCache, CFGCacheConfig
from ..host import hooks, model_info
from ..host.run_state import keep_run_state, run_state
from ..host.server import show_on_node

KEY = "cfg_cache"
NO_EFFECT = (
    "cfg_interval and tolerance save nothing in this run: the guider or a patch computes the "
    "positive and the negative apart; set cfg_interval to 1 and tolerance to 0."
)


def cache_cfg(model: Any, config: CFGCacheConfig, node: str | None = None) -> Any:
    """The MODEL with a CFG cache as configured; node: where the page says that it has no effect."""
    if config.is_off:
        return model
    model = model.clone()
    keep_run_state(model)
    model.add_wrapper_with_key(hooks.CONDITIONINGS, KEY, CFGCacheWrapper(config, node))
    return model


@dataclass(frozen=True)
class CFGCacheWrapper:
    """Skips the negative, and Perp-Neg's empty prompt, while the cached terms can be used."""

    config: CFGCacheConfig
    node: str | None = None

    def __call__(
        self, executor: Any, model: Any, conds: list, x: Tensor, sigma: Tensor, options: dict
    ) -> Any:
        """The denoised images of cond and the others (B, ...) at x and sigma (B,)."""
        state = run_state(options)
        cache = state.cache(id(self), lambda: CFGCache(self.config))
        # the windows of a long video are parts of one evaluation; each would need its own term
        if len(conds) not in (2, 3) or conds[0] is None or "context_handler" in options:
            state.at_end(id(self), lambda: self._warn_if_unused(cache))
            return executor(model, conds, x, sigma, options)
        due = cache.due()
        if any(cond is None for cond in conds):
            return executor(model, conds, x, sigma, options)
        others = len(conds) - 1
        levels = model_info.levels_of(model.model_sampling, sigma.repeat(others))
        active = model_info.active_conditionings(conds, lambda: state.sigma(sigma))
        changed = state.changed(id(self), active)
        if due or changed or not cache.matches_shape((len(x) * others, *x.shape[1:])):
            output = executor(model, conds, x, sigma, options)
            terms = torch.cat([output[0] - other for other in output[1:]])
            cache.store(terms.detach(), *levels)
            return output
        for trace in hooks.options_of(options).get(hooks.TRACES, ()):
            trace.saved(sum(map(len, conds[1:])))
        cond = executor(model, [conds[0], *[None] * others], x, sigma, options)[0]
        return [cond, *(cond - term for term in cache.term_at(*levels).chunk(others))]

    def _warn_if_unused(self, cache: CFGCache) -> None:
        if cache.is_empty:
            show_on_node(NO_EFFECT, self.node)
