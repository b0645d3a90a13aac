"""What the pack touches of ComfyUI's internals: models, placement, paths, coordinates."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import folder_paths
import numpy as np
import torch
from torch import Tensor

from ...guidance.adm import EncoderUNet, UNet, UNetLayout
from ...guidance.checkpoints.checkpoint import (
    DTYPES,
    SUFFIXES,
    Checkpoint,
    CheckpointError,
    Description,
    read_checkpoint,
)
from ...guidance.checkpoints.loading import build_classifier
from ...guidance.classifiers.compiling import compile_network
from ...guidance.classifiers.gradient_memory import (
    WHOLE,
    GradientMemoryPlan,
    gradient_bytes,
    memory_plan_within,
)
from ...guidance.classifiers.image import Decode, ImageClassifier
from ...guidance.classifiers.noisy import NoisyClassifier, compute_dtype, use_ordinary_weights
from ...guidance.core.bounded_read import is_within
from ...guidance.core.host_copy import HostCopy, device_of
from ...guidance.core.labels import class_names, spread_labels
from ...guidance.core.noise import NoiseSchedule, sigma_from_alpha_bar
from ...guidance.sampling.low_res import check_low_res, enlarged
from ...guidance.sampling.nan_guard import NaNGuard
from ...guidance.schedules.run_position import RunPosition, step_of

if TYPE_CHECKING:  # loaded when something is trained
    from ...guidance.training.resume import ResumeFile

PACK_MODELS = Path(__file__).resolve().parents[2] / "models"
CLASSIFIERS = "classifiers"
DIFFUSION_MODELS = "diffusion_models"
IMAGE_CLASSIFIERS = "image_classifiers"  # not a folder: those of CLASSIFIERS that read images
CONFIG = "config.json"  # of a Hugging Face folder
DTYPE_NAMES = ["auto", *DTYPES]

PIXELS = "rgb"
TRACE_KEY = "guidance_trace"
ADDED_KEY = "classifier_guidance_added"
RUN_KEY = "classifier_guidance_run"
HELD_KEY = "classifier_guidance_held"
WATCH_KEY = "classifier_guidance_watch"
MEMORY_KEY = "classifier_guidance_memory"
CLONE_KEY = "classifier_guidance_clone"
# Keys under transformer_options through which SamplerADM asks for what x0 alone does not tell.
VARIANCE_KEY = "adm_variance"
GRADIENT_KEY = "classifier_guidance_gradient"
MOST_BYTES = 2**18  # of a schedule that the page asks about


# --- paths -----------------------------------------------------------------------------------


def register_model_folders() -> None:
    """models/classifiers as a model folder of its own, and the demo models in both lists."""
    user_folder = Path(folder_paths.models_dir) / CLASSIFIERS
    folder_paths.add_model_folder_path(CLASSIFIERS, str(user_folder))
    folder_paths.add_model_folder_path(CLASSIFIERS, str(PACK_MODELS / CLASSIFIERS))
    saved = Path(folder_paths.get_output_directory()) / CLASSIFIERS
    folder_paths.add_model_folder_path(CLASSIFIERS, str(saved))
    folder_paths.add_model_folder_path(DIFFUSION_MODELS, str(PACK_MODELS / DIFFUSION_MODELS))
    # an empty set would mean every file; ComfyUI's own set includes .pkl
    paths, _ = folder_paths.folder_names_and_paths[CLASSIFIERS]
    folder_paths.folder_names_and_paths[CLASSIFIERS] = (paths, set(SUFFIXES))


def model_names(folder: str) -> list[str]:
    """What a loader offers."""
    return folder_paths.get_filename_list(folder)


def model_path(folder: str, name: str) -> str:
    """Where the chosen file is, looked up anew: a linked input or a script can send any name.

    Raises CheckpointError when it is gone, or is, links followed, in none of ComfyUI's folders of
    that kind.
    """
    roots = folder_paths.get_folder_paths(folder)
    path = folder_paths.get_full_path(folder, name) if _is_plain(name) else None
    if path is None:
        raise CheckpointError(
            f"There is no model file {str(name)[:200]!r}; put it into {' or '.join(roots)}."
        )
    _check_within(path, roots, CheckpointError)
    return path


def _is_plain(name: Any) -> bool:
    """Whether it is a path below a folder, and says so."""
    if not isinstance(name, str) or "\0" in name or PureWindowsPath(name).drive:
        return False
    return not Path(name).is_absolute() and ".." not in PureWindowsPath(name).parts


def _check_within(path: str | Path, roots: list[str], error: type[ValueError]) -> None:
    """Raises `error` for a link out of all of the folders."""
    if not is_within(Path(path), roots):
        raise error(
            f"{path} is a link to {os.path.realpath(path)}, outside of {' and '.join(roots)}; "
            "move the file itself there, or add its folder to extra_model_paths.yaml."
        )


def file_fingerprint(folder: str, name: str) -> str:
    """Changes when the file is replaced, so that the node runs again."""
    try:
        path = model_path(folder, name)
    except CheckpointError:
        return "missing"
    return _version(Path(path))


def _version(path: Path) -> str:
    """Changes with the file, also where its size and the time that it shows stay the same."""
    stat = path.stat() if path.exists() else path.lstat()  # a link to nowhere
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


# --- classifiers -----------------------------------------------------------------------------


class AllOrNothingPatcher(comfy.model_patcher.ModelPatcher):
    """Places a model whole or not at all.

    A classifier is small, and its layers are plain torch modules: half of it on another device
    would break its backward pass.
    """

    def partially_load(self, device_to: Any, extra_memory: float = 0, **options: Any) -> Any:
        """Loads everything, whatever is left for it."""
        return super().partially_load(device_to, 1e32, **options)

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, **options: Any) -> int:
        """Frees nothing, which makes ComfyUI unload the whole model instead."""
        return 0

    def deepclone_multigpu(self, new_load_device: Any = None, models_cache: Any = None) -> Any:
        """The same network where it is: what is steered may compute on any device."""
        return self.clone()


@dataclass(frozen=True)
class PlacedClassifier:
    """What a NOISY_CLASSIFIER socket carries: the classifier and who places its network.

    vae: what decodes a model's latents for a classifier of images.
    """

    classifier: NoisyClassifier | ImageClassifier
    patcher: Any
    file_name: str
    description: Description | None = None
    vae: PlacedVAE | None = None

    def patchers(self, model: Any) -> list[Any]:
        """What has to be placed together with that MODEL."""
        decoded = self.classifier.reads_images and space_of(model) != PIXELS
        return [self.patcher, self.vae.patcher] if decoded and self.vae else [self.patcher]

    def bind(self, patchers: list[Any], model: Any) -> NoisyClassifier | ImageClassifier:
        """The classifier with the networks of these `patchers`, for the latents of a base model."""
        network, *vae = (patcher.model for patcher in patchers)
        if isinstance(self.classifier, NoisyClassifier):
            saving = self.classifier.with_network(network)
            return saving.with_economy(functools.partial(_economy, network))
        if self.vae is None or not vae:
            return self.classifier.with_network(network)
        return self.classifier.with_network(network, self.vae.decoder(vae[0], model))

    def on_device(self) -> NoisyClassifier | ImageClassifier:
        """Loads the network onto the compute device; for use outside a sampling run."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.classifier

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.patcher.load_device


