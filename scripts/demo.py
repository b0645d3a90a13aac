"""Draw digits with a model that knows no classes, guided by a classifier: `python3 run.py demo`.

In ComfyUI where there is one, else with the sampler in guidance/. Either way the same job: the
label and the scale are those of the template that users of ComfyUI see.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from comfy_server import ComfyServer
from comfyui import ComfyUI, ComfyUIError, NoComfyUI, find_comfyui, tilde

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "example_workflows" / "classifier_guided_digits.json"
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
    """Run the demo and return its exit status."""
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
    asked = torch.tensor(labels * len(SEEDS))
    print(f"The judge reads {accuracy(images, asked):.0%} of the digits as what was asked for.")
    print(tilde(GRID))
    return 0


def widgets(workflow: dict, node_type: str) -> list:
    """The widget values of the workflow's node of a type, to be read or changed."""
    for node in workflow["nodes"]:
        if node["type"] == node_type:
            return node["widgets_values"]
    raise ValueError(f"{TEMPLATE.name} has no {node_type} node.")


def sample_in_comfyui(comfyui: ComfyUI, template: dict) -> np.ndarray:
    """Run the template once per seed; uint8 images (N, H, W, 3), seed by seed."""
    sampler = widgets(template, "KSampler")
    sampler[AFTER_GENERATE] = "fixed"
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
    """Do the same with `python -m guidance sample`; uint8 images (N, H, W, 3), seed by seed."""
    from guidance.__main__ import main as guidance_command

    count = len(SEEDS) * len(labels)
    samples = GRID.with_suffix(".npz")
    samples.parent.mkdir(exist_ok=True)
    arguments = {
        "model": MODEL,
        "classifier": CLASSIFIER,
        "label": ",".join(map(str, labels)),
        "scale": widgets(template, "ClassifierGuidance")[SCALE],
        "method": "ddim",
        "respacing": "ddim50",
        "num-samples": count,
        "batch-size": count,
        "seed": SEEDS[0],
        "output": samples,
    }
    command = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    if guidance_command(["sample", *command]) != 0:
        raise ValueError("the sampler ended with the error above.")
    with np.load(samples) as saved:
        return saved["arr_0"]


def save_grid(images: np.ndarray, columns: int, path: Path) -> None:
    """Save images (N, H, W, C) as one picture, row by row, enlarged without smoothing."""
    count, height, width, channels = images.shape
    rows = images.reshape(count // columns, columns, height, width, channels)
    picture = rows.transpose(0, 2, 1, 3, 4).reshape(-1, columns * width, channels)
    picture = picture.repeat(ENLARGE, axis=0).repeat(ENLARGE, axis=1)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture.squeeze()).save(path)


def accuracy(images: np.ndarray, asked: torch.Tensor) -> float:
    """The share of images (N, H, W, C) that the judge, a clean-image classifier, finds right."""
    import guidance
    from guidance.core.images import from_uint8

    judge = guidance.load_classifier(JUDGE)
    x = from_uint8(images)
    with torch.no_grad():
        found = judge.log_probs(x, torch.zeros(len(x))).argmax(dim=1)
    return (found.cpu() == asked).float().mean().item()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ComfyUIError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted; nothing was written.")
