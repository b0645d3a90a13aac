"""Model files: detection, description, strict loading and saving.

Files: `.safetensors`, and `.pt` / `.pth` without running code from them. This pack's files have
everything in their metadata; OpenAI's files are recognised by their tensors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..adm import ADMLayout, ClassifierLayout, UNetLayout
from ..adm.build import build_network, shapes_of
from ..adm.detect import detect_layout, nearest_released, released_schedule
from ..core.atomic_write import write_tensors
from ..core.bounded_read import (
    MODEL_SUFFIXES,
    CheckpointError,
    check_file,
    one_line,
    open_safetensors,
    parse_json,
    quoted,
)
from ..core.noise import SCHEDULE_NAMES
from .torch_format import read_torch_file

METADATA_KEY = "classifier_guidance"
FORMAT = 1
KINDS: dict[str, Any] = {"classifier": ClassifierLayout, "diffusion": UNetLayout}
ATTENTION_ORDERS = ("auto", "old", "new")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype of "fp32", "bf16" or "fp16"; ValueError for another name."""
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}.")
    return DTYPES[name]


@dataclass(frozen=True, kw_only=True)
class Description:
    """The description of a file: everything except the weights."""

    kind: str
    layout: ADMLayout
    noise_schedule: str
    labels: tuple[str, ...] | None = None
    space: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    source: str = "tensors"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model file: its description and its tensors."""

    path: Path
    description: Description
    tensors: dict[str, Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights; fp32 for a file without weights."""
        sizes: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.dtype] += tensor.numel()
        return max(sizes, key=sizes.__getitem__, default=torch.float32)

    def network(self, dtype: torch.dtype | None = None) -> Any:
        """The network with the file's weights, frozen, in eval mode; keys must match exactly.

        The weights are the loaded tensors, not copies, unless `dtype` differs from the file's.
        """
        layout = self.description.layout
        return self.fill(self.built(lambda: build_network(layout, device="meta")), dtype)

    def built(self, build: Callable[[], Any]) -> Any:
        """The result of `build` on the meta device; `fill` assigns the weights.

        Raises CheckpointError if the description is not of a valid network, or of one that is far
        larger than the file.
        """
        layout = self.description.layout
        try:
            if layout.num_res_blocks * len(layout.channel_mult) > len(self.tensors):
                raise ValueError("more blocks than the file has tensors")
            return build()
        except (ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.path.name} describes a network that cannot be built ({one_line(error)}); "
                "save the model again with this pack."
            ) from error

    def fill(self, network: Any, dtype: torch.dtype | None = None) -> Any:
        """Assigns the file's weights to `network`, built on the meta device; frozen, in eval mode.

        Raises CheckpointError with the name of the first tensor that is missing, extra, of another
        shape, not a float or not finite.
        """
        wrong = misfits(shapes_of(network), self.tensors)
        if wrong:
            raise CheckpointError(
                f"{self.path.name} does not fit the {self.description.kind} network it was taken "
                f"for: {wrong}. Use a whole file of this pack, or guided-diffusion's own."
            )
        check_finite(self.path.name, self.tensors)
        tensors = {k: v.to(dtype) if dtype else v for k, v in self.tensors.items()}
        network.load_state_dict(tensors, strict=True, assign=True)
        return network.eval().requires_grad_(False)


