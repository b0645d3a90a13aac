"""benchmarks/gpu.py without a GPU: what it says, how it judges, and a rehearsal of its phases."""

from __future__ import annotations

import json
import subprocess
import sys
import types
import warnings

import gpu
import pytest
from gpu_phases import process, waits
from gpu_phases.kernels import (
    CONVOLUTION,
    COPY,
    LAYOUT,
    NORM,
    OTHER,
    PRODUCT,
    Kernel,
    by_kind,
    kind_of,
)
from gpu_phases.process import Found, found_by, measure
from gpu_phases.setup import LeftOut, Setup, is_hopper
from harness import Row

ROW = Row("a", "b", 1.5, 2.0, unit=" ms")
KERNELS = [
    ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128", CONVOLUTION),
    ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816dgrad_optimized_f16>", CONVOLUTION),
    ("void cudnn::ops::nchwToNhwcKernel<__half, __half, float, false>", LAYOUT),
    ("void cudnn::engines_precompiled::nhwcToNchwKernel<float>", LAYOUT),
    ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::Half>", NORM),
    ("at::native::elementwise_kernel<at::native::GroupNormKernelImplInternal<c10::Half>>", NORM),
    ("nvjet_hsh_128x64_64x8_2x1_v_bz_coopA_NNT", PRODUCT),
    ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", PRODUCT),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", PRODUCT),
    ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", COPY),
    ("Memcpy DtoD (Device -> Device)", COPY),
    ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float>", COPY),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel>", OTHER),
    ("void at::native::(anonymous namespace)::avg_pool2d_backward_out_cuda_frame_nhwc", OTHER),
    ("triton_red_fused__to_copy_native_group_norm_3", NORM),
    ("triton_poi_fused__to_copy_convolution_silu_7", OTHER),
    ("triton_tem_fused_convolution_2", CONVOLUTION),
]


@pytest.fixture
def phases(monkeypatch):
    """`phases(one=found, ...)`: those phases find that, and nothing is started."""

    def run(**found):
        monkeypatch.setattr(gpu, "PHASES", dict.fromkeys(found, 10))
        monkeypatch.setattr(gpu, "has_gpu", lambda: True)
        monkeypatch.setattr(gpu, "found_by", lambda script, phase, *_: found[phase])

    return run


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """What a phase writes whose parts are these functions."""

    def run(*parts):
        def named(setup):
            return [(part.__name__, part) for part in parts]

        phase = types.SimpleNamespace(parts=named)
        monkeypatch.setitem(sys.modules, "gpu_phases.phase", phase)
        file = tmp_path / "found.jsonl"
        measure("phase", Setup(rehearse=True), file)
        found = Found()
        found.read(iter(file.read_text("utf-8").splitlines()))
        return found

    return run


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    assert gpu.main([]) == 0
    assert capsys.readouterr().out.strip() == gpu.NO_GPU


def test_wrong_options_are_named(capsys):
    for given, said in (
        (["--only", "gradient"], "no phase 'gradient'; there are gradients, "),
        (["--write", "--rehearse"], "nothing that is worth writing down"),
    ):
        with pytest.raises(SystemExit):
            gpu.main(given)
        assert said in capsys.readouterr().err


def test_a_phase_that_fails_does_not_stop_the_others(phases, capsys):
    phases(one=Found(failures=["out of memory"]), two=Found([ROW], ["left out"], about="a card"))
    assert gpu.main([]) == 1
    printed = capsys.readouterr()
    assert printed.err == "one failed: out of memory\n"
    assert "  left out\n" in printed.out
    assert printed.out.rstrip().endswith("| a | b | 1.5 ms |  | 2 ms |")


def test_figures_are_written_under_the_cards_name(phases, monkeypatch):
    written = []
    commit = types.SimpleNamespace(write=lambda *given: written.append(given))
    monkeypatch.setitem(sys.modules, "run", commit)
    phases(one=Found([ROW], kind="cuda A", about="a machine"), two=Found())
    assert gpu.main(["--write"]) == 0
    (rows, about, on), *others = written
    assert (rows, on, others) == ([ROW], "cuda A", [])
    assert about.endswith(", a machine")
    assert gpu.main([]) == 0
    assert len(written) == 1