def load_classifier(
    name: str, dtype: str, compile: bool = False, **overrides: Any
) -> PlacedClassifier:
    """The classifier of that name, in main memory until it is used."""
    checkpoint = _read(CLASSIFIERS, name, "classifier", overrides)
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    weights = _weight_dtype(checkpoint, dtype)
    compute = comfy.model_management.unet_manual_cast(weights, device)
    # gradients flow through these weights: they must not be inference tensors
    with torch.inference_mode(False):
        classifier = build_classifier(checkpoint, weights, offload, compute_dtype=compute)
    if compile:
        compile_network(classifier.network)
    return _placed(classifier, name, checkpoint.description)


def attach(model: Any, key: str, patchers: list[Any]) -> None:
    """Has ComfyUI place these models whenever it places the MODEL."""
    model.set_additional_models(key, patchers)
    matched = getattr(comfy.patcher_extension.CallbacksMP, "ON_MATCH_MULTIGPU_CLONES", None)
    if matched is not None and not model.callbacks.get(matched, {}).get(CLONE_KEY):
        model.add_callback_with_key(matched, CLONE_KEY, _without_classifiers)


def _without_classifiers(model: Any, clone: Any) -> None:
    """A clone for another GPU computes the MODEL's prediction alone; the first one guides."""
    for key, patchers in list(clone.additional_models.items()):
        if any(isinstance(patcher, AllOrNothingPatcher) for patcher in patchers):
            clone.remove_additional_models(key)


def place_trained(network: Any, description: Description) -> PlacedClassifier:
    """A classifier that was trained just now."""
    about = description
    classifier = NoisyClassifier(network, about.noise_schedule, about.labels, about.space)
    network.to(comfy.model_management.unet_offload_device())
    return _placed(classifier, "The trained classifier", description)


def _placed(
    classifier: NoisyClassifier | ImageClassifier,
    name: str,
    about: Description | None = None,
    vae: PlacedVAE | None = None,
) -> PlacedClassifier:
    """The classifier, its network where ComfyUI keeps what is not in use."""
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    patcher = AllOrNothingPatcher(classifier.network, load_device=device, offload_device=offload)
    return PlacedClassifier(classifier, patcher, name, about, vae)


def image_classifier_names() -> list[str]:
    """Folders with a config.json in models/classifiers, and the files that are in none of them."""
    folders = _config_folders()
    files = [
        name
        for name in model_names(CLASSIFIERS)
        if not any(parent.as_posix() in folders for parent in Path(name).parents)
    ]
    return sorted([*folders, *files])


