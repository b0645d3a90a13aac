"""The templates for the user's own models: what they sample, run with core's models, shrunk."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from core_guiders import SAMPLING
from sampler_runs import counted_calls, counted_passes
from tiny_zero_shot import write_zero_shot
from zoo import ZOO, prompt, zoo_model, zoo_vae

CUSTOM = ("DualModelGuider", "RandomNoise", "KSamplerSelect", "BasicScheduler")
MODULES = {
    **dict.fromkeys(("KSampler", "KSamplerAdvanced"), "nodes"),
    **dict.fromkeys((*CUSTOM, "SamplerCustomAdvanced"), SAMPLING),
    "FluxGuidance": "comfy_extras.nodes_flux",
    "ModelSamplingSD3": "comfy_extras.nodes_model_advanced",
}
# what only shows or saves the result
LEFT_OUT = {"VAEDecode", "SaveImage", "CreateVideo", "SaveVideo", "MarkdownNote"}
BYPASSED = 4
SIDES = ("positive", "negative")


class Template:
    """A saved graph. The tests find a node by its title, or by its type if it has none."""

    def __init__(self, path):
        self.graph = json.loads(path.read_text("utf-8"))
        self.nodes = {self.name(node): node for node in self.graph["nodes"]}

    @staticmethod
    def name(node):
        """Its title or its type."""
        return node.get("title", node["type"])

    @staticmethod
    def values(node):
        """A node's widgets; a seed's second one is the page's own."""
        names = [one["name"] for one in node["inputs"] if "widget" in one]
        values = [one for one in node["widgets_values"] if one not in ("randomize", "fixed")]
        return dict(zip(names, values, strict=True))

    def run(self, given, call, call_core, changed=None):
        """The outputs of its nodes by name; given: of some nodes; changed: some widgets."""
        outputs = {}
        links = {one[0]: (one[1], one[2]) for one in self.graph["links"]}
        for node in sorted(self.graph["nodes"], key=lambda node: node["order"]):
            name, kind = self.name(node), node["type"]
            if kind in LEFT_OUT:
                continue
            linked = {one["name"]: links[one["link"]] for one in node["inputs"] if one["link"]}
            if name in given:
                result = given[name]
            else:
                inputs = {key: outputs[source][slot] for key, (source, slot) in linked.items()}
                inputs |= self.values(node) | (changed or {}).get(name, {})
                result = self._called(node, inputs, call, call_core)
            outputs[node["id"]] = result
        return {name: outputs.get(node["id"]) for name, node in self.nodes.items()}

    @staticmethod
    def _called(node, inputs, call, call_core):
        kind = node["type"]
        if node["mode"] == BYPASSED:
            return (next(iter(inputs.values())),)  # what is linked comes first
        if kind in MODULES:
            return call_core(MODULES[kind], kind, **inputs)
        return call(kind, **inputs)


def given(kind, *latent):
    """The prompts and the empty latent of a kind of model, by the names that templates use."""
    named = {f"CLIP Text Encode ({side})": (prompt(kind, seed),) for seed, side in enumerate(SIDES)}
    return named | {name: ({"samples": torch.zeros(1, *kind.shape)},) for name in latent}


@pytest.mark.parametrize("name", ["SDXL", "SD 1.5", "Flux"])
def test_cfg_in_the_middle_of_the_run_for_your_checkpoint(root, call, call_core, name):
    template = Template(root / "example_workflows" / "09 Schedule CFG on your checkpoint.json")
    model, passes = counted_passes(zoo_model(ZOO[name]))
    sampler, changed = "KSampler (cfg: from the schedule)", {}
    if name == "Flux":  # as its note says
        template.nodes["FluxGuidance (for Flux only)"]["mode"] = 0
        changed = {sampler: {"sampler_name": "euler", "scheduler": "simple"}}
    files = {"CheckpointLoaderSimple": (model, None, None)}
    outputs = template.run(files | given(ZOO[name], "EmptyLatentImage"), call, call_core, changed)
    schedule = template.values(template.nodes["GuidanceSchedule"])
    seen = json.loads(outputs["GuidancePlot"][1])["evaluations"]
    inside = [schedule["start"] <= one["percent"] <= schedule["end"] for one in seen]
    assert [one["cfg"] for one in seen] == [7.0 if within else 1.0 for within in inside]
    assert [one["passes"] for one in seen] == [1 + within for within in inside]
    assert len(seen) == template.values(template.nodes[sampler])["steps"] == 25
    assert len(passes) == 25 + sum(inside)
    if name != "Flux":
        assert len(passes) == 37  # as its note says


