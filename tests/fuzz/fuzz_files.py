"""Fuzzes the readers of model files: python tests/fuzz/fuzz_files.py safetensors|pt [seconds]

Needs atheris (pip install atheris; Linux, Python 3.11 to 3.13 have wheels), which the tests do not.
Inputs start from the committed corpus, which tests/fuzz/test_corpus.py replays; new ones that
reached more of the code go to a temporary folder. Ends with an error, and the input in a file, for
a crash, anything but a loaded model or one sentence, more than 5 s, or more than twice the file and
64 MB.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
LONGEST_INPUT = 1 << 16
SPARE = 1 << 30  # bytes of address space: what is asked for and never used counts, too
TIMEOUT = 5

counts: Counter[str] = Counter()


def mutate_safetensors(data: bytes, mutate, most: int) -> bytes:
    """Another header, its length put right, so that what is behind the length check is reached."""
    length = int.from_bytes(data[:8], "little")
    header, numbers = data[8 : 8 + length], data[8 + length :]
    header = mutate(bytes(header), max(1, min(most - 8, len(header) + 512)))
    return (len(header).to_bytes(8, "little") + header + numbers)[:most]


def mutate_pt(data: bytes, mutate, most: int) -> bytes:
    """The same archive around another pickle."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # not an archive (any more)
        return mutate(data, most)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in records[:50]:
            if name.endswith("data.pkl"):
                content = mutate(content, len(content) + 512)
            archive.writestr(name, content)
    return made.getvalue()[:most]


def main() -> None:
    import atheris

    sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
    with atheris.instrument_imports(include=["guidance", "pickletools", "zipfile"]):
        import bounded
    kind = sys.argv[1]
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    memory_disk = "/dev/shm"
    work = Path(tempfile.mkdtemp(dir=memory_disk if os.path.isdir(memory_disk) else None))
    target = work / f"input.{kind}"
    for seed in sorted((CORPUS / kind).iterdir()):  # imports and caches are made once
        target.write_bytes(seed.read_bytes())
        print(f"{seed.name}: {bounded.outcome(target)}")
    limit = bounded.memory("VmSize") + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def one(data: bytes) -> None:
        target.write_bytes(data)
        said = bounded.outcome(target)
        counts[said.partition(" (")[0]] += 1
        if sum(counts.values()) % 1000 == 0:  # libFuzzer ends without a last word
            (work / "outcomes.json").write_text(json.dumps(counts.most_common(), indent=1))

    structured = {"safetensors": mutate_safetensors, "pt": mutate_pt}[kind]

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            return atheris.Mutate(data, most)
        return structured(data, atheris.Mutate, most)

    found = work / "found"
    found.mkdir()
    options = [f"-max_total_time={seconds}", f"-timeout={TIMEOUT}", f"-max_len={LONGEST_INPUT}"]
    options += [f"-artifact_prefix={work}/", "-rss_limit_mb=0", "-print_final_stats=1"]
    options += [f"-dict={HERE / 'words.txt'}", str(found), str(CORPUS / kind)]
    print(f"inputs that fail, and a count of outcomes, go to {work}", flush=True)
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
