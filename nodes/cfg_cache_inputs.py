"""The inputs of every node that caches CFG's term."""

from __future__ import annotations

from comfy_api.latest import io


def cfg_cache_inputs() -> list[io.Input]:
    """How often CFG's term is computed."""
    return [
        io.Int.Input(
            "cfg_interval",
            default=1,
            min=1,
            max=100,
            optional=True,
            advanced=True,
            tooltip="Above 1: the negative is computed every N evaluations, and CFG's last term "
            "(cond - uncond) is kept for those between.",
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
            tooltip="Above 0: the negative is computed less often while CFG's last term predicts "
            "the next one to within this share of the longest, and more often where it does not. "
            "0.5 is a beginning. 0 is off.",
        ),
    ]
