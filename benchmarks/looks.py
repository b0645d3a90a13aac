#!/usr/bin/env python3
"""What looks cost: python benchmarks/looks.py

The digits' model in 5 DDIM steps, ten images, guided by the included judge as a classifier of clean
images: the time of a run with 4 looks, in one batch, in proportion to a run with one look.
"""

from __future__ import annotations

from collections.abc import Iterator

from drawing import Digits
from harness import ROOT, Row, in_turn, print_rows

from guidance import load_image_classifier
from guidance.classifiers.looks import Looks
from guidance.sampling.generate import SamplingConfig, generate

JOB = SamplingConfig(
    num_samples=10, label="all", cfg=0.0, scale=1.0, normalize=True, respacing="ddim5"
)


def rows() -> Iterator[Row]:
    """4 looks against one."""
    model, path = Digits().model, ROOT / "models/classifiers/digits_judge.safetensors"
    guides = {count: load_image_classifier(path, looks=Looks(count=count)) for count in (1, 4)}
    one, four = in_turn(
        {
            str(count): (lambda guide=guide: generate(model, guide, JOB))
            for count, guide in guides.items()
        },
        turns=5,
    ).values()
    yield four.row("guided step with 4 looks", "with 1", one, bar=2.5)


if __name__ == "__main__":
    print_rows(rows())
