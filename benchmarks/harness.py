"""What the benchmarks share: ratios, a ComfyUI in this process, and fresh processes.

Imported before torch, so that its threads sleep while they wait: on a busy machine they would
otherwise spend most of what is measured on waiting for each other.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = 3

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True)
class Row:
    """A figure of the table: `what` in proportion to `against`; less is better.

    bar: what it ought to be at most. work: the same of the processor's time, which other programs
    disturb less. unit: of a figure that is no ratio.
    """

    what: str
    against: str
    value: float
    bar: float | None = None
    work: float | None = None
    unit: str = ""

    @property
    def steady(self) -> float:
        """What one run can be compared with another by."""
        return self.value if self.work is None else self.work

    @property
    def name(self) -> str:
        """What identifies it from one run to the next."""
        return f"{self.what} / {self.against}"


def find_comfyui() -> Any:
    """The ComfyUI that the tests would use, too."""
    sys.path.insert(0, str(ROOT / "scripts"))
    found = importlib.import_module("comfyui").find_comfyui()
    del sys.path[0]
    return found


def start_comfyui(comfyui: str, cpu: bool = True) -> Any:
    """ComfyUI's own `nodes`, with torch and all of comfy that it needs."""
    sys.path[0] = comfyui  # in the place of the script's own folder
    from comfy.cli_args import args

    args.cpu = cpu  # most benchmarks have no time for waking up a GPU
    return importlib.import_module("nodes")


def load_pack(nodes: Any) -> bool:
    """Has ComfyUI's loader load the pack; whether it could."""
    return asyncio.run(nodes.load_custom_node(str(ROOT)))


def use_library() -> None:
    """Makes `import guidance` work, whatever ComfyUI does with the path."""
    if str(ROOT) not in sys.path:
        sys.path.insert(1, str(ROOT))


def in_fresh_process(script: str, *arguments: str) -> dict:
    """What `script --once arguments` prints as its last line, read as JSON."""
    command = [sys.executable, script, "--once", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Taken:
    """Seconds by the clock, and of the processor in all threads together."""

    seconds: float
    work: float

    def row(self, what: str, against: str, other: Taken, bar: float | None = None) -> Row:
        """This in proportion to another."""
        return Row(what, against, self.seconds / other.seconds, bar, self.work / other.work)


def taken_by(run: Callable[[], Any]) -> Taken:
    """What it takes."""
    start, work = time.perf_counter(), time.process_time()
    run()
    return Taken(time.perf_counter() - start, time.process_time() - work)


def in_turn(
    runs: dict[str, Callable[[], Any]], turns: int = RUNS, again: bool = False
) -> dict[str, Taken]:
    """The medians of each run, taken in turn, after one that is not counted.

    again: each twice in each turn, the first not counted. Where the system takes back memory that a
    run has not used for seconds, a run that needs more of it would else wait for more, too.
    """
    taken: dict[str, list[Taken]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            if again:
                run()
            one = taken_by(run)
            if turn:
                taken[name].append(one)
    return {
        name: Taken(
            statistics.median(one.seconds for one in each),
            statistics.median(one.work for one in each),
        )
        for name, each in taken.items()
    }


def versions(on_gpu: bool = False) -> str:
    """What was measured on."""
    import torch

    python = f"torch {torch.__version__}, Python {platform.python_version()}"
    if not on_gpu:
        return f"{_processor()}, {torch.get_num_threads()} threads, {python}, CPU alone"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{memory:.0f} GiB, CUDA {torch.version.cuda}, host {_processor()}, {python}"


FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm")
QUICK_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def _told(*names: str) -> str:
    """What Linux tells of the processor under the first of these names; nothing elsewhere."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(names)), "")


def features() -> list[str]:
    """What the processor can do that decides what is quick on it; Linux tells it."""
    flags = _told("flags", "Features").split()
    return [flag for flag in FEATURES if flag in flags]


def quick_bf16() -> bool:
    """Whether the processor computes bf16 itself; in software it takes many times longer."""
    return not QUICK_BF16.isdisjoint(features())


def kind(on_gpu: bool = False) -> str:
    """Whose ratios this machine's can be compared with."""
    if on_gpu:
        import torch

        return f"cuda {torch.cuda.get_device_name(0)}"
    return " ".join([platform.machine(), *features()])


def _processor() -> str:
    name = _told("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(features())})"


def number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = ["| what | against | measured | processor time | bar |", "|---|---|---|---|---|"]
    for row in rows:
        work = "" if row.work is None else f"{row.work:.3g}"
        bar = "" if row.bar is None else f"{row.bar:g}{row.unit}"
        value = f"{number(row.value)}{row.unit}"
        lines.append(f"| {row.what} | {row.against} | {value} | {work} | {bar} |")
    return "\n".join(lines)


def print_rows(rows: Any) -> None:
    """What a benchmark that is run alone prints."""
    rows = list(rows)
    print(f"{versions()}\n\n{table(rows)}")
