"""What the documents say exists: links, names of the code, nodes; and the two READMEs agree."""

from __future__ import annotations

import importlib
import json
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest
import which_guidance

ROOT = Path(__file__).resolve().parents[2]
DERIVATION = ROOT / "docs" / "derivation.md"
EVALUATION = ROOT / "docs" / "evaluation.md"
README = {"en": ROOT / "README.md", "zh": ROOT / "README.zh.md"}
NOT_OURS = {".venv", "node_modules", "output", "build", "dist", "data"}
MARKDOWN = sorted(
    file.relative_to(ROOT)
    for file in ROOT.rglob("*.md")
    if not any(
        part in NOT_OURS or part.startswith(".") and part != ".github"
        for part in file.relative_to(ROOT).parts
    )
)

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
NAME = re.compile(r"`(guidance(?:\.\w+)+)`")
INLINE = re.compile(r"\$([^$\n]+)\$")
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def read(file: Path) -> str:
    """The document."""
    return (ROOT / file).read_text("utf-8")


def prose(text: str) -> str:
    """The document without its fenced blocks."""
    return FENCE.sub("", text)


def headings(text: str) -> list[tuple[int, str]]:
    """Level and words of each heading."""
    return [(len(m[1]), m[2]) for m in re.finditer(r"^(#+) (.+)$", prose(text), re.M)]


