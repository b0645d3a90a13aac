"""ComfyUI's model, input and output folders, and checks of file names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import folder_paths

from ...guidance.checkpoints.folder import reads_text
from ...guidance.core.bounded_read import MODEL_SUFFIXES, CheckpointError, is_within

PACK_MODELS = Path(__file__).resolve().parents[2] / "models"
# what Load Labelled Image Folder offers besides the input folder: an .npz file
INCLUDED = {"digits (included)": PACK_MODELS / "training" / "drawn_digits.npz"}
CLASSIFIERS = "classifiers"
DIFFUSION_MODELS = "diffusion_models"
MOST_NAME, MOST_PATH = 255, 4000  # bytes and characters that file systems take
CONFIG = "config.json"  # in a Hugging Face folder


def register_model_folders() -> None:
    """Registers models/classifiers as a model folder, and adds the demo models."""
    user_folder = Path(folder_paths.models_dir) / CLASSIFIERS
    folder_paths.add_model_folder_path(CLASSIFIERS, str(user_folder))
    folder_paths.add_model_folder_path(CLASSIFIERS, str(PACK_MODELS / CLASSIFIERS))
    saved = Path(folder_paths.get_output_directory()) / CLASSIFIERS
    folder_paths.add_model_folder_path(CLASSIFIERS, str(saved))
    folder_paths.add_model_folder_path(DIFFUSION_MODELS, str(PACK_MODELS / DIFFUSION_MODELS))
    # an empty set would allow every file; ComfyUI's default set includes .pkl
    paths, _ = folder_paths.folder_names_and_paths[CLASSIFIERS]
    folder_paths.folder_names_and_paths[CLASSIFIERS] = (paths, set(MODEL_SUFFIXES))


def model_names(folder: str) -> list[str]:
    """The file names that a loader offers."""
    return folder_paths.get_filename_list(folder)


def short_name(name: str) -> str:
    """A model file's name without its folder and its suffix; a model folder's own name."""
    path = Path(name)
    return path.stem if path.suffix in MODEL_SUFFIXES else path.name


def model_path(folder: str, name: str) -> Path:
    """The path of the chosen file, checked because a linked input or a script can send any name.

    Raises CheckpointError if the file does not exist, or if it is a link to a place outside of
    ComfyUI's folders of that kind.
    """
    roots = folder_paths.get_folder_paths(folder)
    path = folder_paths.get_full_path(folder, name) if _is_plain(name) else None
    if path is None:
        raise CheckpointError(
            f"There is no model file {str(name)[:200]!r}; put it into {' or '.join(roots)}."
        )
    _check_within(Path(path), roots)
    return Path(path)


def _is_plain(name: Any) -> bool:
    """Whether it is a plain relative path below a folder."""
    if not isinstance(name, str) or "\0" in name or PureWindowsPath(name).drive:
        return False
    parts = PureWindowsPath(name).parts
    named = ".." not in parts and all(len(part.encode()) <= MOST_NAME for part in parts)
    return named and not Path(name).is_absolute() and len(name) <= MOST_PATH


def _check_within(path: Path, roots: list[str]) -> None:
    """Raises CheckpointError for a link to a place outside of the folders."""
    if not is_within(path, roots):
        raise CheckpointError(
            f"The model file {path} is a link to {os.path.realpath(path)}, outside of "
            f"{' and '.join(roots)}; "
            "move the file itself there, or add its folder to extra_model_paths.yaml."
        )


def fingerprint(path_of: Callable[..., Path], *name: str) -> str:
    """Changes with the file path_of(*name), or any file in that folder, so the node runs again."""
    try:
        path = path_of(*name)
    except ValueError:
        return "missing"
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return hashlib.sha256(os.fsencode("".join(map(_version, files)))).hexdigest()


def _version(path: Path) -> str:
    """Changes with the file, also if its size and modification time stay the same."""
    stat = path.stat() if path.exists() else path.lstat()  # a broken link
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def image_classifier_names() -> list[str]:
    """Folders of classifiers in models/classifiers, and the files outside of folders of models."""
    folders = _config_folders()
    files = [
        name
        for name in model_names(CLASSIFIERS)
        if not any(parent.as_posix() in folders for parent in Path(name).parents)
    ]
    return sorted([name for name, path in folders.items() if not reads_text(path)] + files)


def zero_shot_names() -> list[str]:
    """Folders of CLIP and SigLIP models in models/classifiers."""
    return sorted(name for name, path in _config_folders().items() if reads_text(path))


def _config_folders() -> dict[str, Path]:
    """By their paths relative to models/classifiers; at most three levels deep."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(CLASSIFIERS)):
        for depth in ("*", "*/*", "*/*/*"):
            for config in root.glob(f"{depth}/{CONFIG}"):
                found.setdefault(config.parent.relative_to(root).as_posix(), config.parent)
    return found


def image_classifier_path(name: str) -> Path:
    """The path of the chosen file or folder; CheckpointError if it is missing or elsewhere."""
    path = _config_folders().get(name) if _is_plain(name) else None
    if path is None:
        return model_path(CLASSIFIERS, name)
    for found in (path, *path.iterdir()):
        _check_within(found, folder_paths.get_folder_paths(CLASSIFIERS))
    return path


def class_folder_names() -> list[str]:
    """Folders in the input folder that have subfolders, and the pictures that are included."""
    root = Path(folder_paths.get_input_directory())
    found = {
        path.parent for depth in ("*/*", "*/*/*") for path in root.glob(depth) if path.is_dir()
    }
    return [*sorted(path.relative_to(root).as_posix() for path in found), *INCLUDED]


def class_folder_path(name: str) -> Path:
    """The folder's path, or that of the included file.

    Raises ValueError if it is missing or not in the input folder.
    """
    if name in INCLUDED:
        return INCLUDED[name]
    root = Path(folder_paths.get_input_directory()).resolve()
    path = root / name if _is_plain(name) else root
    if path == root or not is_within(path, [root]) or not path.is_dir():
        raise ValueError(
            f"folder is {str(name)[:200]!r}, which is no folder in {root}; put a folder with one "
            "subfolder per class there."
        )
    for found in path.rglob("*"):
        if found.is_symlink() and not is_within(found, [root]):
            raise ValueError(
                f"The picture {found} is a link to {os.path.realpath(found)}, outside of {root}; "
                "put the pictures themselves there."
            )
    return path.resolve()


def new_output_path(prefix: str) -> Path:
    """The next free name in the output folder."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    return Path(folder) / f"{name}_{counter:05}_.safetensors"
