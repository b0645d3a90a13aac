"""Every file of the fuzzer's corpus, what it found included, read once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bounded import outcome

CORPUS = Path(__file__).resolve().parent / "corpus"
FILES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_file_of_the_corpus_ends_well(tmp_path, file):
    copy = tmp_path / f"input.{file.parent.name}"
    shutil.copy(file, copy)
    said = outcome(copy)
    print(said)
    assert file.name.startswith(("found_", "reached_")) or (said == "loaded") == (
        file.name in LOADED
    )


LOADED = ("classifier.safetensors", "diffusion.safetensors")


def test_the_corpus_is_there_and_small():
    assert {file.parent.name for file in FILES} == {"pt", "safetensors"}
    assert set(LOADED) <= {file.name for file in FILES}
    assert sum(file.stat().st_size for file in FILES) < 300_000
