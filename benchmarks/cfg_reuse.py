#!/usr/bin/env python3
"""What CFG's term used again saves, and how near its images are: python benchmarks/cfg_reuse.py

The digits' model, 200 images, CFG 4 in 40 DDIM steps, by the embedded sampler. Prints a Markdown
table: passes of the network for each image, and the mean squared distance to the images of full CFG
(pixels in -1..1). Half an interval is what leaves the negative out elsewhere.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from harness import ROOT

IMAGES, BATCH, SCALE = 200, 50, 4.0


def main() -> None:
    """Prints the table."""
    sys.path.insert(0, str(ROOT))
    from guidance import GuidanceSchedule

    def half(start: float) -> dict:
        interval = GuidanceSchedule.interval("step", start, start + 0.5, SCALE)
        return {"cfg_schedule": interval}

    rows = {
        "CFG in the first half of the steps": half(0.0),
        "CFG in the middle half": half(0.25),
        "every 2": {"cfg_every": 2},
        "every 3": {"cfg_every": 3},
        "every 4": {"cfg_every": 4},
        "tolerance 0.3": {"cfg_tolerance": 0.3},
        "tolerance 0.4": {"cfg_tolerance": 0.4},
        "tolerance 0.5": {"cfg_tolerance": 0.5},
    }
    full, passes = drawn()
    print("| CFG | passes | distance to full CFG |\n|---|---|---|")
    print(f"| in all steps | {passes:.1f} | 0 |")
    for name, options in rows.items():
        images, passes = drawn(**options)
        print(f"| {name} | {passes:.1f} | {float(((images - full) ** 2).mean()):.5f} |", flush=True)


def drawn(**options):
    """The images, -1..1, and the passes for each."""
    from guidance import load_adm
    from guidance.generation import Job, generate
    from guidance.images import from_uint8
    from guidance.work import counted

    model = load_adm(ROOT / "models" / "diffusion_models" / "digits_adm.safetensors", dtype="bf16")
    job = Job(num_samples=IMAGES, batch_size=BATCH, label="all", cfg=SCALE, respacing="ddim40")
    with counted(model, None) as work:
        images, _ = generate(model, None, replace(job, **options))
    return from_uint8(images), work.passes / IMAGES


if __name__ == "__main__":
    main()
