"""Nodes that make guidance schedules and apply them to CFG."""

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
            description="A guidance scale that changes during the run, for CFG or classifier "
            "guidance. Where a CFG schedule is exactly 1, the negative is not computed. Where a "
            "classifier schedule is 0, the gradient is not computed.",
            search_aliases=["CFG schedule", "dynamic CFG", "guidance interval", "keyframes"],
            inputs=[
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default="interval",
                    tooltip="linear, cosine, power, exponential: from scale at start to end_scale "
                    "at end. interval: scale from start to end, outside elsewhere. last steps: "
                    f"scale in the final last_steps steps, outside before. From papers: {papers}.",
                ),
                io.Combo.Input(
                    "axis",
                    options=list(AXES),
                    default="percent",
                    tooltip="The unit of start, end and keyframes. percent: position in the "
                    "model's timesteps, 0 (noisiest) to 1 (cleanest), also when a run starts in "
                    "the middle. step: position in this run's steps, 0 (first) to 1 (last). sigma: "
                    "noise level, from high to low.",
                ),
                _scale("scale", 7.5, "The scale. For a ramp: the scale at start."),
                _scale("end_scale", 1.0, "For a ramp: the scale at end."),
                _position("start", 0.0, "Start of the interval or ramp, in units of axis."),
                _position("end", 1.0, "End of the interval or ramp, in units of axis."),
                _scale(
                    "outside",
                    1.0,
                    "The scale outside the interval, or before the last steps. For CFG, 1 skips "
                    "the negative. For classifier guidance, 0 skips the gradient.",
                ),
                io.Float.Input(
                    "exponent",
                    default=2.0,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="For the shape power: the ramp follows position ** exponent.",
                ),
                io.Int.Input(
                    "last_steps",
                    default=5,
                    min=1,
                    max=10000,
                    tooltip="For the shape last steps: the number of steps at the end of the run.",
                ),
                io.String.Input(
                    "keyframes",
                    default="0: 7.5, 0.6: 7.5, 1: 1",
                    tooltip="For the shape keyframes. Pairs of position: scale with linear "
                    "interpolation, or one scale per step: 7, 7, 5, 1.",
                ),
                io.String.Input(
                    "expression",
                    default="1 + 6.5 * (1 - percent)",
                    tooltip="For the shape expression: a formula for the scale. Variables: "
                    "percent, step, steps, sigma. Functions: sin cos exp log sqrt floor ceil min "
                    "max abs clamp. Conditions: a if b else c.",
                ),
                io.String.Input(
                    "curve",
                    default=CURVE,
                    tooltip="For the shape curve. Drag the points. Double-click to add a point, "
                    "press Delete or right-click to remove it. The value is a schedule as JSON.",
                    extra_dict={"widgetType": "GUIDANCE_CURVE"},
                ),
                io.String.Input(
                    "per_image",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="One factor per image of the batch: 1, 0.5, 2. The scale is multiplied "
                    "by it. Empty: the same scale for all images.",
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
    """CFG with a scale that follows a schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CFGScaleScheduler",
            display_name="CFG Scale Scheduler",
            category=CATEGORY,
            description="The CFG scale of this model follows a schedule. Works with KSampler, "
            "SamplerCustom, CFG guiders and Perp-Neg, and replaces their cfg. Where the schedule "
            "is exactly 1, the negative is not computed.",
            search_aliases=["dynamic CFG", "CFG schedule", "scheduled CFG", "CFG interval"],
            inputs=[
                io.Model.Input("model", tooltip="Any model."),
                GuidanceScheduleType.Input("schedule", tooltip="The CFG scale during the run."),
                *cfg_cache_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model with the scheduled CFG.")],
        )

    @classmethod
    def execute(cls, model, schedule, cfg_interval=1, tolerance=0.0) -> io.NodeOutput:
        scheduled = schedule_cfg(model, schedule)
        return io.NodeOutput(cache_cfg(scheduled, CFGCacheConfig(cfg_interval, tolerance)))
