"""Writes the corpus that the fuzzer starts from: python tests/fuzz/make_corpus.py

What the fuzzer found (found_...) and what took it further (reached_...) is in there, too, and is
left alone.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "unit")]

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny_networks import half_unet, unet, write_model  # noqa: E402

SMALL = {"model_channels": 4, "norm_groups": 2, "channel_mult": (1,), "attention_levels": ()}
SMALL |= {"num_head_channels": 4}
TINY = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2, dtype=torch.half)}


def write_safetensors(folder: Path) -> None:
    classifier = half_unet(**SMALL, pool="adaptive")
    write_model(folder / "classifier.safetensors", classifier, dtype="fp16")
    diffusion = unet(**SMALL, num_classes=None, null_class=None)
    write_model(folder / "diffusion.safetensors", diffusion, labels=None, dtype="bf16")
    save_file(TINY, folder / "foreign.safetensors", {"format": "pt"})
    about = json.dumps({"format": 1, "kind": "classifier", "layout": {}, "labels": ["a"]})
    save_file(TINY, folder / "described.safetensors", {"classifier_guidance": about})
    save_file({}, folder / "nothing.safetensors")


def write_pt(folder: Path) -> None:
    names = half_unet(**SMALL, pool="adaptive").half().state_dict()
    torch.save(names, folder / "classifier.pt")
    torch.save(TINY, folder / "foreign.pt")
    torch.save(TINY, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(TINY, folder / "protocol_4.pt", pickle_protocol=4)
    shared = torch.arange(12.0)
    views = {"all": shared, "some": shared[2:6].view(2, 2).T, "none": torch.zeros(0, 3)}
    torch.save(views | {"p": torch.nn.Parameter(shared[:2])}, folder / "views.pt")
    with zipfile.ZipFile(folder / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("packed/data.pkl", b"\x80\x02}q\x00.")


if __name__ == "__main__":
    write_safetensors(HERE / "corpus" / "safetensors")
    write_pt(HERE / "corpus" / "pt")
