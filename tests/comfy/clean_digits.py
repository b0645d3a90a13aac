"""A small classifier of clean digits, as Hugging Face's tools would leave it in a folder.

PYTHONPATH=tests python tests/comfy/clean_digits.py FOLDER [NOISE] [KIND] trains it in a minute or
two. KIND: resnet, vit, or clip, whose classes are words: "0" to "9", or "a photo of the digit 7".
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import real_digits
import torch
import torch.nn.functional as F
from tiny_zero_shot import SPECIAL, WORDS, write_tokenizer

HELD_OUT = 500
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
TOWER |= {"num_attention_heads": 4}
PATCHES = {"image_size": 32, "patch_size": 4}


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
    rate = 5e-3 if steps == 400 else 1e-3
    fall = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(held_out, (64,), generator=draws)
        moved = torch.randint(-shift, shift + 1, (2,), generator=draws).tolist()
        batch = images[chosen].roll(moved, (2, 3))
        level = noise * torch.rand(len(batch), 1, 1, 1, generator=draws)
        batch = batch + level * torch.randn(batch.shape, generator=draws)
        loss = F.cross_entropy(logits_of(model, batch), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fall.step()
    model.eval()
    with torch.no_grad():
        guesses = logits_of(model, images[held_out:]).argmax(dim=1)
    return float((guesses == labels[held_out:]).float().mean())


def logits_of(model, images):
    """(B, 10), of a CLIP those of the ten digits as words."""
    if not hasattr(model, "logit_scale"):
        return model(pixel_values=images).logits
    start, end = SPECIAL.index("<s>"), SPECIAL.index("</s>")
    words = [[start, len(SPECIAL) + WORDS.index(digit), end] for digit in "0123456789"]
    return model(input_ids=torch.tensor(words), pixel_values=images).logits_per_image


def new_resnet():
    """A small ResNet of transformers, not trained."""
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1]}
    shape |= {"layer_type": "basic", "hidden_act": "silu"}
    torch.manual_seed(0)
    return ResNetForImageClassification(ResNetConfig(**shape, **named()))


def new_vit():
    """A small ViT."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**TOWER, **PATCHES, **named()))


def new_clip():
    """A small CLIP."""
    from transformers import CLIPConfig, CLIPModel

    text = TOWER | {"vocab_size": len(SPECIAL + WORDS), "max_position_embeddings": 12}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=TOWER | PATCHES, projection_dim=64)
    return CLIPModel(config)


def named():
    """The classes of a config."""
    names = {index: f"digit {index}" for index in range(10)}
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


def save(model, folder: Path) -> None:
    """The folder, with how its images are to be prepared."""
    model.save_pretrained(folder)
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3}
    processor |= {"image_std": [0.5] * 3, "resample": 2, "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


if __name__ == "__main__":
    level = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    kind = sys.argv[3] if len(sys.argv) > 3 else "resnet"
    made = {"resnet": new_resnet, "vit": new_vit, "clip": new_clip}[kind]()
    found = train(made, steps=400 if kind == "resnet" else 2000, noise=level)
    save(made, Path(sys.argv[1]))
    if kind == "clip":
        write_tokenizer(Path(sys.argv[1]), "<s> $A </s>")
    print(f"{sys.argv[1]}: {found:.3f} of the digits it has not seen")
