"""What the pack does on a model of the zoo, feature by feature and guider by guider.

Each feature is run, and what it did is compared with core: "works", or the pack's own sentence.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
from sampler_runs import core_guider, counted_calls, drawn, evaluated, few_sigmas
from zoo import Kind, latent, prompt, zoo_model, zoo_vae
from zoo_patches import controlled, patched

STEPS, HALF, CFG, INTERVAL = 6, 3, 3.0, 3
SAMPLING = "comfy_extras.nodes_custom_sampler"
GUIDERS = ("KSampler", "CFGGuider", "BasicGuider", "DualCFGGuider", "PerpNegGuider")
GUIDERS += ("DualModelGuider", "Classifier-Free Guidance")
WITHOUT_ONE_CFG = ("BasicGuider", "DualCFGGuider")
WORKS = "works"


class Cells:
    """The features on a model; made of the fixtures `call`, `call_core` and what they need."""

    def __init__(self, call, call_core, made, place_classifier, load_image, said, patch=""):
        self.call, self.call_core, self.made = call, call_core, made
        self.place_classifier, self.load_image = place_classifier, load_image
        self.said, self.patch = said, patch  # a name of zoo_patches.PATCHES

    def outcome(self, feature: str, kind: Kind, guider: str = "CFGGuider") -> str:
        """WORKS, or the sentence in which the pack refuses or says that it has no effect."""
        run: Callable[..., str | None] = getattr(self, feature.replace(" ", "_"))
        try:
            return run(kind, guider) or WORKS
        except ValueError as error:
            assert _is_ours(error), error
            return str(error)

    def schedule(self, kind: Kind, guider: str) -> str | None:
        """A constant is core's cfg, and an interval core's with a cfg that changes; passes, too."""
        model = self._model(kind)
        constant = self.made("constant", scale=CFG)
        assert torch.equal(*self._both(kind, guider, constant, [CFG] * STEPS))
        half = self.made("interval", axis="step", scale=CFG, end=0.5)
        passes = counted_calls(model.model.diffusion_model)
        ours = self._draw(kind, guider, self._scheduled(model, half))
        taken = sum(passes)
        passes.clear()
        cores = self._draw(kind, guider, model, cfgs=[CFG] * HALF + [1.0] * (STEPS - HALF))
        assert torch.equal(ours, cores) and taken == sum(passes)

    def cfg_interval(self, kind: Kind, guider: str) -> str | None:
        """The negative's passes are taken at every third step, or the node says why not."""
        return self._cached(kind, guider, STEPS // INTERVAL, cfg_interval=INTERVAL)

    def tolerance(self, kind: Kind, guider: str) -> str | None:
        """The same at the steps that a wide tolerance takes: the first and the fifth."""
        return self._cached(kind, guider, 2, tolerance=0.9)

    def trace(self, kind: Kind, guider: str) -> str | None:
        """Its passes are the network's, and its cfg is the guider's."""
        model, trace = self.call("GuidanceTrace", model=self._model(kind))
        passes = counted_calls(model.model.diffusion_model)
        self._draw(kind, guider, model)
        seen = trace.to_dict()
        assert seen["passes"] * kind.frames == sum(passes)
        assert [one["step"] for one in seen["evaluations"]] == list(range(STEPS))
        if guider not in WITHOUT_ONE_CFG:
            assert {one["cfg"] for one in seen["evaluations"]} == {CFG}

    def noisy_classifier(self, kind: Kind, guider: str) -> str | None:
        """The gradient of log p(label | x) is added with its weight."""
        model, sigma = self._model(kind), self._sigma(kind)
        network = Readout(kind.shape[0])
        classifier = self.place_classifier(network, classes=4)
        x, guided = sigma * latent(kind), self._steered(kind, classifier)
        plain = self._evaluated(kind, guider, model, x)
        term = self._evaluated(kind, guider, guided, x) - plain
        alpha = self._alpha(model, sigma)
        x_in = (x / (alpha**2 + sigma**2) ** 0.5).requires_grad_()
        (gradient,) = torch.autograd.grad(log_p(network(x_in.flatten(2), None)), x_in)
        weight = sigma**2 / alpha / (alpha**2 + sigma**2) ** 0.5
        assert is_close(term, 2.0 * weight * gradient, plain)

    def cheap(self, kind: Kind, guider: str) -> str | None:
        """A classifier of clean images, of the image that the VAE decodes."""
        return self._clean(kind, guider, "cheap")

    def exact(self, kind: Kind, guider: str) -> str | None:
        """The same, through the whole model, as autograd differentiates core's own chain."""
        return self._clean(kind, guider, "exact")

    def repeat(self, kind: Kind, guider: str) -> str | None:
        """The same bits after another prompt, after an interruption, and after an unload."""
        import comfy.model_management as management

        model = self._model(kind)
        if not kind.is_video:
            model = self._steered(kind, self.place_classifier(Readout(kind.shape[0]), classes=4))
        if guider not in WITHOUT_ONE_CFG:
            schedule = self.made("linear", axis="step", scale=CFG)
            model = self._scheduled(model, schedule, cfg_interval=2)
        first = self._draw(kind, guider, model)
        assert not torch.equal(self._draw(kind, guider, model, seed=2), first)
        assert torch.equal(self._draw(kind, guider, model), first)

        def interrupt(step, *_):
            if step == 1:
                raise management.InterruptProcessingException()

        try:
            self._draw(kind, guider, model, callback=interrupt)
        except management.InterruptProcessingException:
            pass
        else:
            raise AssertionError("it was not interrupted")
        assert torch.equal(self._draw(kind, guider, model), first)
        management.unload_all_models()
        assert torch.equal(self._draw(kind, guider, model), first)

    def _cached(self, kind: Kind, guider: str, computed: int, **cache: Any) -> str | None:
        model = self._model(kind)
        passes = counted_calls(model.model.diffusion_model)
        self._draw(kind, guider, model)
        full = sum(passes)
        passes.clear()
        self.said.clear()
        self._draw(kind, guider, self._scheduled(model, self.made("constant", scale=CFG), **cache))
        if self.said.text:
            assert sum(passes) == full
            return self.said.messages[-1]
        others = kind.frames * (2 if guider == "PerpNegGuider" else 1)  # that a term is made of
        assert sum(passes) == full - others * (STEPS - computed)

    def _clean(self, kind: Kind, guider: str, gradient: str) -> str | None:
        classifier = self.load_image(gradient, vae=zoo_vae(kind))
        sigma = self._sigma(kind)
        x = sigma * latent(kind)
        alpha = self._alpha(self._model(kind), sigma)
        for attention in (None, "pytorch"):  # what core takes on a CPU, and on an NVIDIA GPU
            model = with_attention(self._model(kind), attention)
            guided = self._steered(kind, classifier, model)
            try:
                guided_image = self._evaluated(kind, guider, guided, x)
            except ValueError:
                if gradient == "exact" and not kind.is_video:
                    assert self._chain(kind, guider, classifier, x, attention, True) is None
                raise
            plain = self._evaluated(kind, guider, model, x)
            whole = gradient == "exact"
            wanted = self._chain(kind, guider, classifier, x, attention, whole)
            weight = sigma**2 / alpha if whole else sigma**2 / (alpha**2 + sigma**2)
            assert is_close(guided_image - plain, 2.0 * weight * wanted, plain)
        return None

    def _chain(self, kind, guider, classifier, x, attention, whole):
        """Autograd of log p(label | decoded image) by x, or by the denoised image; core alone.

        None if torch cannot differentiate core's model, although copies of all that its backward
        pass reads are kept: some models write into it.
        """
        import comfy.model_management as management
        import comfy.samplers

        model = with_attention(self._model(kind, ordinary=True), attention)
        image, vae, found = classifier.classifier, zoo_vae(kind).first_stage_model, []

        def once(denoise, begin, sigmas, extra_args=None, **_):
            x_in = x.clone().requires_grad_()
            with torch.set_grad_enabled(whole):
                denoised = denoise(x_in, sigmas[:1].repeat(len(x)), **extra_args)
            at = x_in if whole else denoised.detach().requires_grad_()
            latents = model.model.process_latent_out(denoised if whole else at)
            pixels = vae.decode(latents)
            pixels = pixels.squeeze(2) if pixels.ndim == 5 else pixels
            found.extend(torch.autograd.grad(log_p(image.network(image.preprocessing(pixels))), at))
            return begin

        sampler, sigmas = comfy.samplers.KSAMPLER(once), torch.tensor([self._sigma(kind), 0.0])
        management.in_training = True
        try:
            copies = torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.Tensor.detach)
            with torch.enable_grad(), copies:
                asked = self._guider(kind, guider, model)
                asked.sample(torch.zeros_like(x), torch.zeros_like(x), sampler, sigmas, seed=1)
        except RuntimeError:
            return None
        finally:
            management.in_training = False
        return found[0]

    def _model(self, kind, ordinary=False):
        """The model of the zoo, patched."""
        model = zoo_model(kind, ordinary=True) if ordinary else zoo_model(kind)
        return patched(self.call_core, self.patch, model)

    def _scheduled(self, model, schedule, **cache):
        return self.call("CFGScaleScheduler", model=model, schedule=schedule, **cache)[0]

    def _steered(self, kind, classifier, model=None):
        inputs = {"classifier": classifier, "label": "1", "scale": 2.0}
        return self.call("ClassifierGuidance", model=model or self._model(kind), **inputs)[0]

    def _both(self, kind, guider, schedule, cfgs):
        model = self._model(kind)
        ours = self._draw(kind, guider, self._scheduled(model, schedule))
        return ours, self._draw(kind, guider, model, cfgs=cfgs)

    def _draw(self, kind, guider, model, cfgs=(), seed=1, callback=None):
        """The latents of a run; cfgs: the guider's cfg at each step, set from outside."""
        if guider == "KSampler" and not cfgs and callback is None:
            return self._ksampler(kind, model, seed)
        asked = self._guider(kind, guider, model, seed)

        def set_cfg(step, *_):
            asked.cfg = [*cfgs, 1.0][step + 1]

        import comfy.sample

        zeros = torch.zeros_like(latent(kind))
        return drawn(
            asked,
            few_sigmas(model, STEPS),
            start=comfy.sample.prepare_noise(zeros, 7),
            seed=7,
            callback=set_cfg if cfgs else callback,
        )

    def _ksampler(self, kind, model, seed):
        named = {"sampler_name": "euler", "scheduler": "normal", "steps": STEPS, "cfg": CFG}
        prompts = {"positive": self._positive(kind, seed), "negative": prompt(kind, 9)}
        empty = {"samples": torch.zeros_like(latent(kind))}
        inputs = {"model": model, "seed": 7, "latent_image": empty, **named, **prompts}
        return self.call_core("nodes", "KSampler", **inputs)[0]["samples"]

    def _positive(self, kind, seed):
        positive = prompt(kind, seed)
        return controlled(self.call_core, positive) if self.patch == "ControlNet" else positive

    def _evaluated(self, kind, guider, model, x):
        return evaluated(self._guider(kind, guider, model), x, self._sigma(kind))

    def _guider(self, kind, name, model, seed=1):
        positive, negative = self._positive(kind, seed), prompt(kind, 9)
        pair = {"model": model, "positive": positive, "negative": negative}
        match name:
            case "KSampler":
                return core_guider(model, CFG, positive, negative)
            case "BasicGuider":
                inputs = {"model": model, "conditioning": positive}
            case "DualCFGGuider":
                conds = {"cond1": positive, "cond2": prompt(kind, 8), "negative": negative}
                inputs = {"model": model, **conds, "cfg_conds": CFG, "cfg_cond2_negative": 2.0}
                inputs["style"] = "regular"
            case "PerpNegGuider":
                empty = {"empty_conditioning": prompt(kind, 8), "neg_scale": 0.7}
                node = ("comfy_extras.nodes_perpneg", name)
                return self.call_core(*node, **pair, **empty, cfg=CFG)[0]
            case "DualModelGuider":
                inputs = {**pair, "model_negative": zoo_model(kind), "cfg": CFG}
            case "Classifier-Free Guidance":
                return self.call("ClassifierFreeGuidance", **pair, cfg=CFG)[0]
            case _:
                inputs = {**pair, "cfg": CFG}
        return self.call_core(SAMPLING, name, **inputs)[0]

    @staticmethod
    def _sigma(kind):
        sampling = zoo_model(kind).get_model_object("model_sampling")
        return float(sampling.percent_to_sigma(0.5))

    @staticmethod
    def _alpha(model, sigma):
        import comfy.model_sampling

        sampling = model.get_model_object("model_sampling")
        return 1 - sigma if isinstance(sampling, comfy.model_sampling.CONST) else 1.0


