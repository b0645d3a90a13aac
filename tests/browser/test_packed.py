"""What the Registry hands out: the zip of `comfy node pack`, in a ComfyUI with nothing else."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from comfy_server import PACK, ComfyServer
from comfyui import comfy

FIRST = "classifier_guided_digits"
LEFT_OUT = {".ci", ".coverage", ".github", "scripts", "tests", "run.py"}
MOST_BYTES = 20 * 2**20
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
# ComfyUI's own words for what went wrong, of the pack: a folder has its name, and the server's base
# directory a longer one
OURS = re.compile(rf"[\\/]{PACK}(?![-\w])")
TROUBLE = re.compile(r"import failed|\berror\b|exception|warning", re.IGNORECASE)
TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*.*")


@pytest.fixture(scope="module")
def clone(root, tmp_path_factory):
    """A fresh clone of what is committed."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("this is no git checkout, and a release is made from one")
    folder = tmp_path_factory.mktemp("release") / PACK
    subprocess.run(["git", "clone", "--quiet", str(root), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def comfy_node(clone):
    """Runs `comfy node ...` in the clone; what it said. Nothing of the user's home is touched."""
    home = clone.parent / "home"
    home.mkdir()
    environment = os.environ | {
        "DO_NOT_TRACK": "1",
        "HOME": str(home),
        "USERPROFILE": str(home),
        "PYTHONUSERBASE": site.getuserbase(),
        "PYTHONIOENCODING": "utf-8",
    }

    def run(command):
        done = subprocess.run(
            comfy("--skip-prompt", "node", command),
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="module")
def packed(comfy_node, clone):
    """The zip."""
    comfy_node("pack")
    return clone / "node.zip"


@pytest.fixture(scope="module")
def server(comfyui, packed):
    """A ComfyUI in which the zip is unpacked where the Manager would unpack it, and no more."""

    def unpack(base):
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(base / "custom_nodes" / PACK)

    with ComfyServer(comfyui, install=unpack) as running:
        yield running


def names(packed):
    """The files in the zip."""
    with zipfile.ZipFile(packed) as archive:
        return set(archive.namelist())


def troubles(log):
    """What goes wrong in the pack, as the server's log tells; core's own troubles are not ours."""
    said = [*TRACEBACK.findall(log), *filter(TROUBLE.search, log.splitlines())]
    return [what for what in said if OURS.search(what)]


HOME = f"/tmp/{PACK}-x1/base/custom_nodes"


@pytest.mark.parametrize(
    "log, count",
    [
        (f"Import times:\n   0.4 seconds: {HOME}/{PACK}\n", 0),
        (f"   0.4 seconds (IMPORT FAILED): {HOME}/{PACK}\n", 1),
        (f'Traceback (most recent call last):\n  File "{HOME}/{PACK}/nodes/x.py"\nOops\n', 1),
        (f'Traceback (most recent call last):\n  File "/comfy/nodes.py"\nOops: {HOME}\n', 0),
        ("IMPORT FAILED: nodes_glsl.py\n", 0),
        (f"{HOME}/{PACK}/nodes/x.py:3: UserWarning: old\n", 1),
    ],
)
def test_a_trouble_of_the_pack_is_seen(log, count):
    assert len(troubles(log)) == count


def cached(run):
    """The nodes that a run took over from the one before."""
    messages = dict(run["status"]["messages"])
    return {int(node) for node in messages["execution_cached"]["nodes"]}


def test_the_registry_would_take_it(comfy_node):
    said = comfy_node("validate")
    assert "All validation checks passed" in said
    assert "Warning" not in said and "Error" not in said, said


def test_zip_leaves_out_what_only_a_clone_needs(packed, say_at_the_end):
    files = names(packed)
    assert not {name for name in files if name.split("/")[0] in LEFT_OUT}
    assert packed.stat().st_size < MOST_BYTES
    say_at_the_end(f"The packed zip: {len(files)} files, {packed.stat().st_size / 1e6:.1f} MB")


@pytest.mark.parametrize(
    "folder", ["example_workflows", "guidance", "locales", "models", "nodes", "subgraphs", "web"]
)
def test_zip_has_all_that_runs(clone, packed, folder):
    """Every committed file of these folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", folder], cwd=clone, check=True, capture_output=True, text=True
    )
    files = set(listed.stdout.split("\0")) - {""}
    assert files and files <= names(packed)


def test_zip_has_what_its_pages_link(packed):
    """Links and pictures of the pages, from the README on, lead to files in the zip."""
    files, missing = names(packed), []
    with zipfile.ZipFile(packed) as archive:
        for page in sorted(name for name in files if name.endswith(".md")):
            for link in LINK.findall(archive.read(page).decode("utf-8")):
                target = os.path.normpath(Path(page).parent / link).replace(os.sep, "/")
                inside = any(name == target or name.startswith(f"{target}/") for name in files)
                if "://" not in link and not inside:
                    missing.append((page, link))
    assert missing == []


def test_pack_starts_without_a_complaint(server):
    assert PACK in server.log
    assert troubles(server.log) == []


def test_first_template_runs(server, say_at_the_end):
    begin = time.perf_counter()
    template = server.base / "custom_nodes" / PACK / "example_workflows" / f"{FIRST}.json"
    run = server.run(template)
    say_at_the_end(f"The first template, from the zip: {time.perf_counter() - begin:.0f} s")
    assert len(run.images) == 10
    assert troubles(server.log) == []


def test_first_template_runs_in_the_page(page, server, renderer):
    """Opened from the templates and run there; the fixture looks at the page's console."""
    page.run(
        """async ([pack, name]) => {
            const file = await fetch(`/api/workflow_templates/${pack}/${name}.json`);
            await app.loadGraphData(await file.json());
        }""",
        [PACK, FIRST],
    )
    # what the server has not drawn yet, and less of it than the test above
    (sampler,) = page.run("() => app.graph.nodes.filter(n => n.type === 'KSampler').map(n => n.id)")
    page.set_value(sampler, "seed", 1 if renderer == "classic" else 2)
    page.set_value(sampler, "steps", 8)
    _, before = server.request("/history")
    page.queue()
    deadline = time.monotonic() + 300
    while len(after := server.request("/history")[1]) == len(before):
        assert time.monotonic() < deadline
        page.page.wait_for_timeout(250)
    (run,) = (after[key] for key in after.keys() - before.keys())
    assert run["status"]["status_str"] == "success", run["status"]
    assert sampler not in cached(run), "nothing was drawn"
    assert troubles(server.log) == []