def _config_folders() -> set[str]:
    """Relative to the folder of models/classifiers that they are in; at most three deep."""
    found = set()
    for root in map(Path, folder_paths.get_folder_paths(CLASSIFIERS)):
        for depth in ("*", "*/*", "*/*/*"):
            for config in root.glob(f"{depth}/{CONFIG}"):
                found.add(config.parent.relative_to(root).as_posix())
    return found


def image_classifier_path(name: str) -> Path:
    """Where the chosen file or folder is; CheckpointError when it is gone, or is elsewhere."""
    if _is_plain(name) and name in _config_folders():
        roots = folder_paths.get_folder_paths(CLASSIFIERS)
        path = next(
            path for path in (Path(root) / name for root in roots) if (path / CONFIG).is_file()
        )
        for found in (path, *path.iterdir()):
            _check_within(found, roots, CheckpointError)
        return path
    return Path(model_path(CLASSIFIERS, name))


def image_classifier_fingerprint(name: str) -> str:
    """Changes when the file, or one in the folder, is replaced."""
    try:
        path = image_classifier_path(name)
    except CheckpointError:
        return "missing"
    return _fingerprint(path) if path.is_dir() else file_fingerprint(CLASSIFIERS, name)


def load_image_classifier(
    name: str, gradient: str, dtype: str, vae: comfy.sd.VAE | None = None
) -> PlacedClassifier:
    """A classifier of clean images, in main memory until it is used."""
    from ...guidance.checkpoints.image_classifiers import open_image_classifier

    opened = open_image_classifier(image_classifier_path(name))
    device = comfy.model_management.get_torch_device()
    weights = opened.dtype if dtype == "auto" else DTYPES[dtype]
    # its layers are plain torch modules: they are kept in what the device computes in
    compute = comfy.model_management.unet_manual_cast(weights, device) or weights
    with torch.inference_mode(False):
        opened.network.to(comfy.model_management.unet_offload_device(), compute)
    placed_vae = None if vae is None else PlacedVAE.of(vae)
    return _placed(opened.classifier(gradient), name, vae=placed_vae)


def _read(folder: str, name: str, kind: str, overrides: dict[str, Any]) -> Checkpoint:
    """The file, mapped into memory unless ComfyUI was told not to."""
    mmap = not comfy.utils.DISABLE_MMAP
    checkpoint = read_checkpoint(model_path(folder, name), kind, mmap=mmap, **overrides)
    if checkpoint.path.suffix != ".safetensors":
        logging.info(
            "Classifier Guidance: %s was read without running what is in it; for a file that other "
            "programs can open as safely, use: python -m guidance convert IN.pt OUT.safetensors",
            checkpoint.path.name,
        )
    return checkpoint


def _weight_dtype(checkpoint: Checkpoint, dtype: str) -> torch.dtype:
    """The asked one; "auto" keeps what the file has, fp32 where that is none of the three."""
    if dtype != "auto":
        return DTYPES[dtype]
    return checkpoint.dtype if checkpoint.dtype in DTYPES.values() else torch.float32


# --- memory for gradients -----------------------------------------------------------------------

SPARE_SHARE = 0.2  # of the free memory: it comes in pieces, and kernels need some of it


def _economy(network: torch.nn.Module, x: Tensor) -> GradientMemoryPlan:
    """The quickest gradient at x (B, C, H, W) that the device has room for now."""
    if not isinstance(network, EncoderUNet):
        return WHOLE
    device = device_of(network, x.device)
    free = comfy.model_management.get_free_memory(device) * (1 - SPARE_SHARE)
    return memory_plan_within(free, network.layout, x.shape, compute_dtype(network, x))


def reserve_gradient_memory(model: Any) -> None:
    """Has the MODEL ask for room for the gradients of the classifiers that are attached to it.

    ComfyUI counts what the diffusion model needs while it computes, and of other models only the
    weights.
    """
    kind = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    if not model.get_wrappers(kind, MEMORY_KEY):  # once, for all that are attached
        model.add_wrapper_with_key(kind, MEMORY_KEY, _with_room_for_gradients)


def _with_room_for_gradients(
    executor: Any, model: Any, noise_shape: Any, *arguments: Any, **options: Any
) -> Any:
    """Other models make room for the quickest gradient, the diffusion model for the smallest."""
    base, own = model.model, model.model.memory_required
    whole, again = (_gradients_bytes(model, noise_shape, recompute) for recompute in (False, True))

    def memory_required(shape: Any, *more: Any, **named: Any) -> float:
        # core asks for twice the batch, which is to fit, and for the batch, which has to
        extra = whole if shape[0] > noise_shape[0] else again
        return own(shape, *more, **named) + extra

    base.memory_required = memory_required
    try:
        return executor(model, noise_shape, *arguments, **options)
    finally:
        base.__dict__.pop("memory_required", None)