def _is_ours(error: ValueError) -> bool:
    """Whether the pack raised it: the file of the innermost frame."""
    last = list(traceback.walk_tb(error.__traceback__))[-1][0].f_code.co_filename
    return "/nodes/" in last and "/comfy" not in last or "/guidance/" in last


class Readout(torch.nn.Module):
    """A noisy classifier of latents (B, channels, ...), the same at every noise level."""

    layout = None

    def __init__(self, channels: int, classes: int = 4):
        super().__init__()
        generator = torch.Generator().manual_seed(channels)
        mix = torch.randn(classes, channels, generator=generator)
        self.mix = torch.nn.Parameter(mix, requires_grad=False)

    def forward(self, x, t, **_):
        """Logits (B, classes)."""
        return x.flatten(2).sin().mean(2) @ self.mix.T


def log_p(logits):
    """log p of class 1, summed."""
    return logits.log_softmax(1)[:, 1].sum()


def is_close(term, wanted, plain):
    """Whether a term is as wanted within 1e-4, and what is lost when it is added to `plain`."""
    size, lost = wanted.abs().max(), 4 * torch.finfo(plain.dtype).eps * plain.abs().max()
    assert size > 10 * lost
    return (term - wanted).abs().max() <= 1e-4 * size + lost


def with_attention(model, attention):
    """The MODEL with core's attention of NVIDIA GPUs ("pytorch"), or as it is (None)."""
    if attention is None:
        return model
    from comfy.ldm.modules.attention import attention_pytorch

    model = model.clone()
    options = model.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = lambda _, *a, **b: attention_pytorch(*a, **b)
    return model
