"""What the Registry hands out: the zip of `comfy node pack`, in a ComfyUI with nothing else."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import zipfile
from pathlib import Path

import pytest

from comfy_server import PACK, ComfyServer
from comfyui import comfy

FIRST = "01 Guide digits with a classifier"
SAMPLER = "() => app.graph.nodes.find(n => n.type === 'KSampler')?.id"
JUDGED = """() => app.graph.nodes.flatMap(n => n.widgets ?? [])
    .find(w => w.name === "seen")?.element?.querySelectorAll(".cg-class").length > 0"""
LEFT_OUT = {".ci", ".coverage", ".github", "scripts", "tests", "run.py"}
MOST_BYTES = 20 * 2**20
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
# a line of a server's log that tells of a problem, and the pack's folder in a path
PROBLEM = re.compile(r'import failed|\berror\b|exception|warning|^ +File "', re.IGNORECASE)
OURS = re.compile(rf"[\\/]custom_nodes[\\/]{PACK}(?![-\w])")


@pytest.fixture(scope="module")
def clone(root, tmp_path_factory):
    """A fresh clone of the last commit."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("this is no git checkout, and a release is made from one")
    folder = tmp_path_factory.mktemp("release") / PACK
    subprocess.run(["git", "clone", "--quiet", str(root), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def comfy_node(clone):
    """Runs `comfy node ...` in the clone, with a home folder of its own; its output."""
    home = clone.parent / "home"
    home.mkdir()
    environment = os.environ | {
        "DO_NOT_TRACK": "1",
        "HOME": str(home),
        "USERPROFILE": str(home),
        "PYTHONUSERBASE": site.getuserbase(),
        "PYTHONIOENCODING": "utf-8",
    }

    about = {"cwd": clone, "env": environment, "stdin": subprocess.DEVNULL, "encoding": "utf-8"}

    def run(command):
        command = comfy("--skip-prompt", "node", command)
        done = subprocess.run(command, capture_output=True, **about)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def packed(comfy_node, clone):
    """The zip."""
    comfy_node("pack")
    return clone / "node.zip"


@pytest.fixture(scope="module")
def server(comfyui, packed):
    """A ComfyUI with nothing but the zip, unpacked as the Manager does it."""

    def unpack(base):
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(base / "custom_nodes" / PACK)

    with ComfyServer(comfyui, install=unpack) as running:
        yield running


def names(packed):
    """The files in the zip."""
    with zipfile.ZipFile(packed) as archive:
        return set(archive.namelist())


def problems(log):
    """The lines of a server's log that tell of a problem in the pack."""
    return [line for line in log.splitlines() if PROBLEM.search(line) and OURS.search(line)]


def test_a_problem_of_the_pack_is_found_in_the_log():
    ours = f"/base/custom_nodes/{PACK}"
    bad = [f"(IMPORT FAILED): {ours}", f'  File "{ours}/x.py", line 3', f"{ours}/x.py: Warning"]
    good = [f"   0.4 seconds: {ours}", '  File "/comfy/nodes.py", line 3']
    assert problems("\n".join(good + bad)) == bad


def test_the_registry_would_take_it(comfy_node):
    said = comfy_node("validate")
    assert "All validation checks passed" in said
    assert "Warning" not in said and "Error" not in said, said


def test_zip_leaves_out_what_only_a_clone_needs(packed, say_at_the_end):
    files = names(packed)
    assert not {name for name in files if name.split("/")[0] in LEFT_OUT}
    assert packed.stat().st_size < MOST_BYTES
    say_at_the_end(f"The packed zip: {len(files)} files, {packed.stat().st_size / 1e6:.1f} MB")


def test_zip_has_all_that_runs(clone, packed):
    """Every committed file of these folders, except for the linter's."""
    folders = ["example_workflows", "guidance", "locales", "models", "nodes", "subgraphs", "web"]
    command = ["git", "ls-files", "-z", *folders]
    listed = subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True)
    files = set(listed.stdout.split("\0")) - {"", "guidance/ruff.toml"}
    assert {name.split("/")[0] for name in files} == set(folders)
    assert files <= names(packed)


def test_zip_has_what_its_pages_link(packed):
    """Links and pictures of the README and the other pages lead to files in the zip."""
    files, missing = names(packed), []
    with zipfile.ZipFile(packed) as archive:
        for page in sorted(name for name in files if name.endswith(".md")):
            for link in LINK.findall(archive.read(page).decode("utf-8")):
                target = os.path.normpath(Path(page).parent / link).replace(os.sep, "/")
                inside = any(name == target or name.startswith(f"{target}/") for name in files)
                if "://" not in link and not inside:
                    missing.append((page, link))
    assert missing == []


def test_pack_starts_without_a_problem(server):
    assert PACK in server.log
    assert problems(server.log) == []


@pytest.mark.parametrize("renderer", ["Nodes 2.0"])  # both have the same files
def test_first_template_runs_in_the_page(page, server):
    """Opened from the templates and run; the fixture looks at the page's console."""
    page.run(
        """async ([pack, name]) => {
            const file = await fetch(`/api/workflow_templates/${pack}/${name}.json`);
            await app.loadGraphData(await file.json());
        }""",
        [PACK, FIRST],
    )
    page.set_values(page.wait(SAMPLER), steps=8)
    run = page.queue()
    assert run["status"]["status_str"] == "success", run["status"]
    images = [image for shown in run["outputs"].values() for image in shown.get("images", [])]
    assert len(images) == 1  # a grid of ten
    page.wait(JUDGED)
    assert problems(server.log) == []