def test_parts_that_fail_or_are_left_out_do_not_stop_the_others(measured):
    def fails():
        yield ROW
        raise ValueError("too small\nsecond line")

    def left_out():
        raise LeftOut("no ComfyUI")

    def works():
        yield "something to say"
        yield Row("c", "d", 0.5)

    found = measured(fails, left_out, works)
    assert found.rows == [ROW, Row("c", "d", 0.5)]
    assert found.notes == ["no ComfyUI", "something to say"]
    assert found.failures == ["fails: ValueError: too small"]
    assert found.about.endswith("CPU alone")


def test_a_line_that_was_cut_off_is_left_out():
    found = Found()
    found.read(iter([json.dumps({"note": "whole"}), '{"note": "cut']))
    assert found.notes == ["whole"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ends", "failure"),
    [
        ("time.sleep(60)", "stopped after its limit of 2 seconds"),
        ("sys.exit('no driver')", "ended with status 1: no driver"),
        ("pass", None),
    ],
)
def test_what_a_process_found_before_it_ended_counts(tmp_path, ends, failure):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--into') + 1])\n"
        "(folder / 'found.jsonl').write_text('{\"note\": \"found\"}\\n')\n"
        f"{ends}\n"
    )
    found = found_by(str(script), "phase", 2)
    assert found.notes == ["found"]
    assert found.failures == ([failure] if failure else [])


@pytest.mark.parametrize(("name", "kind"), KERNELS)
def test_kinds_of_kernels(name, kind):
    assert kind_of(name) == kind


def test_times_by_kind():
    found = by_kind([Kernel("gemm_a", 1.0, 2), Kernel("gemm_b", 0.5, 1), Kernel("silu", 0.25, 9)])
    assert {kind: value for kind, value in found.items() if value} == {PRODUCT: 1.5, OTHER: 0.25}


def test_bars_in_milliseconds_are_for_hopper_cards(monkeypatch):
    assert is_hopper("NVIDIA H100 80GB HBM3")
    assert not is_hopper("NVIDIA GeForce RTX 4090")
    monkeypatch.setattr("gpu_phases.setup.card", lambda: "NVIDIA H200")
    assert Setup().bar(2.7) == 2.7
    assert Setup(rehearse=True).bar(2.7) is None


def waiting(file):
    """A function in that file that waits as torch says it."""
    source = "def wait(warn):\n    warn('called a synchronizing CUDA operation')\n"
    space = {}
    exec(compile(source, str(file), "exec"), space)  # noqa: S102
    return space["wait"]


def test_waits_are_those_of_the_packs_files(root):
    ours = waiting(root / "nodes" / "runtime" / "some.py")
    others = waiting(root / "benchmarks" / "some.py")
    with waits.counted_waits() as found:
        ours(warnings.warn)
        ours(warnings.warn)
        others(warnings.warn)
        warnings.warn("something else", stacklevel=1)
    assert dict(found) == {"nodes/runtime/some.py:2": 2}


def test_what_a_run_waits_for_once_does_not_count(root):
    wait = waiting(root / "guidance" / "some.py")

    def run(steps):
        for _ in range(2 * steps + 5):
            wait(warnings.warn)

    assert waits.waits_per_step(run, 3, 6) == (2.0, {"guidance/some.py:2": 17})


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("phase", ["gradients", "compiled", "guided_runs", "training"])
def test_rehearsal(root, phase):
    """Every phase that needs no ComfyUI runs to its end."""
    command = [sys.executable, str(root / "benchmarks" / "gpu.py"), "--rehearse", "--only", phase]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| what | against |" in done.stdout


def test_errors_are_said_in_one_line():
    assert process.described(RuntimeError("first\nsecond")) == "RuntimeError: first"
    assert process.described(KeyError()) == "KeyError: "
