"""The pack's ComfyUI nodes, one file per family."""

from functools import partial

from comfy_api.latest import ComfyExtension, io

from .classify import ClassifyImage
from .comparison import GuidanceComparison, GuidanceScales
from .conditioning import ADMClassLabel, ADMUpscaleConditioning
from .guiders import ClassifierFreeGuidance, ClassifierGuidance
from .host.paths import register_model_folders
from .host.server import add_routes
from .image_folder import LabelledImageFolder
from .loaders import (
    ADMModelLoader,
    ImageClassifierLoader,
    NoisyClassifierLoader,
    ZeroShotClassifier,
)
from .runtime.schedule_preview_api import preview_response
from .sampling import ADMScheduler, RecurrentSampler, SamplerADM
from .schedules import CFGScaleScheduler, GuidanceSchedule
from .tracing import GuidancePlot, GuidanceTrace
from .training import SaveNoisyClassifier, TrainNoisyClassifier

NODES: list[type[io.ComfyNode]] = [
    NoisyClassifierLoader,
    ImageClassifierLoader,
    ZeroShotClassifier,
    ADMModelLoader,
    ADMClassLabel,
    ADMUpscaleConditioning,
    ADMScheduler,
    SamplerADM,
    RecurrentSampler,
    ClassifierGuidance,
    ClassifierFreeGuidance,
    ClassifyImage,
    GuidanceSchedule,
    CFGScaleScheduler,
    GuidanceTrace,
    GuidancePlot,
    GuidanceScales,
    GuidanceComparison,
    LabelledImageFolder,
    TrainNoisyClassifier,
    SaveNoisyClassifier,
]


class ClassifierGuidanceExtension(ComfyExtension):
    """Gives the pack's nodes to ComfyUI."""

    async def on_load(self) -> None:
        """Registers the model folders (with the demo models) and the server routes."""
        register_model_folders()
        add_routes(partial(preview_response, GuidanceSchedule.define_schema().inputs))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The pack's nodes."""
        return NODES
