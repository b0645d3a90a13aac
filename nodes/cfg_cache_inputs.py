"""The inputs of the nodes that cache the CFG term."""

from __future__ import annotations

from comfy_api.latest import io


def cfg_cache_inputs() -> list[io.Input]:
    """How often the CFG term is computed."""
    return [
        io.Int.Input(
            "cfg_interval",
            default=1,
            min=1,
            max=100,
            optional=True,
            advanced=True,
            tooltip="Computes the negative only every N model evaluations. The evaluations in "
            "between reuse the last CFG term (cond - uncond). 1: off.",
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
            tooltip="Adapts the interval during the run: longer while the reused CFG term stays "
            "accurate, shorter when its error is above this fraction of the largest term. "
            "cfg_interval is then the shortest interval. Start with 0.5. 0: off.",
        ),
    ]
