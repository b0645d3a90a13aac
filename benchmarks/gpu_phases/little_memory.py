"""Streamed weights, ordinary loading, and a card with 4.5 GB left: the same images?"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from harness import Row

from .setup import LeftOut, Part, Setup

LEFT, PIECE = 4.5 * 2**30, 2**28  # bytes that stay free; bytes of a tensor that fills the card
ROUNDING = 0.01  # of fp16, in proportion to the largest value
FILE = "sdxl.safetensors"
FILE_BYTES = 6 * 2**30
# Whether weights are streamed, and whether the card is filled. The first is what others equal.
MODES = {
    "ordinary loading": (False, False),
    "ordinary loading, 4.5 GB left": (False, True),
    "dynamic VRAM": (True, False),
    "dynamic VRAM, 4.5 GB left": (True, True),
}


def parts(setup: Setup) -> list[Part]:
    """Roomy and short of memory, with weights that are loaded as usual and streamed."""
    is_prepared = prepare_streaming() if not setup.rehearse else False
    bench = Bench(setup)
    is_streaming = is_prepared and devices_can_stream()
    modes = [mode for mode, (is_streamed, _) in MODES.items() if is_streaming or not is_streamed]
    found = [(f"{mode}: {job}", partial(bench.rows, mode, job)) for mode in modes for job in JOBS]
    return found if is_streaming else [*found, ("dynamic VRAM", no_streaming)]


def no_streaming() -> Iterator[Row]:
    """Says so."""
    raise LeftOut("Dynamic VRAM (comfy-aimdo) cannot be started here, so it was not measured.")


def prepare_streaming() -> bool:
    """As ComfyUI's main.py does it, before torch is imported."""
    try:
        import comfy_aimdo.control as control
    except ImportError:
        return False
    for options in ({"simple_vram_headroom": None, "nvml_pressure": True}, {}):
        try:
            return control.init(**options) is not False
        except TypeError:  # an older comfy-aimdo
            continue
    return False


def devices_can_stream() -> bool:
    """As ComfyUI's main.py does it, once there are devices."""
    import comfy.model_management
    import comfy_aimdo.control as control

    indices = [device.index for device in comfy.model_management.get_all_torch_devices()]
    try:
        return bool(control.init_devices([(index, 0) for index in indices]))
    except TypeError:  # an older comfy-aimdo
        return bool(control.init_devices(indices))


@contextmanager
def loading(streamed: bool) -> Iterator[None]:
    """How core loads models meanwhile."""
    import comfy.memory_management
    import comfy.model_patcher

    patchers, memory = comfy.model_patcher, comfy.memory_management
    before = patchers.CoreModelPatcher, getattr(memory, "aimdo_enabled", False)
    if streamed:
        patchers.CoreModelPatcher, memory.aimdo_enabled = patchers.ModelPatcherDynamic, True
    try:
        yield
    finally:
        patchers.CoreModelPatcher, memory.aimdo_enabled = before