def misfits(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> str:
    """How the tensors `found` differ from the shapes `wanted`; empty if they fit."""
    missing, extra = (sorted(a.keys() - b.keys()) for a, b in ((wanted, found), (found, wanted)))
    shared = sorted(wanted.keys() & found.keys())
    shapes = [key for key in shared if tuple(found[key].shape) != wanted[key]]
    floats = [key for key in shared if not found[key].is_floating_point()]
    said = [_counted(missing, "missing"), _counted(extra, "too many")]
    if shapes:
        key = shapes[0]
        said.append(
            f"{_counted(shapes, 'of another shape')}: {tuple(found[key].shape)} and not "
            f"{wanted[key]}"
        )
    if floats:
        said.append(f"{_counted(floats, 'not floating-point')}: {found[floats[0]].dtype}")
    return "; ".join(filter(None, said))


def _counted(keys: list[str], what: str) -> str:
    """ "1 tensor is missing ('a')", "3 tensors are missing (first 'a')", or nothing."""
    if not keys:
        return ""
    name = quoted(keys[0])
    if len(keys) == 1:
        return f"1 tensor is {what} ({name})"
    return f"{len(keys)} tensors are {what} (first {name})"


def check_finite(file: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for a weight that is NaN or infinite in the tensors of `file`."""
    for key, value in tensors.items():
        if not value.is_floating_point() or not value.numel():
            continue
        # in one pass without a copy: min and max propagate NaN
        if not all(bool(end.isfinite()) for end in value.aminmax()):
            raise CheckpointError(
                f"{file} has a weight that is not finite (NaN or infinity) in {quoted(key)}; "
                "download it again, or get it from its original source."
            )


def read_checkpoint(
    path: str | Path,
    kind: str | None = None,
    noise_schedule: str = "auto",
    *,
    num_heads: int = 0,
    num_head_channels: int = 0,
    attention_order: str = "auto",
    mmap: bool = True,
) -> Checkpoint:
    """Reads a model file and detects what it is.

    `kind` "classifier" or "diffusion" refuses the other kind. Properties that cannot be read from
    tensors can be overridden: `noise_schedule` "linear" or "cosine"; heads per attention block, or
    channels per head (0: from the file or the rule); `attention_order` "old" or "new". `mmap` maps
    the file into memory if its format allows it. Raises CheckpointError with one sentence.
    """
    path = Path(path)
    # ordinary tensors, also when called in inference mode: gradients flow through them
    with torch.inference_mode(False):
        tensors, metadata = read_tensors(path, mmap)
    description = _describe(path, tensors, metadata)
    if kind is not None and description.kind != kind:
        node = {"classifier": "a noisy classifier", "diffusion": "an ADM diffusion model"}
        raise CheckpointError(
            f"{path.name} is {node[description.kind]}, not {node[kind]}; "
            f"choose {node[kind]} here, and load this file with the other loader."
        )
    if noise_schedule != "auto":
        if noise_schedule not in SCHEDULE_NAMES:
            raise CheckpointError(
                f"noise_schedule is {noise_schedule!r}; expected auto, {', '.join(SCHEDULE_NAMES)}."
            )
        description = replace(description, noise_schedule=noise_schedule)
    layout = _attention(description.layout, num_heads, num_head_channels, attention_order)
    return Checkpoint(path, replace(description, layout=layout), tensors)


def _attention(
    layout: ADMLayout, num_heads: int, num_head_channels: int, attention_order: str
) -> ADMLayout:
    """The layout with the chosen heads and attention order."""
    if num_heads and num_head_channels:
        raise CheckpointError(
            f"num_heads is {num_heads} and num_head_channels {num_head_channels}; "
            "give one of them and leave the other at 0."
        )
    if attention_order not in ATTENTION_ORDERS:
        raise CheckpointError(
            f"attention_order is {attention_order!r}; expected {', '.join(ATTENTION_ORDERS)}."
        )
    changes: dict[str, Any] = {}
    if num_heads:
        changes = {"num_heads": num_heads, "num_head_channels": None}
    elif num_head_channels:
        changes = {"num_head_channels": num_head_channels}
    if attention_order != "auto":
        changes["new_attention_order"] = attention_order == "new"
    try:
        return replace(layout, **changes)
    except ValueError as error:
        raise CheckpointError(f"num_heads or num_head_channels does not fit: {error}") from error


def save_checkpoint(
    path: str | Path, tensors: dict[str, Tensor], description: Description, dtype: str | None = None
) -> None:
    """Writes a .safetensors file with the description in its metadata; atomic.

    dtype "fp32", "bf16" or "fp16" converts the tensors; None keeps their dtype.
    """
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(f"The output is {path}; its name must end in .safetensors.")
    target = dtype_named(dtype) if dtype else None
    saved = _unshared({k: v.detach().to("cpu", target).contiguous() for k, v in tensors.items()})
    about = asdict(description)
    del about["source"]
    write_tensors(path, saved, {METADATA_KEY: json.dumps({"format": FORMAT, **about})})


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with copies of those that share memory, which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        storage = value.untyped_storage().data_ptr()
        result[key] = value.clone() if storage in seen else value
        seen.add(storage)
    return result


def read_tensors(path: Path, mmap: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a model file by name, and its metadata; raises CheckpointError."""
    check_file(path, MODEL_SUFFIXES)
    if path.suffix != ".safetensors":
        return read_torch_file(path, mmap), {}
    try:
        with open_safetensors(path) as file:
            keys = list(file.keys())
            tensors = {key: file.get_tensor(key) for key in keys}  # views of the mapped file
            if not mmap:
                tensors = {key: value.clone() for key, value in tensors.items()}
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} is not a whole safetensors file ({one_line(error)}); "
            "download or copy it again."
        ) from error


