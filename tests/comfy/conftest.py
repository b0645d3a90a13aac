"""A real ComfyUI inside the test process, on the CPU, with the pack loaded as ComfyUI loads it."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from pathlib import Path

import pytest
import torch
from core_guiders import Wiring
from mixture import ExactClassifier, network_output
from mixture_model import OUTPUTS, Mixture
from sampler_runs import copying_sampler
from schedule_inputs import SCHEDULE_INPUTS
from tiny_models import write_classifier, write_unet

from guidance.core.noise import NoiseSchedule


@pytest.fixture(scope="session", autouse=True)
def comfy(comfyui, tmp_path_factory):
    """ComfyUI's modules are importable (`import comfy.sample`), and write to a temporary folder."""
    sys.path.insert(0, str(comfyui.path))
    # Before anything else of ComfyUI is imported: the rest reads these when it is imported. Nobody
    # calls comfy.options.enable_args_parsing here, so pytest's own arguments are not parsed.
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(tmp_path_factory.mktemp("comfyui"))
    import comfy

    return comfy


@pytest.fixture(scope="session")
def pack(comfy, root: Path):
    """The pack's top module. ComfyUI names it by its path, with every dot replaced."""
    name = str(root).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, root / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pack_module(pack):
    """Imports a module of the pack: `pack_module("nodes.loaders")`, `pack_module("guidance")`.

    The pack's guidance is not the tests' `import guidance`: the same files under another name, so
    their classes differ.
    """
    return lambda name: importlib.import_module(f"{pack.__name__}.{name}")


@pytest.fixture(scope="session")
def pack_nodes(pack):
    """The pack's node classes by node id, as ComfyUI would register them."""

    async def nodes():
        extension = pack.comfy_entrypoint()
        if inspect.isawaitable(extension):
            extension = await extension
        await extension.on_load()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(nodes())}


@pytest.fixture(scope="session")
def call(pack_nodes):
    """Runs a node of the pack as the executor does: by keyword, in inference mode."""

    def run(node_id, **inputs):
        with torch.inference_mode():
            return pack_nodes[node_id].execute(**inputs).result

    return run


@pytest.fixture(scope="session")
def call_core(comfy):
    """Runs a core node as the executor does; skips where this ComfyUI has none of that name.

    `call_core("nodes", "KSampler", ...)`, `call_core("comfy_extras.nodes_perpneg", ...)`.
    """

    def run(module, name, **inputs):
        node = getattr(pytest.importorskip(module), name, None)
        if node is None:
            pytest.skip(f"this ComfyUI has no {name}")
        with torch.inference_mode():
            if hasattr(node, "define_schema"):
                output = node.execute(**inputs)
                return getattr(output, "result", output)  # a few give a plain tuple
            return getattr(node(), node.FUNCTION)(**inputs)

    return run


@pytest.fixture(scope="session")
def files(comfy):
    """Small models where the loaders look for them: the folder of each kind."""
    import folder_paths

    models = Path(folder_paths.models_dir)
    folder = {kind: models / kind for kind in ("classifiers", "diffusion_models")}
    for path in folder.values():
        path.mkdir(parents=True, exist_ok=True)
    write_unet(folder["diffusion_models"] / "unconditional.safetensors", classes=None)
    write_unet(folder["diffusion_models"] / "conditional.safetensors")
    write_classifier(folder["classifiers"] / "attention.safetensors")
    write_classifier(folder["classifiers"] / "any_size.safetensors", pool="adaptive")
    return folder


@pytest.fixture(scope="session")
def load_model(call, files):
    """(MODEL, VAE) of a model file."""

    def run(name="unconditional.safetensors", noise_schedule="auto", dtype="auto", clip=True):
        inputs = {"model_name": name, "noise_schedule": noise_schedule, "dtype": dtype}
        return call("ADMModelLoader", clip_denoised=clip, **inputs)

    return run


@pytest.fixture(scope="session")
def load_classifier(call, files):
    """A NOISY_CLASSIFIER of a classifier file."""

    def run(name="any_size.safetensors", noise_schedule="auto", dtype="auto"):
        inputs = {"classifier_name": name, "noise_schedule": noise_schedule, "dtype": dtype}
        return call("NoisyClassifierLoader", **inputs)[0]

    return run


@pytest.fixture(scope="session")
def load_image(call, files):
    """A NOISY_CLASSIFIER of clean images: the pack's own judge, unless another is named."""

    def run(gradient="cheap", name="digits_judge.safetensors", vae=None, dtype="fp32", **looks):
        inputs = {"classifier_name": name, "gradient": gradient, "dtype": dtype, **looks}
        return call("ImageClassifierLoader", vae=vae, **inputs)[0]

    return run


@pytest.fixture(scope="session")
def label_of(call):
    """The CONDITIONING of a label."""
    return lambda model, label: call("ADMClassLabel", model=model, label=label)[0]


@pytest.fixture(scope="session")
def adm_sigmas(call, unconditional):
    """ADM Scheduler's SIGMAS."""

    def run(respacing="ddim10", denoise=1.0):
        inputs = {"model": unconditional, "respacing": respacing, "denoise": denoise}
        return call("ADMScheduler", **inputs)[0]

    return run


class Small(torch.nn.Module):
    """A network as ComfyUI calls it."""

    def __init__(self, channels=4, dtype=None, device=None, operations=None):
        super().__init__()
        self.dtype = dtype or torch.float32
        self.layer = operations.Conv2d(channels, channels, 1, dtype=dtype, device=device)

    def forward(self, x, timesteps, **_):
        return self.layer(x)


