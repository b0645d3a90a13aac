"""Labelled images from a folder, for training."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from .host.paths import class_folder_names, class_folder_path, fingerprint
from .host.training import check_room
from .schema import TRAINING, Schema, number


class LabelledImageFolder(io.ComfyNode):
    """The images in a folder of class folders, with their labels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="LabelledImageFolder",
            category=TRAINING,
            search_aliases=["ImageFolder", "dataset", "load images from folder", "class folders"],
            inputs=[
                io.Combo.Input("folder", options=class_folder_names()),
                number("size", 64, 8, 4096),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.String.Output(display_name="labels"),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder=None):
        """Says where pictures come from; core would only say that the folder is not listed."""
        if folder is None or folder in class_folder_names():  # None: linked
            return True
        return (
            f"folder is {str(folder)[:200]!r}, which is no folder with a subfolder of pictures per "
            "class in ComfyUI's input folder; put your own there and press R, or choose the digits "
            "that are included."
        )

    @classmethod
    def fingerprint_inputs(cls, folder, **_):
        return fingerprint(class_folder_path, folder)

    @classmethod
    def execute(cls, folder, size) -> io.NodeOutput:
        from ..guidance.training.data import load_images

        def check_count(count: int) -> None:
            # bytes: uint8 as a list and as one tensor, then fp32
            most = count * 3 * size * size * (2 + 4)
            check_room(most, f"{count} images of {size}x{size}")

        data = load_images(class_folder_path(folder), size, check_count)
        if data.skipped:
            logging.warning(
                "Classifier Guidance: %s: left out %d unreadable pictures: %s",
                folder,
                len(data.skipped),
                ", ".join(data.skipped[:5]),
            )
        pixels = data.images.expand(-1, 3, -1, -1)  # gray in all colours
        images = pixels.permute(0, 2, 3, 1).float() / 255
        labels = "\n".join(data.names[index] for index in data.labels.tolist())
        return io.NodeOutput(images, labels)