@contextmanager
def filled(short: bool) -> Iterator[None]:
    """The GPU has LEFT bytes meanwhile, and other programs the rest."""
    import torch

    held = []
    if short and torch.cuda.is_initialized():
        free = torch.cuda.mem_get_info()[0] - LEFT
        held = [
            torch.empty(PIECE, dtype=torch.uint8, device="cuda") for _ in range(int(free // PIECE))
        ]
    try:
        yield
    finally:
        held.clear()


def plain(bench: Bench, model: Any) -> tuple[Any, float]:
    """CFG."""
    return model, 7.0


def scheduled(bench: Bench, model: Any) -> tuple[Any, float]:
    """CFG in the middle half of the run, traced."""
    from .comfy_models import call

    schema = bench.nodes.NODE_CLASS_MAPPINGS["GuidanceSchedule"].GET_SCHEMA()
    inputs = {one.id: one.default for one in schema.inputs}
    inputs |= {"shape": "interval", "axis": "step", "scale": 7.0, "start": 0.25, "end": 0.75}
    half = call(bench.nodes, "GuidanceSchedule", **inputs)
    model = call(bench.nodes, "CFGScaleScheduler", model=model, schedule=half)
    return call(bench.nodes, "GuidanceTrace", model=model), 7.0


def noisy(bench: Bench, model: Any) -> tuple[Any, float]:
    """A noisy classifier of medium size."""
    return bench.classifiers.guided(model, bench.classifiers.noisy("medium")), 1.0


def clean(bench: Bench, model: Any, gradient: str) -> tuple[Any, float]:
    """ViT-B by a small decoder."""
    from .comfy_models import random_vae

    classifier = bench.classifiers.clean(random_vae("taesd"), gradient)
    return bench.classifiers.guided(model, classifier), 1.0


JOBS: dict[str, Callable[..., tuple[Any, float]]] = {
    "plain, cfg 7": plain,
    "half an interval and trace": scheduled,
    "noisy classifier": noisy,
    "ViT-B, cheap": partial(clean, gradient="cheap"),
    "ViT-B, exact": partial(clean, gradient="exact"),
}


class Bench:
    """The model's file, and the images of the roomy runs."""

    def __init__(self, setup: Setup):
        from .comfy_models import SDXL, Classifiers, comfy_nodes

        self.setup, self.nodes = setup, comfy_nodes(setup)
        self.sdxl = SDXL(setup)
        self.classifiers = Classifiers(setup, self.nodes, self.sdxl.side)
        self.roomy: dict[str, Any] = {}
        self.mode, self.model, self.left = "", None, ExitStack()
        self._write()

    def _write(self) -> None:
        import comfy.supported_models
        import safetensors.torch

        if not self.setup.rehearse and shutil.disk_usage(self.setup.folder).free < FILE_BYTES:
            raise LeftOut("little_memory needs 6 GB in the folder of temporary files.")
        weights = self.sdxl.base().diffusion_model.state_dict()
        weights = {key: weight.cpu().contiguous() for key, weight in weights.items()}
        safetensors.torch.save_file(weights, self.setup.folder / FILE)
        config = self.sdxl.config

        class Small(comfy.supported_models.SDXL):
            """What core would not recognise: the small network of a rehearsal."""

            unet_config = {
                key: config[key] for key in comfy.supported_models.SDXL.unet_config if key in config
            }

        if self.setup.rehearse:
            comfy.supported_models.models.insert(0, Small)

    def loaded(self) -> Any:
        """The MODEL by core's loader."""
        import comfy.sd
        import torch

        path, options = str(self.setup.folder / FILE), {"dtype": self.sdxl.dtype}
        with torch.inference_mode():
            return comfy.sd.load_diffusion_model(path, model_options=options)

    def enter(self, mode: str) -> Any:
        """Loads the MODEL as this mode does, unless it is loaded so."""
        import comfy.model_management

        if mode != self.mode:
            self.left.close()  # what the mode before has set
            self.model = None
            comfy.model_management.unload_all_models()
            comfy.model_management.soft_empty_cache()
            is_streamed, is_short = MODES[mode]
            self.left.enter_context(loading(is_streamed))
            self.left.enter_context(filled(is_short))
            self.model, self.mode = self.loaded(), mode
        return self.model

    def rows(self, mode: str, job: str) -> Iterator[Row]:
        """The same run twice, against the roomy one."""
        model, cfg = JOBS[job](self, self.enter(mode))
        first, _ = self.timed(model, cfg)
        second, seconds = self.timed(model, cfg)
        name = f"SDXL, {mode}, {job}"
        expected = self.roomy.setdefault(job, first)
        size = expected.abs().max().item()
        yield Row(name, "time of a step", seconds * 1e3, unit=" ms")
        if expected is not first:
            far = (first - expected).abs().max().item() / size
            yield Row(f"{name}: largest difference", "with much memory", far, ROUNDING)
        again = (second - first).abs().max().item() / size
        yield Row(f"{name}: largest difference", "the same run again", again, 0)

    def timed(self, model: Any, cfg: float) -> tuple[Any, float]:
        """The latents, and the seconds of a step."""
        from .timing import wait

        steps = self.setup.pick(4, 2)
        start = time.perf_counter()
        latents = self.sdxl.run(model, cfg, steps).float().cpu()
        wait()
        return latents, (time.perf_counter() - start) / steps
