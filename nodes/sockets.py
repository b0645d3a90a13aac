"""The pack's own socket types, and the menu categories of its nodes."""

from comfy_api.latest import io

NoisyClassifierType = io.Custom("NOISY_CLASSIFIER")
GuidanceScheduleType = io.Custom("GUIDANCE_SCHEDULE")
GuidanceTraceType = io.Custom("GUIDANCE_TRACE")
CATEGORY = "classifier guidance"
TRAINING = f"{CATEGORY}/training"
