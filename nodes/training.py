"""Nodes that train a noisy classifier on labelled images or latents, and save it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io, ui

from ..guidance.adm.presets import NETWORK_SIZES, classifier_layout
from ..guidance.checkpoints.checkpoint import Description, save_checkpoint
from .host.classifiers import place_trained
from .host.model_info import PIXELS, latent_channels, space_of, to_model_space
from .host.paths import new_output_path
from .host.training import (
    prepare_training,
    train_in_bf16,
    training_progress,
    training_resume,
)
from .sockets import TRAINING, NoisyClassifierType

if TYPE_CHECKING:  # loaded when something is trained, not with ComfyUI
    from ..guidance.training.data import LabelledImages


class TrainNoisyClassifier(io.ComfyNode):
    """Trains a noisy classifier on labelled images or latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        advanced = {"optional": True, "advanced": True}
        return io.Schema(
            node_id="TrainNoisyClassifier",
            display_name="Train Noisy Classifier",
            category=TRAINING,
            description="Trains a noisy classifier, p(y given x_t, t), in the space of the model "
            "to steer: on images for pixel models, on latents for all others. A stopped run "
            "resumes when you queue it again with the same inputs.",
            search_aliases=["train classifier", "noisy classifier", "classifier training"],
            inputs=[
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Training images for a pixel-space model. Connect either images or "
                    "latents.",
                ),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="Training latents from VAE Encode. They also need the model.",
                ),
                io.String.Input(
                    "labels",
                    force_input=True,
                    tooltip="The class of each image or latent, one per line or separated by "
                    "commas.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model to steer. Latents are converted to its space.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(NETWORK_SIZES),
                    tooltip="Size of the network. small: 32 channels. medium: 64. paper: 128, as "
                    "in Dhariwal and Nichol 2021.",
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=10_000_000,
                    tooltip="Number of training steps.",
                ),
                io.Int.Input(
                    "batch_size", default=64, min=1, max=65536, tooltip="Images per training step."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.001,
                    min=1e-7,
                    max=1.0,
                    step=1e-5,
                    round=1e-7,
                    tooltip="Learning rate at the start. It falls to 0 at the end.",
                ),
                io.Combo.Input(
                    "noise_schedule",
                    options=["linear", "cosine"],
                    default="cosine",
                    tooltip="Noise schedule of the training images. cosine has more steps at low "
                    "and medium noise and learns faster. The classifier can steer models with any "
                    "noise schedule.",
                ),
                io.Combo.Input(
                    "pool",
                    options=["attention", "adaptive", "spatial_v2"],
                    tooltip="attention: as in the paper, works only at the size of the training "
                    "images. adaptive, spatial_v2: work at other sizes too.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="The same seed and inputs give the same classifier.",
                ),
                io.Int.Input(
                    "shift",
                    default=0,
                    min=0,
                    max=512,
                    tooltip="Augmentation: shifts images randomly by up to this many pixels.",
                    **advanced,
                ),
                io.Boolean.Input(
                    "flip",
                    default=False,
                    tooltip="Augmentation: mirrors half of the images. Do not use it for letters "
                    "or digits.",
                    **advanced,
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "fp32", "bf16"],
                    tooltip="Precision of the training. auto: bf16 if the GPU supports it, else "
                    "fp32.",
                    **advanced,
                ),
                io.Float.Input(
                    "held_out",
                    default=0.1,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    tooltip="Fraction of the images that is used only to measure accuracy.",
                    **advanced,
                ),
                io.Int.Input(
                    "accumulate",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Gradient accumulation: splits each batch into this many parts to save "
                    "memory.",
                    **advanced,
                ),
                io.Float.Input(
                    "ema",
                    default=0.995,
                    min=0.0,
                    max=0.99999,
                    step=0.001,
                    round=1e-5,
                    tooltip="Decay of the averaged weights. The output has the averaged weights.",
                    **advanced,
                ),
                io.Float.Input(
                    "weight_decay",
                    default=0.05,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Weight decay of AdamW.",
                    **advanced,
                ),
                io.Int.Input(
                    "patience",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Early stopping. The held-out loss is measured ten times. Training "
                    "stops after this many measurements in a row without improvement. 0: off.",
                    **advanced,
                ),
            ],
            outputs=[
                NoisyClassifierType.Output(
                    display_name="classifier",
                    tooltip="For Classifier Guidance and Save Noisy Classifier.",
                ),
                io.Image.Output(
                    display_name="plot", tooltip="The loss by step and the accuracy by noise level."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        labels,
        preset,
        steps,
        batch_size,
        learning_rate,
        noise_schedule,
        pool,
        seed,
        images=None,
        latents=None,
        model=None,
        shift=0,
        flip=False,
        precision="auto",
        held_out=0.1,
        accumulate=1,
        ema=0.995,
        weight_decay=0.05,
        patience=0,
    ) -> io.NodeOutput:
        from ..guidance.training.data import Augment
        from ..guidance.training.loop import OptimizerConfig
        from ..guidance.training.new_classifier import TrainingConfig
        from ..guidance.training.plot import plot_training  # matplotlib, on first use

        # gradients flow through these tensors, so they must not be inference tensors
        with torch.inference_mode(False), torch.enable_grad():
            x0, space = training_space(images, latents, model)
            data = labelled(x0, labels, "images" if latents is None else "latents", space)
            layout = classifier_layout(
                preset,
                channels=x0.shape[1],
                size=(x0.shape[2], x0.shape[3]),
                classes=len(data.names),
                pool=pool,
            )
            recipe = OptimizerConfig(
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                ema=ema,
                seed=seed,
                bf16=train_in_bf16(precision),
                accumulate=accumulate,
            )
            plan = TrainingConfig(
                data=data,
                layout=layout,
                recipe=recipe,
                noise_schedule=noise_schedule,
                augment=Augment(shift, flip),
                held_out=held_out,
                patience=patience,
            )
            trained, description = _train(plan)
            placed = place_trained(trained.network, description)
        plot = torch.from_numpy(plot_training(trained.losses, trained.validations).copy())
        return io.NodeOutput(placed, plot.float()[None] / 255)


def _train(plan: Any) -> Any:
    from ..guidance.training.loop import TrainingContext
    from ..guidance.training.new_classifier import new_classifier

    resume = training_resume(plan.settings())
    device = prepare_training()
    run = TrainingContext(
        title="Train Noisy Classifier",
        device=str(device),
        resume=resume,
        on_step=training_progress(plan.recipe.steps),
    )
    result = new_classifier(plan, run)
    resume.delete()
    return result


def training_space(images, latents, model) -> tuple[torch.Tensor, str]:
    """x0 (N, C, H, W) in the sampler's scaling, and the name of its space.

    Raises ValueError if not exactly one of images and latents is given, or if the model is missing
    or does not match.
    """
    if (images is None) == (latents is None):
        found = "neither" if images is None else "both"
        raise ValueError(
            f"images and latents: {found} of them connected; connect images for a pixel-space "
            "model, or latents and the model for any other model."
        )
    if images is not None:
        if model is not None and space_of(model) != PIXELS:
            raise ValueError(
                f"model works on {space_of(model)} latents, but images are connected; encode them "
                "with VAE Encode and connect the latents instead."
            )
        return images[..., :3].movedim(-1, 1).clone() * 2 - 1, PIXELS
    if model is None:
        raise ValueError(
            "latents are connected, but no model; connect the model that the classifier will steer."
        )
    samples = latents["samples"]
    if samples.ndim != 4:
        raise ValueError(
            f"latents have the shape {tuple(samples.shape)}; a classifier is trained on images, "
            "(N, C, H, W)."
        )
    channels = latent_channels(model)
    if samples.shape[1] != channels:
        raise ValueError(
            f"latents have {samples.shape[1]} channels, but the model's have {channels}; encode "
            "the images with the model's VAE."
        )
    return to_model_space(model, samples), space_of(model)


def labelled(x0: torch.Tensor, labels: str, what: str, space: str) -> LabelledImages:
    """The images with their classes; raises ValueError if the numbers differ."""
    from ..guidance.training.data import LabelledImages

    given = [name.strip() for name in labels.strip().split("\n" if "\n" in labels else ",")]
    if len(given) != len(x0):
        raise ValueError(
            f"labels names {len(given)} classes, but there are {len(x0)} {what}; give one for each."
        )
    names = sorted(
        set(given), key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)
    )
    index = torch.tensor([names.index(name) for name in given])
    return LabelledImages(x0, index, tuple(names), space=space)


class SaveNoisyClassifier(io.ComfyNode):
    """Saves a noisy classifier to a file for Load Noisy Classifier."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveNoisyClassifier",
            display_name="Save Noisy Classifier",
            category=TRAINING,
            description="Saves a classifier to ComfyUI's output folder as .safetensors, with its "
            "labels, space and noise schedule. Load Noisy Classifier lists the files in the "
            "subfolder classifiers.",
            search_aliases=["save classifier", "export classifier"],
            is_output_node=True,
            inputs=[
                NoisyClassifierType.Input("classifier", tooltip="The classifier to save."),
                io.String.Input(
                    "filename_prefix",
                    default="classifiers/noisy_classifier",
                    tooltip="File name in the output folder. A number is added.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, classifier, filename_prefix) -> io.NodeOutput:
        path = new_output_path(filename_prefix)
        description = classifier.description
        if not isinstance(description, Description):
            raise ValueError(
                f"{classifier.file_name} has no description to save; use a noisy classifier that "
                "was loaded or trained by this pack."
            )
        save_checkpoint(path, classifier.classifier.network.state_dict(), description)
        return io.NodeOutput(ui=ui.PreviewText(f"saved: {Path(path).name}"))