def _gradients_bytes(model: Any, shape: Any, recompute: bool) -> int:
    """Of the classifier that needs most: gradients are computed one after the other."""
    networks = [patcher.model for patcher in model.get_nested_additional_models()]
    classifiers = [network for network in networks if isinstance(network, EncoderUNet)]
    size = tuple(shape[-2:])
    return max(
        (
            shape[0] * gradient_bytes(one.layout, size, _dtype_of(one), recompute)
            for one in classifiers
        ),
        default=0,
    )


def _dtype_of(network: torch.nn.Module) -> torch.dtype:
    return compute_dtype(network, torch.empty(0))


# --- gradients that are not finite ---------------------------------------------------------------


def watch_gradients(model: Any) -> None:
    """Has each run of the MODEL end with a last look at the gradients of all its classifiers."""
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    if not model.get_wrappers(kind, WATCH_KEY):  # once, for all that are attached
        model.add_wrapper_with_key(kind, WATCH_KEY, _watched)


def _watched(executor: Any, *arguments: Any, **options: Any) -> Any:
    watch = NaNGuard()
    # the guider's options are a copy for this run
    executor.class_obj.model_options["transformer_options"][WATCH_KEY] = watch
    result = executor(*arguments, **options)
    watch.finish()
    return result


# --- gradients through a VAE and a model --------------------------------------------------------


@dataclass(frozen=True)
class PlacedVAE:
    """A VAE whose decoder gradients flow through, and who places it.

    slope, offset: from what it decodes to pixels in [-1, 1].
    """

    patcher: Any
    channels: int
    dtype: torch.dtype
    slope: float
    offset: float

    @classmethod
    def of(cls, vae: comfy.sd.VAE) -> PlacedVAE:
        """Raises ValueError for a VAE that decodes no images, or whose weights are streamed."""
        vae.throw_exception_if_invalid()
        if vae.latent_dim != 2 or vae.output_channels != 3:
            kind = {1: "sound", 3: "video"}.get(vae.latent_dim, "something else")
            raise ValueError(
                f"vae decodes {kind if vae.latent_dim != 2 else 'no RGB images'}; an image "
                "classifier needs the VAE of an image model."
            )
        patcher = _not_streamed(vae.patcher)
        whole = AllOrNothingPatcher(
            patcher.model, load_device=patcher.load_device, offload_device=patcher.offload_device
        )
        # what core makes of it is between 0 and 1: (v + 1) / 2 for most, some have it already
        low, high = vae.process_output(torch.tensor([0.0, 0.5])).tolist()
        slope = (high - low) / 0.5
        return cls(whole, vae.latent_channels, vae.vae_dtype, 2 * slope, 2 * low - 1)

    def decoder(self, network: Any, model: Any) -> Decode:
        """From a base model's x0 (B, C, H, W) to RGB in [-1, 1]; `network` is the placed VAE."""

        def decode(x0: Tensor) -> Tensor:
            use_ordinary_weights(network)
            _use_ordinary_attributes(model.latent_format)
            latents = model.process_latent_out(x0).to(device_of(network, x0.device), self.dtype)
            pixels = network.decode(latents)
            return pixels * self.slope + self.offset

        return decode


def is_streamed(patcher: Any) -> bool:
    """Whether ComfyUI brings the weights layer by layer (dynamic VRAM)."""
    asked = getattr(patcher, "is_dynamic", None)
    return asked is not None and asked()


def _not_streamed(patcher: Any) -> Any:
    """The patcher, or of a streamed one the ordinary one that core makes for such cases."""
    if not is_streamed(patcher):
        return patcher
    try:
        return patcher.get_non_dynamic_delegate()
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            "vae has weights that are streamed, which gradients cannot go through; load it with "
            "core's Load VAE, or start ComfyUI with --disable-dynamic-vram."
        ) from error


def _use_ordinary_attributes(owner: Any) -> None:
    """As `use_ordinary_weights`, of an object that is no module."""
    for name, value in vars(owner).items():
        if isinstance(value, Tensor) and value.is_inference():
            setattr(owner, name, value.clone())


CHEAP_INSTEAD = "set gradient to cheap on Load Image Classifier"


def check_differentiable(*patchers: Any) -> None:
    """Raises ValueError for a MODEL, or what runs with it, that gradients cannot go through."""
    if any(map(is_streamed, patchers)):
        raise ValueError(
            "model has weights that are streamed (dynamic VRAM), which an exact gradient cannot go "
            f"through; {CHEAP_INSTEAD}, or start ComfyUI with --disable-dynamic-vram."
        )


def _check_whole(networks: list[torch.nn.Module], device: torch.device) -> None:
    weights = (weight for network in networks for weight in network.parameters())
    if any(weight.device != device for weight in weights):
        raise ValueError(
            "model is only partly on the device for lack of memory, and an exact gradient cannot "
            f"go through that; {CHEAP_INSTEAD}, or make the image or the batch smaller."
        )


