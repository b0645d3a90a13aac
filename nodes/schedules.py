"""Nodes that make guidance schedules, and let CFG follow one."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.sampling.cfg_cache import CFGCacheConfig
from ..guidance.schedules.curve import AXES
from ..guidance.schedules.presets import SCHEDULE_PRESETS
from ..guidance.schedules.shapes import SHAPES, schedule_of_shape
from .cfg_cache_inputs import cfg_cache_inputs
from .runtime.cfg_cache import cache_cfg
from .runtime.cfg_schedule import schedule_cfg
from .sockets import CATEGORY, GuidanceScheduleType

CURVE = '{"axis": "percent", "interpolation": "linear", "points": [[0, 7.5], [0.6, 7.5], [1, 1]]}'


def _scale(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=-1000.0, max=1000.0, step=0.1, round=0.001, tooltip=tooltip
    )


def _position(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=100000.0, step=0.01, round=0.0001, tooltip=tooltip
    )


class GuidanceSchedule(io.ComfyNode):
    """A guidance scale over the run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        papers = "; ".join(f"{name}: {about.paper}" for name, about in SCHEDULE_PRESETS.items())
        return io.Schema(
            node_id="GuidanceSchedule",
            display_name="Guidance Schedule",
            category=CATEGORY,
            description="A scale over the run, for CFG or classifier guidance. Where a CFG "
            "schedule is exactly 1, the negative is not computed; where a classifier's is 0, no "
            "gradient is.",
            search_aliases=["CFG schedule", "dynamic CFG", "guidance interval", "keyframes"],
            inputs=[
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default="interval",
                    tooltip="linear, cosine, power, exponential: from scale at start to end_scale "
                    "at end. interval: scale from start to end, else outside. last steps: scale in "
                    f"the last_steps, else outside. From papers: {papers}.",
                ),
                io.Combo.Input(
                    "axis",
                    options=list(AXES),
                    default="percent",
                    tooltip="What start, end and keyframes count in. percent: of the model's "
                    "timesteps, 0 to 1, wherever this run begins. step: of this run's steps, 0 the "
                    "first, 1 the last. sigma: noise, from high to low.",
                ),
                _scale("scale", 7.5, "The scale, or where a ramp begins."),
                _scale("end_scale", 1.0, "Where a ramp ends."),
                _position("start", 0.0, "Where the interval or ramp begins, on the axis."),
                _position("end", 1.0, "Where the interval or ramp ends, on the axis."),
                _scale(
                    "outside",
                    1.0,
                    "The scale outside an interval, and before the last steps. CFG: 1 saves the "
                    "negative's pass. Classifier guidance: 0 saves the gradient.",
                ),
                io.Float.Input(
                    "exponent",
                    default=2.0,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Of the shape power: share ** exponent.",
                ),
                io.Int.Input(
                    "last_steps", default=5, min=1, max=10000, tooltip="Of the shape last steps."
                ),
                io.String.Input(
                    "keyframes",
                    default="0: 7.5, 0.6: 7.5, 1: 1",
                    tooltip="Of the shape keyframes. position: scale, linear between; or one scale "
                    "for each step: 7, 7, 5, 1.",
                ),
                io.String.Input(
                    "expression",
                    default="1 + 6.5 * (1 - percent)",
                    tooltip="Of the shape expression. Variables: percent, step, steps, sigma. "
                    "Functions: sin cos exp log sqrt floor ceil min max abs clamp. a if b else c.",
                ),
                io.String.Input(
                    "curve",
                    default=CURVE,
                    tooltip="Of the shape curve: drag the points; double-click adds one, Delete or "
                    "the right button removes it. Its value is any schedule in its JSON form.",
                    extra_dict={"widgetType": "GUIDANCE_CURVE"},
                ),
                io.String.Input(
                    "per_image",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Factors of the scale, one for each image of the batch: 1, 0.5, 2. "
                    "Empty: the same for all.",
                ),
            ],
            outputs=[
                GuidanceScheduleType.Output(
                    display_name="schedule",
                    tooltip="For CFG Scale Scheduler, Classifier-Free Guidance and Classifier "
                    "Guidance.",
                )
            ],
        )

    @classmethod
    def execute(cls, *, per_image="", **inputs) -> io.NodeOutput:
        return io.NodeOutput(schedule_of_shape(**inputs, per_image=per_image))


class CFGScaleScheduler(io.ComfyNode):
    """CFG whose scale follows a schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CFGScaleScheduler",
            display_name="CFG Scale Scheduler",
            category=CATEGORY,
            description="The cfg of whatever samples this MODEL follows the schedule: KSampler, "
            "SamplerCustom, CFG guiders, Perp-Neg. Their own cfg is not used. Where the schedule "
            "is exactly 1, the negative is not computed.",
            search_aliases=["dynamic CFG", "CFG schedule", "scheduled CFG", "CFG interval"],
            inputs=[
                io.Model.Input("model", tooltip="Any model."),
                GuidanceScheduleType.Input("schedule", tooltip="The cfg over the run."),
                *cfg_cache_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The MODEL, its cfg by the schedule.")],
        )

    @classmethod
    def execute(cls, model, schedule, cfg_interval=1, tolerance=0.0) -> io.NodeOutput:
        scheduled = schedule_cfg(model, schedule)
        return io.NodeOutput(cache_cfg(scheduled, CFGCacheConfig(cfg_interval, tolerance)))
