"""Nodes that make guidance schedules and apply them to CFG."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.sampling.cfg_cache import CFGCacheConfig
from ..guidance.schedules.curve import AXES
from ..guidance.schedules.shapes import SHAPES, schedule_of_shape
from .runtime.cfg_cache import cache_cfg
from .runtime.cfg_schedule import schedule_cfg
from .schema import ADVANCED, GuidanceScheduleType, Schema, cfg_cache_inputs, number

CURVE = '{"axis": "percent", "interpolation": "linear", "points": [[0, 7.5], [0.6, 7.5], [1, 1]]}'


def _scale(name: str, default: float) -> io.Input:
    return number(name, default, -1000.0, 1000.0, step=0.1, round=0.001)


def _position(name: str, default: float) -> io.Input:
    return number(name, default, 0.0, 100000.0, step=0.01, round=0.0001)


class GuidanceSchedule(io.ComfyNode):
    """A guidance scale over the run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="GuidanceSchedule",
            search_aliases=["limited interval", "guidance interval", "CFG schedule", "keyframes"],
            inputs=[
                io.Combo.Input("shape", options=list(SHAPES), default="interval"),
                io.Combo.Input("axis", options=list(AXES), default="percent"),
                _scale("scale", 7.5),
                _scale("end_scale", 1.0),
                _position("start", 0.2),
                _position("end", 0.8),
                _scale("outside", 1.0),
                number("exponent", 2.0, 0.01, 100.0, step=0.1, round=0.001),
                number("last_steps", 5, 1, 10000),
                io.String.Input("keyframes", default="0: 7.5, 0.6: 7.5, 1: 1"),
                io.String.Input("expression", default="1 + 6.5 * (1 - percent)"),
                io.String.Input(
                    "curve", default=CURVE, extra_dict={"widgetType": "GUIDANCE_CURVE"}
                ),
                io.String.Input("per_image", default="", **ADVANCED),
            ],
            outputs=[GuidanceScheduleType.Output(display_name="schedule")],
        )

    @classmethod
    def execute(cls, *, per_image="", **inputs) -> io.NodeOutput:
        return io.NodeOutput(schedule_of_shape(**inputs, per_image=per_image))


class CFGScaleScheduler(io.ComfyNode):
    """CFG with a scale that follows a schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CFGScaleScheduler",
            search_aliases=[
                "dynamic CFG",
                "CFG rescale over time",
                "scheduled CFG",
                "CFG interval",
            ],
            inputs=[
                io.Model.Input("model"),
                GuidanceScheduleType.Input("schedule"),
                *cfg_cache_inputs(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, schedule, cfg_interval=1, tolerance=0.0) -> io.NodeOutput:
        node = getattr(cls.hidden, "unique_id", None)
        scheduled = schedule_cfg(model, schedule)
        return io.NodeOutput(cache_cfg(scheduled, CFGCacheConfig(cfg_interval, tolerance), node))
