"""Loading takes little more memory than the file: fresh processes, as benchmarks/loading.py."""

from __future__ import annotations

import importlib.util
import sys

import pytest

BAR = 1.15

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


@pytest.fixture(scope="module")
def bench(root):
    spec = importlib.util.spec_from_file_location("loading", root / "benchmarks" / "loading.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", ["classifier", "diffusion"])
def test_peak_memory(bench, tmp_path, comfyui_if_any, say_at_the_end, kind, suffix, dtype):
    width = 128 if kind == "diffusion" else None  # 0.5 GB in fp32
    file = bench.write_model(tmp_path / f"{kind}_{dtype}.{suffix}", kind, dtype, width)
    ways = [("library", None)]
    if dtype == "fp16" or suffix == "safetensors":
        ways += [("comfyui", comfyui_if_any.path)] if comfyui_if_any else []
    for how, place in ways:
        growth = bench.in_fresh_process(how, file, place)["growth"]
        say_at_the_end(f"memory while loading / file: {file.name} {how} {growth:.3f}")
        assert 0.9 < growth <= BAR
    if suffix == "pt" and kind == "classifier":
        assert bench.in_fresh_process("copying", file)["growth"] > 1.5  # what the test is worth