def anchor(words: str) -> str:
    """What GitHub calls the place of a heading: lower case, spaces to hyphens, no punctuation."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", words).strip().lower()
    kept = (c for c in plain if c in "-_ " or unicodedata.category(c)[0] in "LNM")
    return "".join(kept).replace(" ", "-")


def places(file: Path) -> list[str]:
    """The anchors of a document."""
    return [anchor(words) for _, words in headings(file.read_text("utf-8"))]


def links(text: str) -> list[str]:
    """The targets that are not other sites'."""
    targets = LINK.findall(CODE.sub("", prose(text)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def rows(text: str) -> list[list[str]]:
    """The cells of every line of every table."""
    lines = re.findall(r"^\|(.+)\|$", prose(text), re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def broken(file: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    found = []
    for target in links(read(file)):
        path, _, place = unquote(target).partition("#")
        there = (ROOT / file).parent / path if path else ROOT / file
        if not there.exists() or (place and place not in places(there)):
            found.append(target)
    return found


def exists(name: str) -> bool:
    """Whether a dotted name is something in `guidance`: a module, or what is in one."""
    words = name.split(".")
    for count in range(len(words), 0, -1):
        try:
            found = importlib.import_module(".".join(words[:count]))
        except ModuleNotFoundError:
            continue
        for word in words[count:]:
            fields = getattr(found, "__dataclass_fields__", {})
            if not hasattr(found, word) and word not in fields:
                return False
            found = getattr(found, word, None)
        return True
    return False


# --- links and names ------------------------------------------------------------------------


def test_these_are_the_documents():
    """The search finds them: a test of nothing would pass, too."""
    assert {Path("README.md"), Path("README.zh.md"), Path("docs/derivation.md")} < set(MARKDOWN)
    assert len(MARKDOWN) > 40


@pytest.mark.parametrize("file", MARKDOWN, ids=str)
def test_links_lead_somewhere(file):
    assert not broken(file)


def test_a_broken_link_would_be_seen(tmp_path):
    """A file, a place in it; code and other sites are left alone."""
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A [name](x), twice\n", "utf-8")
    page.write_text(
        "[a](other.md) [b](other.md#a-name-twice) `[c](none.md)` [d](https://example.org/x)\n"
        "[e](none.md) ![f](none.png) [g](other.md#elsewhere) [h](none.md#place) [i](#here)\n",
        "utf-8",
    )
    assert broken(page) == ["none.md", "none.png", "other.md#elsewhere", "none.md#place", "#here"]


@pytest.mark.parametrize("file", MARKDOWN, ids=str)
def test_names_of_the_code_exist(file):
    assert not [name for name in NAME.findall(read(file)) if not exists(name)]


def test_a_wrong_name_would_be_seen():
    guide = "guidance.sampling.classifier_guidance.Guide"
    assert exists(f"{guide}.term") and exists("guidance.sampling.strength.Strength.cap")
    assert not exists(f"{guide}.terms") and not exists("guidance.samplin")


@pytest.mark.parametrize("file", MARKDOWN, ids=str)
def test_files_named_in_the_text_exist(file):
    """Paths in `code` that begin with a folder of the repository."""
    begin = "docs|guidance|nodes|scripts|tests|benchmarks|example_workflows|locales"
    named = re.findall(rf"`((?:{begin})/[\w./-]+\.\w+)`", read(file))
    assert not [name for name in named if not (ROOT / name).exists()]


# --- the derivation -------------------------------------------------------------------------


def test_every_equation_names_what_computes_it():
    """The paragraph below each equation; that on the score says that nothing does, and why."""
    text = read(DERIVATION)
    blocks = [m for m in FENCE.finditer(text) if m[1] == "math"]
    assert len(blocks) > 20
    for place, block in enumerate(blocks):
        end = blocks[place + 1].start() if place + 1 < len(blocks) else len(text)
        below = text[block.end() : end].split("\n#")[0]
        assert NAME.search(below), block[2]


@pytest.mark.parametrize("file", MARKDOWN, ids=str)
def test_inline_equations_survive_markdown(file):
    r"""GitHub takes the backslash from `\,` and the like before it reads the equation."""
    for equation in INLINE.findall(CODE.sub("", prose(read(file)))):
        assert not re.search(r"\\[!-/:-@\[-`{-~]", equation), equation


# --- the index ------------------------------------------------------------------------------


def test_the_index_leads_to_every_page():
    pages = {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(links(read(ROOT / "docs" / "README.md")))


# --- the two READMEs ------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(read(README["en"]).split()) <= 1100


def test_readmes_have_the_same_parts():
    levels = [[level for level, _ in headings(read(file))] for file in README.values()]
    assert levels[0] == levels[1]


def test_readmes_have_the_same_tables():
    """As many rows and cells, and the same numbers in each row."""
    english, chinese = (rows(read(file)) for file in README.values())
    assert len(english) == len(chinese) > 25
    for ours, theirs in zip(english, chinese, strict=True):
        assert len(ours) == len(theirs), (ours, theirs)
        for cell, other in zip(ours, theirs, strict=True):
            said, said_too = (sorted(NUMBER.findall(text)) for text in (cell, other))
            assert said == said_too, (cell, other)


def test_readmes_have_the_same_commands():
    blocks = [[m[2] for m in FENCE.finditer(read(file))] for file in README.values()]
    assert blocks[0] == blocks[1]
    assert len(blocks[0]) > 1


def test_readmes_lead_to_the_same_places():
    """But for the help of the nodes, and for each other."""
    english, chinese = (links(read(file)) for file in README.values())
    english = [re.sub(r"/en\.md$", "/zh.md", target) for target in english]
    assert sorted(set(english) - {"README.zh.md"}) == sorted(set(chinese) - {"README.md"})


@pytest.mark.parametrize("language", README)
def test_every_node_has_a_line_and_its_name(language):
    """The node's name there is the one that ComfyUI shows."""
    names = json.loads(read(Path("locales") / language / "nodeDefs.json"))
    pattern = rf"^\| \[([^\]]+)\]\(web/docs/(\w+)/{language}\.md\) \|"
    found = {node: name for name, node in re.findall(pattern, read(README[language]), re.M)}
    assert found == {node: texts["display_name"] for node, texts in names.items()}


# --- the pictures ---------------------------------------------------------------------------


def test_the_plot_reads_the_table_of_results():
    """The README has some of its rows."""
    found = which_guidance.results(read(EVALUATION))
    assert len(found) == 15
    assert found[0] == which_guidance.Result("none", 0, 0.092, 9.41)
    some = which_guidance.results(read(README["en"]))
    assert len(some) == 8 and set(some) < set(found)
    assert which_guidance.tradeoff(found).width > 600


def test_a_picture_is_drawn():
    """With few steps: every row of the schedules, from the same noise."""
    draw = which_guidance.drawer(steps="ddim2", labels=(3, 5))
    drawn = [(row.words, draw(row)) for row in which_guidance.PICTURES["schedule"]]
    assert [each.passes for _, each in drawn][0] == 4
    picture = which_guidance.grid(drawn, labels=(3, 5))
    assert picture.height > 6 * which_guidance.TILE


def test_pictures_are_all_there_and_small():
    folder = ROOT / "docs" / "which_guidance"
    files = {file.stem: file.stat().st_size for file in folder.glob("*.png")}
    assert files.keys() == {*which_guidance.PICTURES, "tradeoff"}
    assert max(files.values()) < 150_000
