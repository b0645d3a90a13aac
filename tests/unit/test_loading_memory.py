"""Loading takes little more memory than the file: fresh processes, as benchmarks/loading.py."""

from __future__ import annotations

import itertools
import sys

import harness
import loading
import pytest
from long_cases import long_but

BAR = 1.15
KINDS = ("classifier", "diffusion")
QUICK = [("classifier", "pt", "fp16"), ("diffusion", "safetensors", "fp16")]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


@pytest.fixture(scope="module")
def growth(root):
    """What a load adds to a fresh process, as a share of the file."""
    script = str(root / "benchmarks" / "loading.py")
    return lambda *arguments: harness.in_fresh_process(script, *map(str, arguments))["growth"]


@pytest.mark.parametrize(
    ("kind", "suffix", "dtype"),
    long_but(QUICK, itertools.product(KINDS, ("pt", "safetensors"), ("fp32", "fp16"))),
)
def test_peak_memory(growth, tmp_path, comfyui_if_any, say_at_the_end, kind, suffix, dtype):
    width = 128 if kind == "diffusion" else None  # 0.5 GB in fp32
    file = loading.write_model(tmp_path / f"{kind}_{dtype}.{suffix}", kind, dtype, width)
    ways = [("library",)]
    if dtype == "fp16" or suffix == "safetensors":
        ways += [("comfyui", comfyui_if_any.path)] if comfyui_if_any else []
    for how, *place in ways:
        found = growth(how, file, *place)
        say_at_the_end(f"memory while loading / file: {file.name} {how} {found:.3f}")
        assert 0.5 < found <= BAR  # from below: that the load was seen at all
    if suffix == "pt" and kind == "classifier":
        assert growth("copying", file) > 1.5  # what the test is worth
