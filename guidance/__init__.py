"""Classifier guidance, classifier-free guidance and ADM models in plain torch.

denoised' = denoised + scale * (sigma^2 / alpha) * grad_x log p(y | x)
denoised' = uncond + scale * (cond - uncond)
"""

from .checkpoints.checkpoint import CheckpointError
from .checkpoints.image_classifiers import load_image_classifier
from .checkpoints.loading import load_adm, load_classifier
from .checkpoints.zero_shot import load_zero_shot_classifier
from .classifiers.image import ImageClassifier
from .classifiers.noisy import NoisyClassifier
from .core.labels import LabelError
from .core.noise import NoiseSchedule
from .sampling.cfg import classifier_free
from .sampling.classifier_guidance import guide_denoised
from .sampling.model import DiffusionModel
from .schedules.curve import ScheduleError
from .schedules.schedule import GuidanceSchedule

# ComfyUI shows an error's class before its sentence, and its module would be the path of this pack
for _error in (CheckpointError, LabelError, ScheduleError):
    _error.__module__ = "guidance"

__all__ = [
    "CheckpointError",
    "DiffusionModel",
    "GuidanceSchedule",
    "ImageClassifier",
    "LabelError",
    "NoiseSchedule",
    "NoisyClassifier",
    "classifier_free",
    "guide_denoised",
    "load_adm",
    "load_classifier",
    "load_image_classifier",
    "load_zero_shot_classifier",
]
