"""Labelled images for training: an .npz file, or a folder with one folder per class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import load_samples, open_picture

# what torchvision's ImageFolder reads
IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".ppm",
    ".pgm",
    ".tif",
    ".tiff",
)


@dataclass(frozen=True)
class LabelledImages:
    """images uint8 (N, C, H, W), labels int64 (N,), names of the classes."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def split(self, held_out: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """A random share `held_out` of the images apart from the rest: (rest, held out)."""
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out is {held_out}; it must be at least 0 and below 1.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        count = round(held_out * len(self))
        return self._pick(order[count:]), self._pick(order[:count])

    def _pick(self, index: Tensor) -> LabelledImages:
        return LabelledImages(self.images[index], self.labels[index], self.names)


def load_images(path: str | Path, image_size: int | None = None) -> LabelledImages:
    """Reads `path`: .npz with arr_0 uint8 (N, H, W, C) and arr_1 labels, or a folder of folders.

    Folder images are cropped to the centre square and resized to `image_size`. Raises ValueError
    when there is nothing to read or the arrays do not fit each other.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(path, image_size)
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path, image_size)
    raise ValueError(f"{path} is neither a folder of class folders nor an .npz file.")


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 to float -1..1, the range of pixel diffusion models."""
    return images.float() / 127.5 - 1


def batches(data: LabelledImages, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches, reshuffled at every pass; the last, smaller one of a pass is dropped.

    Raises ValueError at once when there are fewer images than one batch.
    """
    if len(data) < size:
        raise ValueError(f"batch_size is {size}, but there are only {len(data)} training images.")
    return _shuffled(data, size, seed)


def _shuffled(data: LabelledImages, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data), generator=generator)
        for start in range(0, len(data) - size + 1, size):
            index = order[start : start + size]
            yield to_unit_range(data.images[index]), data.labels[index]


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image moved by up to `most` pixels both ways; what enters repeats the edge."""
    if most == 0:
        return images
    side_h, side_w = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (most,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * most + 1, (len(images), 2)).tolist()
    moved = [
        p[:, y : y + side_h, x : x + side_w] for p, (y, x) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(moved)


def _from_npz(path: Path, image_size: int | None) -> LabelledImages:
    images, labels, names = load_samples(path)
    if image_size and images.shape[1:3] != (image_size, image_size):
        raise ValueError(
            f"{path} has {images.shape[2]}x{images.shape[1]} images, not {image_size}."
        )
    classes = names or [str(index) for index in range(int(labels.max()) + 1)]
    if labels.max() >= len(classes):
        raise ValueError(f"{path} has label {labels.max()}, but names only {len(classes)} classes.")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(pixels, torch.from_numpy(labels), tuple(classes))


def _from_folder(folder: Path, image_size: int | None) -> LabelledImages:
    if not image_size:
        raise ValueError(
            f"{folder} is a folder of pictures: say with --image-size how large to make them."
        )
    names = sorted(child.name for child in folder.iterdir() if child.is_dir())
    found = [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    ]
    if not found:
        raise ValueError(
            f"{folder} has no class folders with pictures ({', '.join(IMAGE_SUFFIXES)})."
        )
    empty = sorted(set(range(len(names))) - {label for _, label in found})
    if empty:
        raise ValueError(
            f"{folder / names[empty[0]]} holds no pictures; remove the folder or fill it, since "
            "every folder is a class."
        )
    pixels = np.stack([_read(file, image_size) for file, _ in found])
    labels = torch.tensor([label for _, label in found])
    return LabelledImages(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, tuple(names)
    )


def _read(file: Path, size: int) -> np.ndarray:
    rgb = open_picture(file)
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
