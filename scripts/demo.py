"""Draw digits with a model that knows no classes, guided by a classifier: `python3 run.py demo`.

In ComfyUI where there is one, else with the sampler in guidance/. Either way the same job: the
label and the scale are those of the template that users of ComfyUI see.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from comfy_server import ComfyServer
from comfyui import ComfyUI, ComfyUIError, NoComfyUI, find_comfyui, tilde

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "example_workflows" / "01 Guide digits with a classifier.json"
MODEL = ROOT / "models" / "diffusion_models" / "digits_adm.safetensors"
CLASSIFIER = ROOT / "models" / "classifiers" / "digits_classifier.safetensors"
JUDGE = ROOT / "models" / "classifiers" / "digits_judge.safetensors"
GRID = ROOT / "output" / "classifier_guided_digits.png"
SEEDS = range(5)
ENLARGE = 2

# Where these nodes keep what the demo reads or changes: a saved workflow lists widgets by position.
LABEL, SCALE = 0, 1  # ClassifierGuidance
SEED, AFTER_GENERATE, STEPS = 0, 1, 2  # KSampler


def main() -> int:
    sys.path.append(str(ROOT))  # for `guidance`; last, because nodes/ is a common name
    template = json.loads(TEMPLATE.read_text("utf-8"))
    labels = [int(label) for label in widgets(template, "ClassifierGuidance")[LABEL].split(",")]
    try:
        comfyui = find_comfyui()
    except NoComfyUI as reason:
        print(f"{reason}. Going on with the sampler in guidance/.")
        images = sample_embedded(template, labels)
    else:
        print(f"Using {comfyui}")
        images = sample_in_comfyui(comfyui, template)
    save_grid(images, columns=len(labels), path=GRID)
    share = accuracy(images, labels * len(SEEDS))
    print(f"The judge reads {share:.0%} of the digits as what was asked for.")
    print(tilde(GRID))
    return 0


def widgets(workflow: dict, node_type: str) -> list:
    """The widget values of the workflow's node of a type, to be read or changed."""
    for node in workflow["nodes"]:
        if node["type"] == node_type:
            return node["widgets_values"]
    raise ValueError(f"{TEMPLATE.name} has no {node_type} node.")


def save_each_image(workflow: dict) -> None:
    """Let Save Image have the images as they are decoded, and not the template's grid of them."""
    (decode,) = (node["id"] for node in workflow["nodes"] if node["type"] == "VAEDecode")
    (save,) = (node["id"] for node in workflow["nodes"] if node["type"] == "SaveImage")
    for link in workflow["links"]:  # [id, source, its output, target, its input, type]
        if link[3] == save:
            link[1:3] = decode, 0


def sample_in_comfyui(comfyui: ComfyUI, template: dict) -> np.ndarray:
    """Run the template once per seed; uint8 images (N, H, W, 3), seed by seed."""
    sampler = widgets(template, "KSampler")
    sampler[AFTER_GENERATE] = "fixed"
    save_each_image(template)
    steps = sampler[STEPS]
    pictures: list[np.ndarray] = []
    print("Starting it ...")
    with (
        ComfyServer(comfyui) as server,
        tqdm(total=len(SEEDS) * steps, desc="Sampling", unit="step") as bar,
    ):

        def advance(title: str, done: int, total: int) -> None:
            bar.update(round((run + done / total) * steps) - bar.n)

        for run, seed in enumerate(SEEDS):
            sampler[SEED] = seed
            finished = server.run(template, progress=advance)
            bar.update((run + 1) * steps - bar.n)
            pictures += [np.asarray(Image.open(file).convert("RGB")) for file in finished.images]
    return np.stack(pictures)


def sample_embedded(template: dict, labels: list[int]) -> np.ndarray:
    """Do the same with the sampler in guidance/; uint8 images (N, H, W, 3), seed by seed."""
    from guidance import load_adm, load_classifier
    from guidance.cli.options import device
    from guidance.sampling.generate import SamplingConfig, generate

    count = len(SEEDS) * len(labels)
    scale = widgets(template, "ClassifierGuidance")[SCALE]
    config = SamplingConfig(
        num_samples=count, batch_size=count, label=labels, scale=scale, cfg=0.0, seed=SEEDS[0]
    )
    where = device()
    model, classifier = load_adm(MODEL, device=where), load_classifier(CLASSIFIER, device=where)
    return generate(model, classifier, config)[0]


def save_grid(images: np.ndarray, columns: int, path: Path) -> None:
    """Save images (N, H, W, C) as one picture, row by row, enlarged without smoothing."""
    from guidance.core.images import grid

    picture = grid(images, columns, gap=0).repeat(ENLARGE, axis=0).repeat(ENLARGE, axis=1)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture.squeeze()).save(path)


def accuracy(images: np.ndarray, labels: list[int]) -> float:
    """The share of images (N, H, W, C) that the judge, a clean-image classifier, finds right."""
    from guidance import load_classifier
    from guidance.evaluation.judge import judge_samples

    return judge_samples(load_classifier(JUDGE), images, np.array(labels)).accuracy


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ComfyUIError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted; nothing was written.")
