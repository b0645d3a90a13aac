"""Classifier guidance, classifier-free guidance and ADM models in plain torch.

denoised' = denoised + scale * (sigma^2 / alpha) * grad_x log p(y | x)
denoised' = uncond + scale * (cond - uncond)
"""

from .checkpoint import CheckpointError
from .classifier import NoisyClassifier
from .classifier_free import classifier_free, implicit_gradient
from .classifier_guidance import guide_denoised
from .diffusion import DiffusionModel
from .image_classifier import ImageClassifier
from .image_classifier_files import load_image_classifier
from .labels import LabelError
from .loading import load_adm, load_classifier
from .noise import NoiseSchedule
from .schedule import GuidanceSchedule

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
    "implicit_gradient",
    "load_adm",
    "load_classifier",
    "load_image_classifier",
]
