"""What a release stands on: versions that agree, workflows, forms, pictures, no version checks."""

from __future__ import annotations

import ast
import json
import re
import sys
import xml.etree.ElementTree

import pytest
import yaml
from PIL import Image

import check_release
from comfyui import OLDEST_VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLOOR = ".".join(map(str, OLDEST_VERSION))


def project(root):
    """pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))


def read_yaml(path):
    """A workflow or an issue form. YAML takes the key `on` for true."""
    return yaml.safe_load(path.read_text("utf-8"))


def test_version_is_semantic_and_the_changelogs_newest(root):
    version = project(root)["project"]["version"]
    text = (root / "CHANGELOG.md").read_text("utf-8")
    versions, days = zip(*re.findall(r"^## \[(.+?)\] - (\S+)$", text, re.M), strict=True)
    assert check_release.SEMANTIC.fullmatch(version) and versions[0] == version
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", day) for day in days[1:])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d|unreleased", days[0])


def test_oldest_comfyui_is_the_same_everywhere(root):
    assert project(root)["tool"]["comfy"]["requires-comfyui"] == f">={FLOOR}"
    for page in ("README.md", "CONTRIBUTING.md", ".github/ISSUE_TEMPLATE/bug_report.yml"):
        assert FLOOR in (root / page).read_text("utf-8"), page
    matrix = read_yaml(root / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    oldest = project(root)["project"]["requires-python"].removeprefix(">=")
    assert (matrix["comfyui"], matrix["python"]) == ([FLOOR, "newest"], [oldest, "3.12"])


def copied(folder, **changes):
    """The three files of a release in a folder, with what is given in place of what they say."""
    (folder / "tests" / "released").mkdir(parents=True)
    files = {
        "pyproject.toml": 'version = "1.2.3"\n',
        "CHANGELOG.md": "## [1.2.3] - 2026-05-04\n\n## [1.2.2] - 2026-01-02\n",
        "tests/released/nodes.json": json.dumps({"version": "1.2.3", "nodes": {}}),
    }
    for name, text in {**files, **changes}.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def test_a_tag_that_is_no_version_is_refused(tmp_path):
    assert check_release.problems("v1.2.3", copied(tmp_path)) == []
    for tag in ("1.2.3", "v1.2", "v1.2.3-rc1", "v01.2.3", "version"):
        (said,) = check_release.problems(tag, tmp_path)
        assert tag in said and "v0.1.0" in said


@pytest.mark.parametrize(
    "file, text, said",
    [
        ("pyproject.toml", 'version = "1.2.2"\n', "version is 1.2.2"),
        ("pyproject.toml", "", "version is missing"),
        ("CHANGELOG.md", "## [1.2.4] - 2026-05-04\n", "first version is 1.2.4"),
        ("CHANGELOG.md", "## [1.2.3] - unreleased\n", "no date"),
        ("tests/released/nodes.json", '{"version": "1.2.2"}', "is of 1.2.2"),
    ],
)
def test_a_file_that_names_another_version_is_named(tmp_path, file, text, said):
    (problem,) = check_release.problems("v1.2.3", copied(tmp_path, **{file: text}))
    assert file in problem and said in problem


def test_no_version_of_another_program_is_compared(root):
    """Features are asked for instead; looked up in the syntax, not in comments."""
    banned = {"__version__", "comfyui_version", "packaging", "importlib.metadata", "version_info"}
    for file in (*root.glob("nodes/**/*.py"), *root.glob("guidance/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module or "", *(alias.name for alias in node.names)}
            elif isinstance(node, ast.Attribute):
                names = {node.attr}
            else:
                continue
            assert not names & banned, f"{file}:{node.lineno}"


def test_every_node_id_is_a_literal(root):
    """The Registry reads the ids without running anything."""
    found = 0
    for file in sorted((root / "nodes").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "node_id":
                assert isinstance(node.value, ast.Constant), f"{file}:{node.value.lineno}"
                found += 1
    assert found >= 17


def test_publishing_waits_for_all_tests(root):
    workflow = read_yaml(root / ".github" / "workflows" / "publish.yml")
    assert workflow[True] == {"push": {"tags": ["v*.*.*"]}}
    assert workflow["jobs"]["tests"]["uses"] == "./.github/workflows/tests.yml"
    publish = workflow["jobs"]["publish"]
    assert publish["needs"] == "tests"
    steps = [step.get("run", step.get("uses", "")) for step in publish["steps"]]
    assert "check_release.py" in steps[-2]
    assert steps[-1].startswith("Comfy-Org/publish-node-action@")
    assert "workflow_call" in read_yaml(root / ".github" / "workflows" / "tests.yml")[True]


@pytest.mark.parametrize("name, ratio, most", [("icon", 1, 400), ("banner", 21 / 9, 1260)])
def test_pictures_have_the_registrys_shapes(root, name, ratio, most):
    """And are those of the drawing beside them."""
    folder = root / "docs" / "brand"
    with Image.open(folder / f"{name}.png") as picture:
        width, height = picture.size
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 3
    assert width == pytest.approx(ratio * height) and width <= most
    drawing = xml.etree.ElementTree.parse(folder / f"{name}.svg").getroot()
    assert drawing.get("viewBox") == f"0 0 {width} {height}"
