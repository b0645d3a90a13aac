"""The pack's ComfyUI nodes, one file per family."""

from comfy_api.latest import ComfyExtension, io

from .classify import ClassifyImage
from .guiders import (
    ADMClassLabel,
    ADMUpscaleConditioning,
    ClassifierFreeGuidance,
    ClassifierGuidance,
)
from .host import comfy_adapter
from .loaders import ADMModelLoader, ImageClassifierLoader, NoisyClassifierLoader
from .sampling import ADMScheduler, SamplerADM
from .schedules import CFGScaleScheduler, GuidanceSchedule, answer
from .tracing import GuidancePlot, GuidanceTrace
from .training import LabelledImageFolder, SaveNoisyClassifier, TrainNoisyClassifier

NODES: list[type[io.ComfyNode]] = [
    NoisyClassifierLoader,
    ImageClassifierLoader,
    ADMModelLoader,
    ADMClassLabel,
    ADMUpscaleConditioning,
    ADMScheduler,
    SamplerADM,
    ClassifierGuidance,
    ClassifierFreeGuidance,
    ClassifyImage,
    GuidanceSchedule,
    CFGScaleScheduler,
    GuidanceTrace,
    GuidancePlot,
    LabelledImageFolder,
    TrainNoisyClassifier,
    SaveNoisyClassifier,
]


class ClassifierGuidanceExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def on_load(self) -> None:
        """Makes the model folders known, the demo models among them, and answers the page."""
        comfy_adapter.register_model_folders()
        comfy_adapter.add_routes(answer)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The pack's nodes."""
        return NODES


def extension() -> ComfyExtension:
    """The extension that the entry point hands to ComfyUI."""
    return ClassifierGuidanceExtension()