def predict_with_graph(
    executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any
) -> tuple[Tensor, Tensor]:
    """x and the guider's denoised image, both (B, C, H, W), connected in torch's graph.

    An x that somebody further out differentiates by is kept.
    """
    guider = executor.class_obj
    model, others = guider.inner_model, getattr(guider, "loaded_models", ())
    check_differentiable(guider.model_patcher, *others)
    found = (model, *(other.model for other in others))
    networks = [network for network in found if isinstance(network, torch.nn.Module)]
    _check_whole(networks, x.device)
    with torch.inference_mode(False), torch.enable_grad():
        for network in networks:
            use_ordinary_weights(network)
        _use_ordinary_attributes(model.latent_format)
        x_in = x if x.requires_grad else x.detach().clone().requires_grad_(True)
        try:
            # a copy: some patches write into the x they are given
            denoised = executor(x_in.clone(), sigma.clone(), model_options, seed)
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
            raise ValueError(
                "model, or a patch on it, uses tensors that torch cannot differentiate by "
                f"(inference tensors); {CHEAP_INSTEAD}, or take the patch away."
            ) from error
    if not denoised.requires_grad:
        raise ValueError(
            "model, or a patch on it, predicts without torch's graph, so there is no exact "
            f"gradient; {CHEAP_INSTEAD}."
        )
    return x_in, denoised


# --- ADM models ------------------------------------------------------------------------------


class SideOutputs:
    """What one model evaluation leaves for SamplerADM, beside the denoised image."""

    def __init__(self) -> None:
        self.items: list[Any] = []


class LearnedVariance(SideOutputs):
    """v of the positive conditioning; a CALC_COND_BATCH wrapper that reads what the U-Net leaves.

    Guiders order their conditionings in their own ways, patches evaluate the network once more,
    and areas see a part of the image: so the positive is looked up in the first evaluation, and
    its areas and masks are blended as core blends the prediction itself.
    """

    def __init__(self, guider: Any) -> None:
        super().__init__()  # items: which conditioning, its uuid, v of its area
        self.positive = getattr(guider, "conds", {}).get("positive")
        self.v: Tensor | None = None

    def __call__(
        self, executor: Any, model: Any, conds: list, x: Tensor, sigma: Tensor, options: dict
    ) -> Any:
        """Passes the evaluation on."""
        output = executor(model, conds, x, sigma, options)
        if self.v is None and self.items:
            self.v = self._blended(conds, x, sigma)
        return output

    def _blended(self, conds: list, x: Tensor, sigma: Tensor) -> Tensor:
        places = [i for i, cond in enumerate(conds) if cond is not None and cond is self.positive]
        index = places[0] if places else 0
        parts = {uuid: v for which, uuid, v in self.items if which == index}
        total, weight = torch.zeros_like(x), torch.full_like(x, 1e-37)
        for cond in conds[index] or ():
            placed = comfy.samplers.get_area_and_mult(cond, x, sigma)
            if placed is None or cond["uuid"] not in parts:
                continue
            where = _region(placed.area)
            total[where] += parts[cond["uuid"]].to(x) * placed.mult
            weight[where] += placed.mult
        return total / weight


def request_side_outputs(
    model_options: dict, variance: LearnedVariance, gradients: SideOutputs
) -> dict:
    """Model options for one evaluation that leaves these two things."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    comfy.patcher_extension.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.CALC_COND_BATCH,
        VARIANCE_KEY,
        variance,
        options,
        is_model_options=True,
    )
    options["transformer_options"] |= {VARIANCE_KEY: variance, GRADIENT_KEY: gradients}
    return options


def _region(area: Any) -> tuple:
    """What a conditioning's area (h, w, y, x) cuts out of (B, C, H, W); all of it for None."""
    if area is None:
        return (...,)
    height, width, top, left = area
    return (..., slice(top, top + height), slice(left, left + width))


class ComfyUNet(UNet):
    """The U-Net as ComfyUI calls it: eps alone, the variance set aside for who asks."""

    def __init__(self, layout: UNetLayout, dtype: Any, operations: Any, device: Any = None):
        super().__init__(layout, operations, dtype, device)
        self.dtype = dtype

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Any = None,
        control: Any = None,
        transformer_options: dict | None = None,
        y: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """x (B, C, H, W) and timesteps (B,) -> eps (B, C, H, W)."""
        output = super().forward(x, timesteps, y)
        if not self.layout.learned_variance:
            return output
        eps, variance = output.chunk(2, dim=1)
        options = transformer_options or {}
        if VARIANCE_KEY in options and "uuids" in options:
            which = options["cond_or_uncond"]
            parts = variance.float().chunk(len(which))
            options[VARIANCE_KEY].items += zip(which, options["uuids"], parts, strict=True)
        return eps


class ADMSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """OpenAI's noise schedules as a core model sampling."""

    def __init__(self, schedule: NoiseSchedule):
        super().__init__()
        self.num_timesteps = len(schedule)
        self.set_sigmas(sigma_from_alpha_bar(schedule.alpha_bar))


