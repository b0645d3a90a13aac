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
MARKDOWN = sorted(file.relative_to(ROOT) for file in ROOT.rglob("*.md"))
HIDDEN = re.compile(r"\.(?!github)")
MARKDOWN = [file for file in MARKDOWN if not NOT_OURS & {*file.parts}]
MARKDOWN = [file for file in MARKDOWN if not any(map(HIDDEN.match, file.parts))]

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
NAME = re.compile(r"`(guidance(?:\.\w+)+)`")
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
        if not there.exists() or (
            place and place not in [anchor(words) for _, words in headings(read(there))]
        ):
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


def test_these_are_the_documents():
    """The search finds them: a test of nothing would pass, too."""
    assert {Path("README.md"), Path("README.zh.md"), Path("docs/derivation.md")} < set(MARKDOWN)
    assert len(MARKDOWN) > 40


@pytest.mark.parametrize("file", MARKDOWN, ids=str)
def test_a_document_names_what_exists(file):
    r"""Links, names of the code, files; and GitHub takes the backslash from an equation's `\,`."""
    text = read(file)
    assert not broken(file)
    assert not [name for name in NAME.findall(text) if not exists(name)]
    begin = "docs|guidance|nodes|scripts|tests|benchmarks|example_workflows|locales"
    named = re.findall(rf"`((?:{begin})/[\w./-]+\.\w+)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]
    equations = re.findall(r"\$([^$\n]+)\$", CODE.sub("", prose(text)))
    assert not [one for one in equations if re.search(r"\\[!-/:-@\[-`{-~]", one)]


def test_every_equation_names_what_computes_it():
    """The paragraph below each equation; that on the score says that nothing does, and why."""
    text = read(DERIVATION)
    blocks = [m for m in FENCE.finditer(text) if m[1] == "math"]
    assert len(blocks) > 20
    for place, block in enumerate(blocks):
        end = blocks[place + 1].start() if place + 1 < len(blocks) else len(text)
        below = text[block.end() : end].split("\n#")[0]
        assert NAME.search(below), block[2]


def test_the_index_leads_to_every_page():
    pages = {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(links(read(ROOT / "docs" / "README.md")))


def test_readmes_have_the_same_parts():
    """Headings, commands, and links but for the help of the nodes and for each other."""
    english, chinese = map(read, README.values())
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]
    blocks = [[m[2] for m in FENCE.finditer(text)] for text in (english, chinese)]
    assert blocks[0] == blocks[1] and len(blocks[0]) > 1
    there = {re.sub(r"/en\.md$", "/zh.md", target) for target in links(english)}
    assert there - {"README.zh.md"} == set(links(chinese)) - {"README.md"}


def test_readmes_have_the_same_tables():
    """As many rows and cells, and the same numbers in each row."""
    english, chinese = (rows(read(file)) for file in README.values())
    assert len(english) == len(chinese) > 25
    for ours, theirs in zip(english, chinese, strict=True):
        assert len(ours) == len(theirs), (ours, theirs)
        for cell, other in zip(ours, theirs, strict=True):
            said, said_too = (sorted(NUMBER.findall(text)) for text in (cell, other))
            assert said == said_too, (cell, other)


@pytest.mark.parametrize("language", README)
def test_every_node_has_a_line_and_its_name(language):
    """The node's name there is the one that ComfyUI shows."""
    names = json.loads(read(Path("locales") / language / "nodeDefs.json"))
    pattern = rf"^\| \[([^\]]+)\]\(web/docs/(\w+)/{language}\.md\) \|"
    found = {node: name for name, node in re.findall(pattern, read(README[language]), re.M)}
    assert found == {node: texts["display_name"] for node, texts in names.items()}


def test_the_plot_reads_the_table_of_results():
    """The README has some of its rows."""
    found, some = (which_guidance.results(read(page)) for page in (EVALUATION, README["en"]))
    assert some and set(some) < set(found)
    assert which_guidance.tradeoff(found).width > 600


def test_pictures_are_small_and_can_be_drawn():
    """With few steps: every row of the schedules, from the same noise."""
    folder = ROOT / "docs" / "which_guidance"
    files = {file.stem: file.stat().st_size for file in folder.glob("*.png")}
    assert files.keys() == {*which_guidance.PICTURES, "tradeoff"}
    assert max(files.values()) < 150_000
    draw = which_guidance.drawer(steps="ddim2", labels=(3, 5))
    drawn = [(row.words, draw(row)) for row in which_guidance.PICTURES["schedule"]]
    assert [each.passes for _, each in drawn][0] == 4
    picture = which_guidance.grid(drawn, labels=(3, 5))
    assert picture.height > 6 * which_guidance.TILE
