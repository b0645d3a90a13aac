"""Nodes that train a noisy classifier on labelled images or latents, and save it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io, ui

from ..guidance.adm.presets import PRESETS, classifier_layout
from ..guidance.checkpoints.checkpoint import Description, save_checkpoint
from .host import comfy_adapter as adapter
from .sockets import CATEGORY, NoisyClassifierType

if TYPE_CHECKING:  # loaded when something is trained, not with ComfyUI
    from ..guidance.training.data import LabelledImages

TRAINING = f"{CATEGORY}/training"


class LabelledImageFolder(io.ComfyNode):
    """Pictures of a folder of class folders, and what each is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LabelledImageFolder",
            display_name="Load Labelled Image Folder",
            category=TRAINING,
            description="Pictures from a folder in ComfyUI's input folder that holds a folder for "
            "each class, cut to the middle square and scaled.",
            search_aliases=["ImageFolder", "dataset", "load images from folder", "class folders"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=adapter.class_folder_names(),
                    tooltip="In ComfyUI's input folder; each of its folders is a class.",
                ),
                io.Int.Input(
                    "size", default=64, min=8, max=4096, tooltip="Side of the square in pixels."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All of them, class by class."),
                io.String.Output(
                    display_name="labels", tooltip="A line with the class of each image."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder, **_):
        return adapter.class_folder_fingerprint(folder)

    @classmethod
    def execute(cls, folder, size) -> io.NodeOutput:
        from ..guidance.training.data import load_images

        def check_count(count: int) -> None:
            # in bytes, as a list and as one, and in fp32
            most = count * 3 * size * size * (2 + 4)
            adapter.check_room(most, f"{count} images of {size}x{size}")

        data = load_images(adapter.class_folder_path(folder), size, check_count)
        if data.skipped:
            adapter.warn(
                f"{folder}: left out {len(data.skipped)} unreadable pictures: "
                + ", ".join(data.skipped[:5])
            )
        images = data.images.permute(0, 2, 3, 1).float() / 255
        labels = "\n".join(data.names[index] for index in data.labels.tolist())
        return io.NodeOutput(images, labels)


class TrainNoisyClassifier(io.ComfyNode):
    """A noisy classifier of labelled images or latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        advanced = {"optional": True, "advanced": True}
        return io.Schema(
            node_id="TrainNoisyClassifier",
            display_name="Train Noisy Classifier",
            category=TRAINING,
            description="Trains p(y given x_t, t) in the space of the model that it is to steer: "
            "on images for pixel models, on latents for all others. A run that was stopped goes "
            "on when it is queued again.",
            search_aliases=["train classifier", "noisy classifier", "classifier training"],
            inputs=[
                io.Image.Input("images", optional=True, tooltip="For models of pixel space."),
                io.Latent.Input(
                    "latents", optional=True, tooltip="From VAE Encode; needs the model, too."
                ),
                io.String.Input(
                    "labels",
                    force_input=True,
                    tooltip="The class of each image or latent: a line for each, or with commas.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="What it is to steer; latents go to its space."
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    tooltip="The network: small 32 channels, medium 64, paper 128 (Dhariwal and "
                    "Nichol 2021).",
                ),
                io.Int.Input("steps", default=1000, min=1, max=10_000_000, tooltip="Of training."),
                io.Int.Input(
                    "batch_size", default=64, min=1, max=65536, tooltip="Images in each step."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.001,
                    min=1e-7,
                    max=1.0,
                    step=1e-5,
                    round=1e-7,
                    tooltip="At the start; it falls to 0 by the end.",
                ),
                io.Combo.Input(
                    "noise_schedule",
                    options=["linear", "cosine"],
                    default="cosine",
                    tooltip="The noise it sees. cosine spends more of it where something can be "
                    "seen, and learns faster. It steers models of any other schedule, too.",
                ),
                io.Combo.Input(
                    "pool",
                    options=["attention", "adaptive", "spatial_v2"],
                    tooltip="attention: as in the paper, for this size alone. adaptive, "
                    "spatial_v2: for other sizes, too.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Equal seeds give equal classifiers.",
                ),
                io.Int.Input(
                    "shift",
                    default=0,
                    min=0,
                    max=512,
                    tooltip="Images are moved by up to so many pixels.",
                    **advanced,
                ),
                io.Boolean.Input(
                    "flip", default=False, tooltip="Half of the images are mirrored.", **advanced
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "fp32", "bf16"],
                    tooltip="auto: bf16 where the GPU has it.",
                    **advanced,
                ),
                io.Float.Input(
                    "held_out",
                    default=0.1,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    tooltip="Share of the images that is kept to measure accuracy.",
                    **advanced,
                ),
                io.Int.Input(
                    "accumulate",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Parts of each batch, one after the other: saves memory.",
                    **advanced,
                ),
                io.Float.Input(
                    "ema",
                    default=0.995,
                    min=0.0,
                    max=0.99999,
                    step=0.001,
                    round=1e-5,
                    tooltip="Decay of the averaged weights, which are what comes out.",
                    **advanced,
                ),
                io.Float.Input(
                    "weight_decay",
                    default=0.05,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Of AdamW.",
                    **advanced,
                ),
                io.Int.Input(
                    "patience",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Stop when held-out loss has not fallen for so many of the ten "
                    "measurements. 0: never.",
                    **advanced,
                ),
            ],
            outputs=[
                NoisyClassifierType.Output(
                    display_name="classifier",
                    tooltip="For Classifier Guidance and Save Noisy Classifier.",
                ),
                io.Image.Output(
                    display_name="plot", tooltip="Loss by step, accuracy by noise level."
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

        # gradients flow through what is made here: no inference tensors
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
                bf16=adapter.train_in_bf16(precision),
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
            placed = adapter.place_trained(trained.network, description)
        plot = torch.from_numpy(plot_training(trained.losses, trained.validations).copy())
        return io.NodeOutput(placed, plot.float()[None] / 255)


def _train(plan: Any) -> Any:
    from ..guidance.training.loop import TrainingContext
    from ..guidance.training.new_classifier import new_classifier

    resume = adapter.training_resume(plan.settings())
    device = adapter.prepare_training()
    run = TrainingContext(
        title="Train Noisy Classifier",
        device=str(device),
        resume=resume,
        on_step=adapter.training_progress(plan.recipe.steps),
    )
    result = new_classifier(plan, run)
    resume.delete()
    return result


def training_space(images, latents, model) -> tuple[torch.Tensor, str]:
    """x0 (N, C, H, W) as the sampler carries it, and what that space is called.

    Raises ValueError when images or latents do not say which, or not for which model.
    """
    if (images is None) == (latents is None):
        found = "neither" if images is None else "both"
        raise ValueError(
            f"images and latents: {found} of them connected; connect images for a model of pixel "
            "space, or latents and the model for any other."
        )
    if images is not None:
        if model is not None and adapter.space_of(model) != adapter.PIXELS:
            raise ValueError(
                f"model works on {adapter.space_of(model)} latents, but images are connected; put "
                "VAE Encode between, and connect its latents instead."
            )
        return images[..., :3].movedim(-1, 1).clone() * 2 - 1, adapter.PIXELS
    if model is None:
        raise ValueError(
            "latents are connected, but no model; connect the one that is to be steered, whose "
            "space the classifier is trained in."
        )
    samples = latents["samples"]
    if samples.ndim != 4:
        raise ValueError(
            f"latents are {tuple(samples.shape)}; a classifier is trained on images (N, C, H, W)."
        )
    channels = adapter.latent_channels(model)
    if samples.shape[1] != channels:
        raise ValueError(
            f"latents have {samples.shape[1]} channels, but the model's have {channels}; encode "
            "with the VAE that belongs to the model."
        )
    return adapter.to_model_space(model, samples), adapter.space_of(model)


def labelled(x0: torch.Tensor, labels: str, what: str, space: str) -> LabelledImages:
    """The images with their classes; raises ValueError when they are not as many."""
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
    """Writes a noisy classifier where Load Noisy Classifier finds it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveNoisyClassifier",
            display_name="Save Noisy Classifier",
            category=TRAINING,
            description="Writes a .safetensors file into ComfyUI's output folder, with its labels, "
            "space and noise schedule; under classifiers/, Load Noisy Classifier offers it.",
            search_aliases=["save classifier", "export classifier"],
            is_output_node=True,
            inputs=[
                NoisyClassifierType.Input("classifier", tooltip="What is saved."),
                io.String.Input(
                    "filename_prefix",
                    default="classifiers/noisy_classifier",
                    tooltip="In the output folder; a number is added.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, classifier, filename_prefix) -> io.NodeOutput:
        path = adapter.new_output_path(filename_prefix)
        description = classifier.description
        if not isinstance(description, Description):
            raise ValueError(
                f"{classifier.file_name} has no description to save; use a noisy classifier that "
                "was loaded or trained by this pack."
            )
        save_checkpoint(path, classifier.classifier.network.state_dict(), description)
        return io.NodeOutput(ui=ui.PreviewText(f"saved: {Path(path).name}"))
