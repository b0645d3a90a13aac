#!/usr/bin/env python3
"""Memory of the classifier's gradient and of long runs: python benchmarks/memory.py

What a gradient of four 64x64 images adds to a process at most, in fresh processes, one thread;
how much a process grows in 1,000 guided steps of the digits' model. Linux only.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import ROOT, Row, in_fresh_process, print_rows, use_library

RUNS, STEPS, WARM = 3, 1000, 100
AGAINST = "original"


def of_gradient(how: str) -> float:
    """Bytes that the second gradient adds at most."""
    from gradient import Pair
    from loading import give_back, resident

    from guidance import NoisyClassifier
    from guidance.classifiers.gradient_memory import WHOLE, GradientMemoryPlan

    pair = Pair()
    plan = GradientMemoryPlan(recompute=True) if how == "recomputed" else WHOLE
    classifier = NoisyClassifier(pair.ours, "cosine", memory_plan=plan)
    run = pair.original if how == "original" else lambda: classifier.gradient(pair.x, 1.0, pair.y)
    run()
    give_back()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def of_steps() -> float:
    """Bytes that a process grows after WARM steps, in STEPS more."""
    import torch
    from loading import give_back, resident

    from guidance import load_adm, load_classifier
    from guidance.sampling.classifier_guidance import Guide
    from guidance.sampling.loop import sample
    from guidance.sampling.steps import chain
    from guidance.sampling.strength import Strength

    model = load_adm(ROOT / "models/diffusion_models/digits_adm.safetensors")
    classifier = load_classifier(ROOT / "models/classifiers/digits_classifier.safetensors")
    y = torch.tensor([7])
    steps = chain(model.schedule.alpha_bar.tolist(), range(1000))
    x = torch.randn(1, 3, 32, 32)
    guides = [Guide(classifier, y, Strength(scale=1.0))]
    labels = model.null_labels(1)
    sample(model, x, steps[:WARM], labels=labels, guides=guides)
    give_back()
    before = resident("VmRSS")
    sample(model, x, steps[:STEPS], labels=labels, guides=guides)
    give_back()
    return resident("VmRSS") - before


def measured(what: str) -> float:
    """The median of some fresh processes."""
    return statistics.median(in_fresh_process(__file__, what)["bytes"] for _ in range(RUNS))


def rows() -> Iterator[Row]:
    """All of them."""
    theirs = measured("original")
    yield Row("memory of the gradient", AGAINST, measured("ours") / theirs, 0.75)
    yield Row("the same, recomputed", AGAINST, measured("recomputed") / theirs, 0.35)
    grown = in_fresh_process(__file__, "steps")["bytes"] / 1e6
    yield Row("growth in 1,000 guided steps", "before them", grown, 5, unit=" MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        use_library()
        what = sys.argv[2]
        print(json.dumps({"bytes": of_steps() if what == "steps" else of_gradient(what)}))
    else:
        os.environ["OMP_NUM_THREADS"] = "1"  # each thread has memory of its own
        print_rows(rows())