class ADMModel(comfy.model_base.BaseModel):
    """A core model around an ADM U-Net: pixels, eps, optional class labels."""

    def __init__(self, config: Any, checkpoint: Checkpoint, device: Any = None):
        super().__init__(config, comfy.model_base.ModelType.EPS, device, unet_model=ComfyUNet)
        about = checkpoint.description
        self.model_sampling = ADMSampling(NoiseSchedule(about.noise_schedule))
        self.layout: UNetLayout = about.layout  # type: ignore[assignment]
        self.labels = about.labels
        self.file_name = checkpoint.path.name

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The U-Net's y and the upsampler's small image; text conditioning is of no use here."""
        return {**self._class_conds(**kwargs), **self._low_res_conds(**kwargs)}

    def _class_conds(self, noise: Tensor, device: Any, adm_labels: Any = None, **_: Any) -> dict:
        if self.layout.num_classes is None:
            return {}
        if adm_labels is None:
            raise ValueError(
                f"{self.file_name} needs a class label, and the conditioning has none; "
                "connect ADM Class Label to positive and negative."
            )
        outside = [label for label in adm_labels if label >= self.layout.num_classes]
        if outside:
            raise ValueError(
                f"The conditioning's class label is {outside[0]}, but the classes of "
                f"{self.file_name} go from 0 to {self.layout.class_count - 1}; "
                "connect this model to the ADM Class Label."
            )
        chosen = spread_labels(adm_labels, len(noise), "label of ADM Class Label")
        return {"y": comfy.conds.CONDRegular(torch.tensor(chosen, device=device))}

    def _low_res_conds(self, noise: Tensor, adm_low_res: Any = None, **_: Any) -> dict:
        if not self.layout.upsampler:
            if adm_low_res is None:
                return {}
            raise ValueError(
                f"{self.file_name} draws from noise alone, but its conditioning has an image; "
                "take ADM Upscale Conditioning away, or load an upsampler."
            )
        if adm_low_res is None:
            raise ValueError(
                f"{self.file_name} is an upsampler and needs the small image that it enlarges; "
                "connect ADM Upscale Conditioning to positive and negative."
            )
        check_low_res(adm_low_res, noise.shape)
        return {"c_concat": comfy.conds.CONDNoiseShape(enlarged(adm_low_res, noise.shape[-2:]))}


def load_adm(
    name: str, clip_denoised: bool, dtype: str, **overrides: Any
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.VAE]:
    """A core MODEL and a pixel-space VAE."""
    checkpoint = _read(DIFFUSION_MODELS, name, "diffusion", overrides)
    layout = checkpoint.description.layout
    assert isinstance(layout, UNetLayout)
    _refuse_unsupported(checkpoint.path.name, layout)
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    weights = _weight_dtype(checkpoint, dtype)
    # built without memory of its own; the file's tensors become its weights
    config, meta = _config(layout, weights, device), torch.device("meta")
    model = checkpoint.built(lambda: ADMModel(config, checkpoint, meta))
    checkpoint.fill(model.diffusion_model, weights)
    model.device = offload
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)
    # how core makes another one like it, for another GPU
    patcher.cached_patcher_init = (_adm_patcher, (name, clip_denoised, dtype, overrides))
    if clip_denoised:
        patcher.set_model_sampler_post_cfg_function(_clip)
    return patcher, comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


def _adm_patcher(
    name: str,
    clip_denoised: bool,
    dtype: str,
    overrides: dict[str, Any],
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of `load_adm`, whose weights are never streamed."""
    with torch.inference_mode():
        return load_adm(name, clip_denoised, dtype, **overrides)[0]


def _clip(args: dict) -> Tensor:
    # after CFG and before classifier guidance, as in the original
    return args["denoised"].clamp(-1, 1)


def _refuse_unsupported(name: str, layout: UNetLayout) -> None:
    if layout.image_channels != 3:
        raise CheckpointError(
            f"{name} makes images of {layout.image_channels} channels; only RGB (3) is supported."
        )


def _config(layout: UNetLayout, weights: torch.dtype, device: torch.device) -> Any:
    class Config(comfy.supported_models_base.BASE):
        latent_format = comfy.latent_formats.ChromaRadiance
        unet_extra_config: dict[str, Any] = {}
        # a 256-channel U-Net keeps about this share of what ComfyUI assumes for Stable Diffusion
        memory_usage_factor = 0.3 * layout.model_channels / 256

    config = Config({"layout": layout})
    compute = comfy.model_management.unet_manual_cast(weights, device)
    config.set_inference_dtype(weights, compute)
    return config


def adm_model(patcher: Any) -> ADMModel | None:
    """The ADM model inside a MODEL, or None if it is another kind of model."""
    return patcher.model if isinstance(patcher.model, ADMModel) else None


# --- coordinates -----------------------------------------------------------------------------