def test_each_of_two_models_follows_its_own_schedule(root, call, call_core):
    template = Template(root / "example_workflows" / "11 Schedule CFG for Wan 2.2.json")
    kind = ZOO["Wan 2.1"]
    models = {noise: counted_passes(zoo_model(kind)) for noise in ("high noise", "low noise")}
    files = {f"Load Diffusion Model ({noise})": (model,) for noise, (model, _) in models.items()}
    files |= {"CLIPLoader": (None,), "VAELoader": (None,)}
    outputs = template.run(files | given(kind, "EmptyHunyuanLatentVideo"), call, call_core)
    high, low = (
        outputs[f"Guidance Trace ({noise})"][1].to_dict()["evaluations"] for noise in models
    )
    # 20 steps, even in percent, through both samplers
    percent = [one["percent"] for one in high + low]
    assert percent == pytest.approx([step / 20 for step in range(20)], abs=1e-3)
    assert [one["cfg"] for one in high] == pytest.approx(
        [4 - 2 * share for share in percent[:10]], abs=1e-6
    )
    assert [one["cfg"] for one in low] == [3.0] * 7 + [1.0] * 3
    assert [len(passes) for _, passes in models.values()] == [20, 17]


def test_the_worse_model_is_only_run_where_the_scale_is_not_1(root, call, call_core):
    template = Template(root / "example_workflows" / "12 Guide with a worse model.json")
    kind = ZOO["SD 1.5"]
    better, worse = zoo_model(kind), zoo_model.__wrapped__(kind)
    with torch.inference_mode():
        for weight in worse.model.diffusion_model.parameters():
            weight.mul_(0.9)
    calls = [counted_calls(one.model.diffusion_model) for one in (better, worse)]
    files = {
        "Load Checkpoint (the model)": (better, None, None),
        "Load Checkpoint (its worse version)": (worse, None, None),
        "CLIP Text Encode (for both)": (prompt(kind, 0),),
    }
    outputs = template.run(files | given(kind, "EmptyLatentImage"), call, call_core)
    seen = outputs["GuidanceTrace"][1].to_dict()["evaluations"]
    assert [one["cfg"] for one in seen] == [2.5] * 14 + [1.0] * 11
    assert [one["passes"] for one in seen] == [2] * 14 + [1] * 11  # 39, as its note says
    assert [sum(one) for one in calls] == [25, 14]
    assert all(one["cfg_norm"] > 0 for one in seen[:14])  # two models, not one twice


def test_words_guide_your_checkpoint(root, call, call_core, files):
    """CLIP reads the predicted image until 0.7 of the run; SDXL and CLIP are shrunk."""
    template = Template(root / "example_workflows" / "10 Guide your checkpoint by words.json")
    kind = ZOO["SDXL"]
    folder = template.values(template.nodes["ZeroShotClassifier"])["classifier_name"]
    write_zero_shot(files["classifiers"] / folder, "clip")
    given_files = {
        "CheckpointLoaderSimple": (zoo_model(kind), None, None),
        "Load VAE (small, for the classifier)": (zoo_vae(kind),),
        "ClassifyImage": None,
    }
    outputs = template.run(given_files | given(kind, "EmptyLatentImage"), call, call_core)
    shutil.rmtree(files["classifiers"] / folder)
    trace = json.loads(outputs["GuidancePlot"][1])
    acted = [bool(one["classifiers"]) for one in trace["evaluations"]]
    assert len(acted) == 25
    within = [one["percent"] <= 0.7 for one in trace["evaluations"]]
    scales = [sum(c["scale"] for c in one["classifiers"] if c) for one in trace["evaluations"]]
    assert [scale == 1 for scale in scales] == within and 0 < sum(within) < 25