@pytest.fixture(scope="session")
def core_model(comfy):
    """A core MODEL that is no ADM model: 4-channel latents by default, eps or flow."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    def make(kind="EPS", latent_format=comfy.latent_formats.SD15, network=Small):
        class Config(comfy.supported_models_base.BASE):
            unet_extra_config = {}

        Config.latent_format = latent_format
        config = Config({"channels": latent_format.latent_channels})
        config.set_inference_dtype(torch.float32, None)
        config.sampling_settings = {}
        model = comfy.model_base.BaseModel(
            config, getattr(comfy.model_base.ModelType, kind), unet_model=network
        )
        torch.nn.init.normal_(model.diffusion_model.layer.weight, std=0.1)
        torch.nn.init.zeros_(model.diffusion_model.layer.bias)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)

    return make


@pytest.fixture(scope="session")
def place_classifier(pack_module):
    """A NOISY_CLASSIFIER around any network, as the loader gives one for a file."""

    def run(network, classes=4):
        kind = pack_module("nodes.host.classifiers").PlacedClassifier
        placed = pack_module("nodes.host.patcher").placed
        labels = [f"class {index}" for index in range(classes)]
        classifier = pack_module("guidance").NoisyClassifier(network, "linear", labels)
        return kind(classifier, placed(network), type(network).__name__)

    return run


@pytest.fixture(scope="session")
def exact_model(core_model):
    """A core MODEL of the mixture in tests/mixture.py, exact through core's own model sampling."""
    import comfy.latent_formats
    import comfy.model_sampling

    class Plane(comfy.latent_formats.LatentFormat):
        latent_channels = 2

    def make(kind, noise_scale=1.0):
        patcher = core_model("EPS" if kind == "X0" else kind, Plane)
        model = patcher.model
        if kind == "X0":

            class Direct(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0):
                pass

            model.model_sampling = Direct()
        sampling = model.model_sampling
        if noise_scale != 1.0:
            sampling.noise_scale = noise_scale
        data = float(getattr(sampling, "sigma_data", 1.0))

        # core casts what a network puts out to float32
        def apply_model(x, sigma, **_):
            flow = OUTPUTS[kind] == "flow"
            level = sigma.view(-1, 1)
            alpha = 1 - level if flow else torch.ones_like(level)
            unit = level * noise_scale if flow else level
            flat = x.flatten(1)
            output = network_output(OUTPUTS[kind], flat, unit, alpha, data, noise_scale)
            return sampling.calculate_denoised(sigma, output.view_as(x), x)

        model.apply_model = apply_model
        return patcher

    return make


@pytest.fixture(scope="session")
def exact_classifier(place_classifier):
    """The mixture's NOISY_CLASSIFIER."""
    return place_classifier(ExactClassifier(NoiseSchedule("linear")), 3)


@pytest.fixture(scope="session")
def mixtures(place_classifier):
    """Two NOISY_CLASSIFIERs that images can be steered by."""
    return [place_classifier(Mixture(seed)) for seed in (0, 1)]


@pytest.fixture(scope="session")
def steered(call):
    """The MODEL with Classifier Guidance."""

    def run(model, classifier, label="0,3", scale=2.0, **options):
        inputs = {"model": model, "classifier": classifier, "label": label, "scale": scale}
        return call("ClassifierGuidance", **inputs, **options)[0]

    return run


@pytest.fixture(scope="session")
def sampler_of(call):
    """A SAMPLER: a core one's name stays, "ddpm of the pack", or one that copies its options."""

    def run(name):
        if name == "copies its options":
            return copying_sampler()
        return call("SamplerADM", method=name[:4], eta=0.0)[0] if "pack" in name else name

    return run


@pytest.fixture(scope="session")
def made(call):
    """A GUIDANCE_SCHEDULE by the node."""

    def run(shape, **inputs):
        return call("GuidanceSchedule", **SCHEDULE_INPUTS | inputs | {"shape": shape})[0]

    return run


@pytest.fixture(scope="session")
def scheduled(call, made):
    """The MODEL with CFG Scale Scheduler: a schedule, or the scale of a constant one."""

    def run(model, schedule, **cache):
        if isinstance(schedule, float):
            schedule = made("constant", scale=schedule)
        return call("CFGScaleScheduler", model=model, schedule=schedule, **cache)[0]

    return run


@pytest.fixture(scope="session")
def wiring(call, call_core, label_of, load_model):
    """Core's guiders and patches around a MODEL: `wiring.guider(kind, model)`, `wiring.patched`."""
    return Wiring(call, call_core, label_of, load_model()[0])


@pytest.fixture(scope="session")
def conditional(load_model):
    """A MODEL with classes that draw different images, which random weights hardly do."""
    return classes_apart(load_model("conditional.safetensors")[0])


@pytest.fixture(scope="session")
def unclipped(load_model):
    """The same, its denoised images as they come out of the network."""
    return classes_apart(load_model("conditional.safetensors", clip=False)[0])


@pytest.fixture(scope="session")
def unconditional(load_model):
    """A MODEL without classes."""
    return load_model()[0]


def classes_apart(model):
    """The MODEL, its labels a hundred times as strong."""
    model.model.diffusion_model.label_emb.weight.data *= 100
    return model