def _describe(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Description:
    if METADATA_KEY in metadata:
        return _from_metadata(path, metadata[METADATA_KEY], tensors)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    layout = detect_layout(shapes)
    if layout is None:
        if nearest := nearest_released(shapes):
            file, wanted = nearest
            raise CheckpointError(
                f"{path.name} is like guided-diffusion's {file}, but does not fit its network: "
                f"{misfits(wanted, tensors)}. Download it again."
            )
        raise CheckpointError(
            f"{path.name} is neither an ADM diffusion model nor an ADM classifier "
            "(guided-diffusion's tensor names were not found in it); choose a file that is one."
        )
    kind = "classifier" if isinstance(layout, ClassifierLayout) else "diffusion"
    space = "rgb" if layout.in_channels in (3, 6) else None
    schedule = released_schedule(layout)
    return Description(kind=kind, layout=layout, noise_schedule=schedule, space=space)


def _from_metadata(path: Path, text: str, tensors: dict[str, Tensor]) -> Description:
    try:
        values = parse_json(text)
        if values.get("format", FORMAT) > FORMAT:
            raise ValueError(f"format {values['format']}, newer than {FORMAT}: update the pack")
        known = KINDS[values["kind"]]
        layout = known(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values["layout"].items()
                if name in known.__dataclass_fields__
            }
        )
        _check_values(values, layout, tensors)
        return Description(
            kind=values["kind"],
            layout=layout,
            noise_schedule=values["noise_schedule"],
            labels=tuple(values.get("labels") or ()) or None,
            space=values.get("space"),
            training=values.get("training") or {},
            source="metadata",
        )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"The description inside {path.name} cannot be used ({one_line(error)}); "
            "save the model again with this pack."
        ) from error


def _check_values(values: dict[str, Any], layout: ADMLayout, tensors: dict[str, Tensor]) -> None:
    """Raises ValueError for a value of another kind, or that disagrees with layout or tensors."""
    # more classes than the rows of any tensor are refused before they are listed
    rows = max((len(value) for value in tensors.values() if value.ndim), default=0)
    if (layout.class_count or 0) > rows:
        raise ValueError(f"{layout.class_count} classes, but no tensor has that many rows")
    schedule = values["noise_schedule"]
    if schedule not in SCHEDULE_NAMES:
        raise ValueError(
            f"noise_schedule is {schedule!r}, expected one of {', '.join(SCHEDULE_NAMES)}"
        )
    for name, kind in (("space", str), ("training", dict)):
        value = values.get(name)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    labels = values.get("labels") or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("labels is not a list of names")
    if labels and len(labels) != layout.class_count:
        raise ValueError(f"there are {len(labels)} labels for {layout.class_count} classes")
