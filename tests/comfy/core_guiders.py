"""Core's guiders, regions and patches of CFG, as graphs wire them."""

from __future__ import annotations

import torch
from tiny_models import SIZE

SAMPLING = "comfy_extras.nodes_custom_sampler"
PATCHES = {
    "RescaleCFG": ("nodes_model_advanced", {"multiplier": 0.7}),
    "APG": ("nodes_apg", {"eta": 0.0, "norm_threshold": 15.0, "momentum": -0.5}),
    "CFGZeroStar": ("nodes_cfg", {}),
    "CFGNorm": ("nodes_cfg", {"strength": 1.0}),
    "TCFG": ("nodes_tcfg", {}),
    "Mahiro": ("nodes_mahiro", {}),
    "CFGOverride": ("nodes_custom_sampler", {"cfg": 1.0, "start_percent": 0.2, "end_percent": 1.0}),
    "PerpNeg": ("nodes_perpneg", {"neg_scale": 0.7}),
}
GUIDERS = ["basic", "cfg 1", "cfg 3", "cfg of the pack"]
GUIDERS += ["perp-neg", "dual", "nested dual", "dual model", "areas", "masks"]


def region():
    """A soft MASK: 1 on the left, 0 on the right."""
    return torch.linspace(1.5, -0.5, SIZE).clamp(0, 1).expand(1, SIZE, SIZE).contiguous()


class Wiring:
    """Wires nodes; made of the fixtures `call`, `call_core` and `label_of`."""

    def __init__(self, call, call_core, label_of, unconditional):
        self.call, self.call_core, self.label_of = call, call_core, label_of
        self.unconditional = unconditional

    def patched(self, name, model):
        """The MODEL with the core patch of that name."""
        module, options = PATCHES[name]
        if name == "PerpNeg":
            options = options | {"empty_conditioning": self.label_of(model, "")}
        return self.call_core(f"comfy_extras.{module}", name, model=model, **options)[0]

    def guider(self, kind, model, first="1,2"):
        """A GUIDER of that kind, towards the labels `first`; without labels if the MODEL has none.

        Kinds with a number are core's CFGGuider at that cfg.
        """
        labels = (first, "2,0", "") if self._conditional(model) else ("", "", "")
        one, two, none = (self.label_of(model, label) for label in labels)
        pair = {"model": model, **self.pair(model, first)}
        all_three = {"cond1": one, "cond2": two, "negative": none}
        match kind:
            case "basic":
                return self._sampling("BasicGuider", model=model, conditioning=one)
            case "cfg 0" | "cfg 1" | "cfg 3":
                return self._sampling("CFGGuider", **pair, cfg=float(kind[4:]))
            case "cfg 3 against":  # another class, not none
                return self._sampling("CFGGuider", **pair | {"negative": two}, cfg=3.0)
            case "cfg of the pack":
                return self.call("ClassifierFreeGuidance", **pair, cfg=3.0)[0]
            case "perp-neg":
                conds = {"positive": one, "negative": two, "empty_conditioning": none}
                node = ("comfy_extras.nodes_perpneg", "PerpNegGuider")
                return self.call_core(*node, model=model, **conds, cfg=3.0, neg_scale=0.7)[0]
            case "dual" | "nested dual":
                style = "regular" if kind == "dual" else "nested"
                # nested, both multiply, and the result is not clipped
                scales = (3.0, 2.0) if kind == "dual" else (1.5, 1.5)
                scales = dict(zip(("cfg_conds", "cfg_cond2_negative"), scales, strict=True))
                return self._sampling(
                    "DualCFGGuider", model=model, **all_three, **scales, style=style
                )
            case "dual model":
                other = {"model_negative": self.unconditional}
                return self._sampling("DualModelGuider", **pair, **other, cfg=3.0)
            case "areas" | "masks":
                positive = self._areas(model) if kind == "areas" else self._masks(model)
                return self._sampling("CFGGuider", **pair | {"positive": positive}, cfg=3.0)
        raise KeyError(kind)

    def cfg_guider(self, model, cfg=7.0):
        """Core's CFGGuider at any cfg."""
        guider = self.guider("cfg 3", model)
        guider.set_cfg(cfg)
        return guider

    def pair(self, model, first="1,2"):
        """positive and negative: those labels against none."""
        positive = self.label_of(model, first if self._conditional(model) else "")
        return {"positive": positive, "negative": self.label_of(model, "")}

    def ksampler(self, model, latent, cfg=3.0, steps=4, **inputs):
        """The LATENT that core's KSampler draws; denoise=..., seed=..."""
        inputs = self._euler(model, latent, cfg, steps) | {"seed": 7} | inputs
        return self.call_core("nodes", "KSampler", **inputs)[0]

    def ksampler_advanced(self, model, latent, cfg=3.0, steps=4, start=0, end=None, fresh=None):
        """The same of KSamplerAdvanced, from step `start` to step `end`; fresh: with new noise."""
        return self.call_core(
            "nodes",
            "KSamplerAdvanced",
            **self._euler(model, latent, cfg, steps),
            noise_seed=7,
            add_noise="enable" if fresh or not start else "disable",
            start_at_step=start,
            end_at_step=end or 10000,
            return_with_leftover_noise="enable" if end else "disable",
        )[0]

    def _euler(self, model, latent, cfg, steps):
        named = {"sampler_name": "euler", "scheduler": "normal", "steps": steps, "cfg": cfg}
        return {"model": model, "latent_image": latent, **self.pair(model), **named}

    @staticmethod
    def _conditional(model):
        return model.model.layout.num_classes is not None

    def _sampling(self, name, **inputs):
        return self.call_core(SAMPLING, name, **inputs)[0]

    def _areas(self, model):
        """Label 1 in the left half, 3 in the right; the node counts in eighths of a pixel."""
        size = {"width": 8 * SIZE // 2, "height": 8 * SIZE, "y": 0}
        places = [{**size, "x": 0}, {**size, "x": 8 * SIZE // 2}]
        return self._regions(model, "ConditioningSetArea", places)

    def _masks(self, model):
        """Label 1 where `region` is, 3 elsewhere."""
        places = [{"mask": m, "set_cond_area": "default"} for m in (region(), 1 - region())]
        return self._regions(model, "ConditioningSetMask", places)

    def _regions(self, model, node, places):
        conds = []
        for label, place in zip("13", places, strict=True):
            text = self.label_of(model, label)
            conds += self.call_core("nodes", node, conditioning=text, strength=1.0, **place)[0]
        return conds