def levels_of(model_sampling: Any, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """sigma, alpha of x = alpha x0 + sigma eps, for the sigma that a sampler counts in.

    Flow models carry x = (1 - sigma) x0 + sigma noise_scale eps, the others x = x0 + sigma eps.
    """
    if is_flow(model_sampling):
        return sigma * getattr(model_sampling, "noise_scale", 1.0), 1 - sigma
    return sigma, torch.ones_like(sigma)


def is_flow(model_sampling: Any) -> bool:
    """Whether the sampler carries x = (1 - sigma) x0 + sigma eps."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def place_of(guider: Any, sigma: Tensor, model_options: dict) -> RunPosition:
    """Where a run is when its sampler asks for sigma (B,); waits for the device to tell it."""
    return run_of(guider, model_options).place(float(sigma.flatten()[0]))


def run_of(guider: Any, model_options: dict) -> SigmaSchedule:
    """The run that these options of an evaluation belong to."""
    options = model_options["transformer_options"]
    # the options are this run's own: what is kept in them ends with it
    run = options.get(RUN_KEY)
    if run is None:
        run = options[RUN_KEY] = SigmaSchedule(
            guider.inner_model.model_sampling, options["sample_sigmas"]
        )
    return run


class SigmaSchedule:
    """The sigmas of a sampling run, and the way from a sigma to a place in it."""

    def __init__(self, model_sampling: Any, sigmas: Tensor):
        self.sampling = model_sampling
        table = getattr(model_sampling, "log_sigmas", None)
        self._sigmas = HostCopy(sigmas)
        self._log_sigmas = None if table is None else HostCopy(table.float())

    @functools.cached_property
    def sigmas(self) -> list[float]:
        """Of its steps."""
        return self._sigmas.wait().tolist()

    @functools.cached_property
    def log_sigmas(self) -> np.ndarray | None:
        """Of the model's timesteps, where it has a table of them."""
        return None if self._log_sigmas is None else self._log_sigmas.wait().numpy()

    def place(self, sigma: float) -> RunPosition:
        """Also for a sigma between two steps, as second-order samplers ask for."""
        steps = max(len(self.sigmas) - 1, 1)
        step = min(step_of(self.sigmas, sigma), steps - 1)
        return RunPosition(percent=self._percent(sigma), step=step, steps=steps, sigma=sigma)

    def _percent(self, sigma: float) -> float:
        """The inverse of core's percent_to_sigma."""
        if sigma <= 0:
            return 1.0
        if self.log_sigmas is not None:
            timestep = np.interp(math.log(sigma), self.log_sigmas, np.arange(len(self.log_sigmas)))
            return min(max(1 - float(timestep) / 999.0, 0.0), 1.0)  # 999: as core has it
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            if float(self.sampling.percent_to_sigma(middle)) > sigma:
                low = middle
            else:
                high = middle
        return high


def starts_from_an_image(model_sampling: Any) -> bool:
    """Whether the sampler carries an image to be translated, and no noise."""
    kinds = (comfy.model_sampling.IMG_TO_IMG, comfy.model_sampling.IMG_TO_IMG_FLOW)
    return isinstance(model_sampling, kinds)


def latent_channels(patcher: Any) -> int:
    """Channels of what the sampler carries for this MODEL."""
    return patcher.get_model_object("latent_format").latent_channels


def latent_dimensions(patcher: Any) -> int:
    """2 for images, 3 for video, 1 for sound."""
    return getattr(patcher.get_model_object("latent_format"), "latent_dimensions", 2)


def space_of(patcher: Any) -> str:
    """What the space that the sampler works in is called: "rgb", or its latent format."""
    found = patcher.get_model_object("latent_format")
    return (
        PIXELS if isinstance(found, comfy.latent_formats.ChromaRadiance) else type(found).__name__
    )


def to_model_space(patcher: Any, samples: Tensor) -> Tensor:
    """Latents of a VAE (N, C, H, W) as the sampler carries them."""
    return patcher.get_model_object("latent_format").process_in(samples.clone()).float()


# --- training --------------------------------------------------------------------------------


def class_folder_names() -> list[str]:
    """Folders of the input folder that hold folders."""
    root = Path(folder_paths.get_input_directory())
    if not root.is_dir():
        return []
    found = {
        path.parent for depth in ("*/*", "*/*/*") for path in root.glob(depth) if path.is_dir()
    }
    return sorted(path.relative_to(root).as_posix() for path in found)


def class_folder_path(name: str) -> Path:
    """Where that folder is; raises ValueError when it is gone, or not in the input folder."""
    root = Path(folder_paths.get_input_directory()).resolve()
    path = root / name if _is_plain(name) else root
    if path == root or not is_within(path, [root]) or not path.is_dir():
        raise ValueError(
            f"folder is {str(name)[:200]!r}, which is no folder in {root}; put a folder with a "
            "folder for each class there."
        )
    for found in path.rglob("*"):
        if found.is_symlink() and not is_within(found, [root]):
            raise ValueError(
                f"{found} is a link to {os.path.realpath(found)}, outside of {root}; put the "
                "pictures themselves there."
            )
    return path.resolve()


def class_folder_fingerprint(name: str) -> str:
    """Changes with the pictures."""
    try:
        return _fingerprint(class_folder_path(name))
    except ValueError:
        return "missing"


def _fingerprint(root: Path) -> str:
    """Changes with any file below the folder."""
    seen = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        seen.update(_version(path).encode())
    return seen.hexdigest()


def check_room(size: int, what: str) -> None:
    """Raises ValueError when main memory has no room for that many bytes."""
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if size > free:
        raise ValueError(
            f"{what} take {size / 2**30:.1f} GB, and {free / 2**30:.1f} GB are free; choose a "
            "smaller size or fewer pictures."
        )


def warn(text: str) -> None:
    """Into ComfyUI's log."""
    logging.warning("Classifier Guidance: %s", text)


def train_in_bf16(precision: str) -> bool:
    """The asked one; "auto": where the accelerator computes in it."""
    device = comfy.model_management.get_torch_device()
    if precision != "auto":
        return precision == "bf16"
    return device.type != "cpu" and comfy.model_management.should_use_bf16(device)


def prepare_training() -> torch.device:
    """The device, with room made on it."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cpu":
        comfy.model_management.unload_all_models()
    return device


def training_progress(steps: int) -> Callable[[int, float], None]:
    """Called after each step: moves the node's progress bar, and ends what was cancelled."""
    bar = comfy.utils.ProgressBar(steps)

    def on_step(step: int, loss: float) -> None:
        bar.update_absolute(step, steps)
        comfy.model_management.throw_exception_if_processing_interrupted()

    return on_step


def training_resume(settings: dict[str, Any]) -> ResumeFile:
    """Where a training of these settings is kept while it lasts."""
    from ...guidance.training.resume import ResumeFile

    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]
    folder = Path(folder_paths.get_user_directory()) / "classifier_guidance"
    return ResumeFile(folder / f"{key}.resume", settings)


