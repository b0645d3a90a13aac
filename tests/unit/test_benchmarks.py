"""The benchmarks' own judgement: what counts as worse, and what is committed."""

from __future__ import annotations

import importlib.util
import json

import harness
import pytest
from harness import Row


@pytest.fixture
def bench(root, tmp_path, monkeypatch):
    """benchmarks/run.py, with its results in a folder of the test's."""
    spec = importlib.util.spec_from_file_location("benchmarks_run", root / "benchmarks" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(module, "TABLE", tmp_path / "results.md")
    return module


def figure(value, work=None, what="a"):
    return Row(what, "b", value, 0.5, work)


def measuring(bench, monkeypatch, *rows):
    """Has the program measure that."""
    monkeypatch.setattr(bench, "BENCHMARKS", {"one": lambda: rows})


def test_worse_by_more_than_15_percent_fails(bench, monkeypatch, capsys):
    measuring(bench, monkeypatch, figure(0.5))
    assert bench.main(["--write"]) == 0
    measuring(bench, monkeypatch, figure(0.57))
    assert bench.main([]) == 0
    measuring(bench, monkeypatch, figure(0.58))
    assert bench.main([]) == 1
    assert "a / b is 0.58; committed is 0.5." in capsys.readouterr().err


def test_the_processors_time_counts_where_there_is_one(bench, monkeypatch):
    """The clock is disturbed by other programs."""
    measuring(bench, monkeypatch, figure(0.5, work=0.5))
    bench.main(["--write"])
    measuring(bench, monkeypatch, figure(0.9, work=0.5))
    assert bench.main([]) == 0
    measuring(bench, monkeypatch, figure(0.5, work=0.9))
    assert bench.main([]) == 1


def test_other_kinds_of_processors_are_not_compared(bench, monkeypatch, capsys):
    measuring(bench, monkeypatch, figure(0.5))
    bench.main(["--write"])
    monkeypatch.setattr(bench, "kind", lambda: "another")
    measuring(bench, monkeypatch, figure(0.9))
    assert bench.main([]) == 0
    assert "no committed figures of a processor like this one (another)" in capsys.readouterr().out
    bench.main(["--write"])
    kept = json.loads(bench.RESULTS.read_text())
    assert {on: figures["a / b"]["value"] for on, figures in kept.items()} == {
        harness.kind(): 0.5,
        "another": 0.9,
    }


def test_what_was_not_run_stays(bench, monkeypatch):
    measuring(bench, monkeypatch, figure(0.5), figure(0.6, what="c"))
    bench.main(["--write"])
    measuring(bench, monkeypatch, figure(0.4))
    bench.main(["--write"])
    kept = bench.read_committed(harness.kind())
    assert {name: row.value for name, row in kept.items()} == {"a / b": 0.4, "c / b": 0.6}


def test_units_and_bars_are_shown(bench):
    text = harness.table([Row("passes", "of all", 51.0, 52, unit=" passes")])
    assert "| passes | of all | 51 passes |  | 52 passes |" in text


def test_large_numbers_keep_their_digits():
    assert [harness.number(value) for value in (1391.2, 999.4, 0.12345)] == [
        "1,391",
        "999",
        "0.123",
    ]


def test_figures_of_a_card_stand_beside_those_of_processors(bench, monkeypatch):
    measuring(bench, monkeypatch, figure(0.5))
    bench.main(["--write"])
    bench.write([figure(0.1)], "a machine", "cuda NVIDIA H200")
    assert bench.read_committed(harness.kind())["a / b"].value == 0.5
    assert bench.read_committed("cuda NVIDIA H200")["a / b"].value == 0.1
    assert "\n## cuda NVIDIA H200\n\na machine:\n" in bench.TABLE.read_text("utf-8")


def test_an_unknown_benchmark_is_named(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "gradients"])
    assert "no benchmark 'gradients'; there are gradient, " in capsys.readouterr().err


def test_the_committed_table_shows_the_committed_figures(bench, root):
    folder = root / "benchmarks"
    kept = json.loads((folder / "results.json").read_text("utf-8"))
    assert kept
    assert bench._page(kept) == (folder / "results.md").read_text("utf-8")
