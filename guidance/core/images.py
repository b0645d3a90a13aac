"""Reading and writing images: grids, and the .npz format of guided-diffusion's evaluator."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .atomic_write import atomic_path
from .bounded_read import MOST_CLASSES, open_zip

SMALL_IMAGE = 64
ARRAYS = ("arr_0", "arr_1", "names")  # in an .npz file
NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Limits of an unpacked .npz file: images rarely compress to a hundredth of their size.
MOST_UNPACKED = 100
UNPACKED_ANYWAY = 64 << 20  # bytes
# Detected from the content, not the name. Pillow opens some other formats with external programs.
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
MOST_PIXELS = 128 << 20


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (B, C, H, W) in [-1, 1] as uint8 (B, H, W, C), rounded down as in guided-diffusion."""
    pixels = ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def thumbnails(images: Tensor, longest: int) -> Tensor:
    """Small uint8 (B, H, W, C) of images (B, C, H, W) in [-1, 1], on their device.

    The longer side becomes at most `longest`; smaller images keep their size. NaN becomes gray.
    """
    height, width = images.shape[-2:]
    small = images.detach().float().nan_to_num(0.0).clamp(-1, 1)
    if max(height, width) > longest:
        share = longest / max(height, width)
        size = (max(1, round(height * share)), max(1, round(width * share)))
        small = F.interpolate(small, size, mode="bilinear", antialias=True).clamp(-1, 1)
    return ((small + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(images: np.ndarray) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], fp32, from uint8 (B, H, W, C)."""
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """A grid uint8 (H, W, C) of all `images` (B, h, w, C), row by row."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(count**0.5)
    rows = math.ceil(count / columns)
    sheet = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 64, np.uint8
    )
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def save_samples(
    path: str | Path, images: np.ndarray, labels: np.ndarray, columns: int | None
) -> None:
    """Writes .npz (arr_0 images, arr_1 labels) or a .png grid, by the suffix; atomic."""
    path = Path(path)
    with atomic_path(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez_compressed(file, arr_0=images, arr_1=labels)
        else:
            save_grid(temporary, images, columns)


def save_grid(path: Path, images: np.ndarray, columns: int | None = None) -> None:
    """Writes a .png; small images are shown at twice their size."""
    sheet = grid(images, columns)
    picture = Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet)
    if images.shape[1] <= SMALL_IMAGE:
        picture = picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)
    picture.save(path, format="PNG")


def load_samples(path: str | Path) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """arr_0 uint8 (N, H, W, C), arr_1 int64 (N,) and the class names, or None, of an .npz file.

    Raises ValueError with the file's name if it is damaged, or if arrays are missing or do not fit.
    """
    try:
        arrays = _arrays(Path(path))
    except OSError:
        raise
    except Exception as error:  # damaged bytes can make the reader fail in any way
        raise ValueError(f"{path} is not a whole .npz file ({type(error).__name__}).") from error
    if "arr_0" not in arrays or "arr_1" not in arrays:
        raise ValueError(
            f"{path} holds {sorted(arrays)}; expected arr_0 (images) and arr_1 (labels)."
        )
    images, labels = arrays["arr_0"], arrays["arr_1"]
    fit = images.ndim == 4 and images.dtype == np.uint8 and labels.shape == images.shape[:1]
    if not fit or images.size == 0 or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"{path} has images {images.dtype} {images.shape} and labels {labels.dtype} "
            f"{labels.shape}; expected uint8 (N, H, W, C) and N class indices from 0."
        )
    names = _names(path, arrays.get("names"))
    if labels.max() >= MOST_CLASSES:
        raise ValueError(
            f"{path} has label {labels.max()}; number the classes from 0, below {MOST_CLASSES}."
        )
    return images, labels.astype(np.int64), names


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the archive that are used here; never unpickled."""
    with path.open("rb") as file, open_zip(file) as archive:
        size = os.fstat(file.fileno()).st_size
        entries = {entry.filename: entry for entry in archive.infolist()}
        found = {name: entries[f"{name}.npy"] for name in ARRAYS if f"{name}.npy" in entries}
        total = sum(entry.file_size for entry in found.values())
        if total > MOST_UNPACKED * size + UNPACKED_ANYWAY:
            raise ValueError(f"it would unpack to {total} bytes")
        return {name: _array(archive, entry) for name, entry in found.items()}


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """The array of an entry; ValueError if its header claims more than the entry holds."""
    with archive.open(entry) as file:
        read_header = NPY_HEADERS[np.lib.format.read_magic(file)]
        shape, _, dtype = read_header(file)
    if dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize > entry.file_size:
        raise ValueError(f"{entry.filename} claims more than it holds")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _names(path: str | Path, names: np.ndarray | None) -> list[str] | None:
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind not in "USiu" or len(names) > MOST_CLASSES:
        raise ValueError(
            f"{path} has names {names.dtype} {names.shape}; expected the name of each class."
        )
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "replace")
    return [str(name) for name in names]


def open_picture(path: str | Path) -> Image.Image:
    """The image as RGB. Raises ValueError with the file's name if it is damaged or too large."""
    try:
        with Image.open(path, formats=PICTURES) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels")
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes can make the reader fail in any way
        raise ValueError(f"{path} is not a whole picture ({type(error).__name__}).") from error