def new_output_path(prefix: str) -> Path:
    """The next free name in the output folder."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    return Path(folder) / f"{name}_{counter:05}_.safetensors"


# --- the page --------------------------------------------------------------------------------


def _server() -> Any:
    """ComfyUI's server, or None without one: in its process it is imported, elsewhere not."""
    prompt_server = getattr(sys.modules.get("server"), "PromptServer", None)
    return getattr(prompt_server, "instance", None)


def send_event(event: str, about: dict[str, Any]) -> None:
    """Sends an event to the page that queued what runs; nowhere without a server."""
    server = _server()
    if server is not None:
        server.send_sync(event, about, server.client_id)


def add_routes(draw_schedule: Callable[[str], dict[str, Any]]) -> None:
    """GET /classifier_guidance/classes?kind=classifiers&name=...: what its classes are called.

    POST /classifier_guidance/schedule: what draw_schedule answers to the text that is sent.
    """
    server = _server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.get("/classifier_guidance/classes")
    async def classes(request: Any) -> Any:
        kind, name = request.query.get("kind", ""), request.query.get("name", "")
        if name not in CLASS_LISTS.get(kind, tuple)():
            return web.json_response({"classes": []}, status=404)
        loop = asyncio.get_running_loop()
        names = await loop.run_in_executor(None, classes_of, kind, name)
        return web.json_response({"classes": names})

    @server.routes.post("/classifier_guidance/schedule")
    async def schedule(request: Any) -> Any:
        text = await _text_of(request, MOST_BYTES)
        if text is None:
            return web.json_response({"error": f"A schedule has at most {MOST_BYTES} bytes."})
        loop = asyncio.get_running_loop()
        return web.json_response(await loop.run_in_executor(None, draw_schedule, text))


async def _text_of(request: Any, most: int) -> str | None:
    """What was sent, or None of more than so many bytes; no more than them is kept."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > most:
            return None
    return body.decode("utf-8", "replace")


# what the page may ask for the classes of, and what there is of each
CLASS_LISTS: dict[str, Callable[[], Any]] = {
    CLASSIFIERS: lambda: model_names(CLASSIFIERS),
    DIFFUSION_MODELS: lambda: model_names(DIFFUSION_MODELS),
    IMAGE_CLASSIFIERS: image_classifier_names,
}


def classes_of(kind: str, name: str) -> tuple[str, ...]:
    """The names of a file's classes, or their numbers; none of a file that cannot be used."""
    try:
        if kind == IMAGE_CLASSIFIERS:
            return _image_classes_of(name, image_classifier_fingerprint(name))
        return _classes_of(kind, name, file_fingerprint(kind, name))
    except CheckpointError:
        return ()


@functools.lru_cache(maxsize=32)
def _classes_of(kind: str, name: str, fingerprint: str) -> tuple[str, ...]:
    about = read_checkpoint(model_path(kind, name)).description
    count = about.layout.class_count or 0
    return class_names(count, about.labels) or tuple(str(index) for index in range(count))


@functools.lru_cache(maxsize=32)
def _image_classes_of(name: str, fingerprint: str) -> tuple[str, ...]:
    from ...guidance.checkpoints.image_classifiers import classes_of_image_classifier

    count, labels = classes_of_image_classifier(image_classifier_path(name))
    return class_names(count, labels) or tuple(str(index) for index in range(count))
