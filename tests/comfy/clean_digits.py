"""A small classifier of clean digits, as Hugging Face's tools would leave it in a folder.

PYTHONPATH=tests python tests/comfy/clean_digits.py FOLDER [NOISE] trains it in less than a minute.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import real_digits
import torch
import torch.nn.functional as F

HELD_OUT = 500


@cache
def digits():
    """5,000 digits of MNIST, RGB (N, 3, 32, 32) in [-1, 1], and what each is, in a fixed order."""
    grey, labels = real_digits.real_digits()
    images = torch.from_numpy(grey).float() / 127.5 - 1
    return images[:, None].expand(-1, 3, -1, -1), torch.from_numpy(labels)


def train(model, steps: int = 400, noise: float = 1.0, shift: int = 2) -> float:
    """Trains a model of transformers; returns its accuracy on images that it has not seen.

    Shifts and noise: without them the gradients point to what only this network takes for a digit.
    """
    images, labels = digits()
    held_out = len(images) - HELD_OUT
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    fall = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(held_out, (64,), generator=draws)
        moved = torch.randint(-shift, shift + 1, (2,), generator=draws).tolist()
        batch = images[chosen].roll(moved, (2, 3))
        level = noise * torch.rand(len(batch), 1, 1, 1, generator=draws)
        batch = batch + level * torch.randn(batch.shape, generator=draws)
        loss = F.cross_entropy(model(pixel_values=batch).logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fall.step()
    model.eval()
    with torch.no_grad():
        guesses = model(pixel_values=images[held_out:]).logits.argmax(dim=1)
    return float((guesses == labels[held_out:]).float().mean())


def new_resnet():
    """A small ResNet of transformers, not trained."""
    from transformers import ResNetConfig, ResNetForImageClassification

    names = {index: f"digit {index}" for index in range(10)}
    shape = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1]}
    shape |= {"layer_type": "basic", "hidden_act": "silu"}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    torch.manual_seed(0)
    return ResNetForImageClassification(ResNetConfig(**shape, **labels))


def save(model, folder: Path) -> None:
    """The folder, with how its images are to be prepared."""
    model.save_pretrained(folder)
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3}
    processor |= {"image_std": [0.5] * 3, "resample": 2, "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


if __name__ == "__main__":
    level = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    resnet = new_resnet()
    found = train(resnet, noise=level)
    save(resnet, Path(sys.argv[1]))
    print(f"{sys.argv[1]}: {found:.3f} of the digits it has not seen")
