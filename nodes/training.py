"""Nodes that train a noisy classifier on labelled images or latents, and save it."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io, ui

from ..guidance.adm.presets import NETWORK_SIZES, classifier_layout
from ..guidance.checkpoints.checkpoint import Description, save_checkpoint
from .host.classifiers import place_noisy
from .host.paths import new_output_path
from .host.training import train_in_bf16
from .runtime.training import train, training_data
from .schema import ADVANCED, TRAINING, NoisyClassifierType, Schema, number


class TrainNoisyClassifier(io.ComfyNode):
    """Trains a noisy classifier on labelled images or latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="TrainNoisyClassifier",
            category=TRAINING,
            search_aliases=["train classifier", "noisy classifier", "classifier training"],
            inputs=[
                io.Image.Input("images", optional=True),
                io.Latent.Input("latents", optional=True),
                io.String.Input("labels", force_input=True),
                io.Model.Input("model", optional=True),
                io.Combo.Input("preset", options=list(NETWORK_SIZES)),
                number("steps", 1000, 1, 10_000_000),
                number("batch_size", 64, 1, 65536),
                number("learning_rate", 0.001, 1e-7, 1.0, step=1e-5, round=1e-7),
                io.Combo.Input("noise_schedule", options=["linear", "cosine"], default="cosine"),
                io.Combo.Input("pool", options=["attention", "adaptive", "spatial_v2"]),
                number("seed", 0, 0, 2**63 - 1, control_after_generate=False),
                number("shift", 0, 0, 512, **ADVANCED),
                io.Boolean.Input("flip", default=False, **ADVANCED),
                io.Combo.Input("precision", options=["auto", "fp32", "bf16"], **ADVANCED),
                number("held_out", 0.1, 0.0, 0.9, step=0.05, **ADVANCED),
                number("accumulate", 1, 1, 1024, **ADVANCED),
                number("ema", 0.995, 0.0, 0.99999, step=0.001, round=1e-5, **ADVANCED),
                number("weight_decay", 0.05, 0.0, 10.0, step=0.01, **ADVANCED),
                number("patience", 0, 0, 1000, **ADVANCED),
            ],
            outputs=[
                NoisyClassifierType.Output(display_name="classifier"),
                io.Image.Output(display_name="plot"),
            ],
        )

    @classmethod
    def execute(
        cls,
        labels,
        preset,
        noise_schedule,
        pool,
        images=None,
        latents=None,
        model=None,
        shift=0,
        flip=False,
        precision="auto",
        held_out=0.1,
        ema=0.995,
        patience=0,
        **recipe,
    ) -> io.NodeOutput:
        from ..guidance.training.data import Augment
        from ..guidance.training.loop import OptimizerConfig
        from ..guidance.training.new_classifier import TrainingConfig
        from ..guidance.training.plot import plot_training  # matplotlib, on first use

        # gradients flow through these tensors, so they must not be inference tensors
        with torch.inference_mode(False), torch.enable_grad():
            data = training_data(images, latents, model, labels)
            layout = classifier_layout(
                preset,
                channels=data.images.shape[1],
                size=tuple(data.images.shape[2:]),
                classes=len(data.names),
                pool=pool,
            )
            plan = TrainingConfig(
                data=data,
                layout=layout,
                recipe=OptimizerConfig(ema=ema, bf16=train_in_bf16(precision), **recipe),
                noise_schedule=noise_schedule,
                augment=Augment(shift, flip),
                held_out=held_out,
                patience=patience,
            )
            trained, description = train(plan)
            placed = place_noisy(trained.network, description, "The trained classifier")
        plot = torch.from_numpy(plot_training(trained.losses, trained.validations).copy())
        return io.NodeOutput(placed, plot.float()[None] / 255)


class SaveNoisyClassifier(io.ComfyNode):
    """Saves a noisy classifier to a file for Load Noisy Classifier."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="SaveNoisyClassifier",
            category=TRAINING,
            search_aliases=["save classifier", "export classifier"],
            is_output_node=True,
            inputs=[
                NoisyClassifierType.Input("classifier"),
                io.String.Input("filename_prefix", default="classifiers/noisy_classifier"),
            ],
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
