"""Labelled training data: a folder with one subfolder per class, an .npz file, or latents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ..core.atomic_write import write_tensors
from ..core.bounded_read import open_safetensors, parse_json
from ..core.images import load_samples, open_picture

# as in torchvision's ImageFolder
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
HASHED = 64 << 20  # bytes of the data that a digest uses


@dataclass(frozen=True)
class LabelledImages:
    """images (N, C, H, W), labels int64 (N,), names of the classes.

    images are uint8 pixels, or floats that are already x0: latents in their model's space.
    skipped: files that could not be read. space: "rgb", or the name of the latent format.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    space: str = "rgb"

    def __len__(self) -> int:
        return len(self.images)

    def split(self, held_out: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """Splits off a random fraction `held_out` of the images: (rest, held out)."""
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out is {held_out}; it must be at least 0 and below 1.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        count = round(held_out * len(self))
        return self.pick(order[count:]), self.pick(order[:count])

    def x0(self, index: Tensor | slice) -> Tensor:
        """The images at these indices as x0: pixels in -1..1, or latents."""
        chosen = self.images[index]
        return chosen.float() / 127.5 - 1 if chosen.dtype == torch.uint8 else chosen.float()

    def digest(self) -> str:
        """A hash that identifies the data; for large data, it uses every Nth image only."""
        found = hashlib.blake2b(digest_size=16)
        found.update(repr((tuple(self.images.shape), self.names)).encode())
        found.update(self.labels.numpy().tobytes())
        size = self.images.numel() * self.images.element_size()
        some = self.images[:: max(1, -(-size // HASHED))].contiguous()
        found.update(some.numpy().tobytes())
        return found.hexdigest()

    def pick(self, index: Tensor | slice) -> LabelledImages:
        """The part of the data at these indices."""
        return replace(self, images=self.images[index], labels=self.labels[index], skipped=())


def load_images(
    path: str | Path,
    image_size: int | None = None,
    check_count: Callable[[int], None] | None = None,
) -> LabelledImages:
    """Reads `path`: a folder of folders, .npz with arr_0 uint8 (N, H, W, C) and arr_1 labels, or
    latents that `save_latents` wrote.

    Folder images are cropped to the center square and resized to `image_size`; unreadable files are
    skipped and listed in `skipped`. check_count gets the number of images of a folder before they
    are read, and can raise if there are too many. Raises ValueError if there is nothing to read, a
    class is empty, or the arrays do not fit each other.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(path, image_size, check_count)
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path, image_size)
    if path.suffix == ".safetensors" and path.is_file():
        return load_latents(path)
    raise ValueError(
        f"{path} is neither a folder of class folders, nor an .npz file, nor a .safetensors file "
        "of latents."
    )


def save_latents(path: str | Path, data: LabelledImages) -> None:
    """Writes latents (N, C, H, W), in the sampler's scaling, with their labels; atomic."""
    about = {"names": json.dumps(data.names), "space": data.space}
    tensors = {"latents": data.images.float().contiguous(), "labels": data.labels.long()}
    write_tensors(path, tensors, about)


def load_latents(path: str | Path) -> LabelledImages:
    """Reads a file of `save_latents`.

    Raises ValueError with the file's name if it is damaged, or tensors are missing or do not fit.
    """
    try:
        with open_safetensors(path) as file:
            about = file.metadata() or {}
            latents, labels = file.get_tensor("latents"), file.get_tensor("labels")
        names = tuple(str(name) for name in parse_json(about["names"]))
        space = about["space"]
    except (SafetensorError, LookupError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is not a file of labelled latents ({type(error).__name__}); expected the "
            "tensors latents (N, C, H, W) and labels (N,), and names and space in its metadata."
        ) from error
    fit = latents.ndim == 4 and latents.is_floating_point() and labels.shape == latents.shape[:1]
    if not fit or labels.dtype != torch.int64 or not len(labels):
        raise ValueError(
            f"{path} has latents {latents.dtype} {tuple(latents.shape)} and labels {labels.dtype} "
            f"{tuple(labels.shape)}; expected floats (N, C, H, W) and N class indices."
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise ValueError(
            f"{path} has labels from {int(labels.min())} to {int(labels.max())}, but names "
            f"{len(names)} classes."
        )
    if not bool(latents.isfinite().all()):
        raise ValueError(f"{path} has latents that are not finite; encode the images again.")
    return LabelledImages(latents, labels, names, space=space)


@dataclass(frozen=True)
class Augment:
    """Augmentations that keep the class: shifts by up to `shift` pixels, mirror images."""

    shift: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augments images (B, C, H, W), each one differently; both are on the same device."""
        if self.flip:
            chance = torch.rand(len(images), generator=generator, device=images.device)
            mirrored = chance < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return shifted(images, self.shift, generator)


def shifted(images: Tensor, most: int, generator: torch.Generator | None = None) -> Tensor:
    """Shifts each image by up to `most` pixels in both directions; new pixels repeat the edge.

    The generator is on the device of the images, and so are the offsets: nobody waits for them.
    """
    if most == 0:
        return images
    count, channels, height, width = images.shape
    offsets = torch.randint(-most, most + 1, (count, 2), generator=generator, device=images.device)
    rows = _repeating_edges(offsets[:, :1], height)
    columns = _repeating_edges(offsets[:, 1:], width)
    place = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1)
    moved = images.flatten(2).gather(2, place.expand(-1, channels, -1))
    return moved.view(images.shape)


def _repeating_edges(offset: Tensor, side: int) -> Tensor:
    """offset (B, 1) -> which of `side` pixels comes where, (B, side)."""
    return (offset + torch.arange(side, device=offset.device)).clamp(0, side - 1)


def _from_npz(path: Path, image_size: int | None) -> LabelledImages:
    images, labels, names = load_samples(path)
    if image_size and images.shape[1:3] != (image_size, image_size):
        raise ValueError(
            f"{path} has {images.shape[2]}x{images.shape[1]} images, not {image_size}; give "
            "their size."
        )
    classes = names or [str(index) for index in range(int(labels.max()) + 1)]
    if labels.max() >= len(classes):
        raise ValueError(f"{path} has label {labels.max()}, but names only {len(classes)} classes.")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(pixels, torch.from_numpy(labels), tuple(classes))


def _from_folder(
    folder: Path, image_size: int | None, check_count: Callable[[int], None] | None
) -> LabelledImages:
    if not image_size:
        raise ValueError(f"{folder} is a folder of images; give their size with --image-size.")
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
    if check_count is not None:
        check_count(len(found))
    read = [(_read(file, image_size), label, file) for file, label in found]
    good = [(picture, label) for picture, label, _ in read if picture is not None]
    skipped = tuple(str(file.relative_to(folder)) for picture, _, file in read if picture is None)
    _check_classes(folder, names, {label for _, label in good}, skipped)
    pixels = np.stack([picture for picture, _ in good])
    labels = torch.tensor([label for _, label in good])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(images, labels, tuple(names), skipped)


def _check_classes(
    folder: Path, names: list[str], seen: set[int], skipped: tuple[str, ...]
) -> None:
    """Raises ValueError for a class folder without an image."""
    empty = [name for label, name in enumerate(names) if label not in seen]
    if not empty:
        return
    damaged = [name for name in skipped if Path(name).parts[0] == empty[0]]
    if damaged:
        raise ValueError(
            f"{folder / damaged[0]} is not a whole picture, nor is any other of the "
            f"{len(damaged)} in {folder / empty[0]}; replace them or remove the folder."
        )
    raise ValueError(
        f"{folder / empty[0]} holds no pictures; remove the folder or fill it, since every folder "
        "is a class."
    )


def _read(file: Path, size: int) -> np.ndarray | None:
    """uint8 (size, size, 3), or None for a damaged file."""
    try:
        rgb = open_picture(file)
    except (ValueError, OSError):
        return None
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
