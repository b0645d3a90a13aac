"""Finds what people read in the page's JavaScript, and the sentences that Python sends to it."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

# a text that is given to one of these is shown, or read aloud
SHOWN = re.compile(
    r"(textContent|innerText|placeholder|\.title|\.alt)\s*=(?!=)"
    r"|\"?(aria-label|aria-valuetext|aria-description|title|placeholder)\"?\s*[:,]"
    r"|new Option\(|addText\("
)
WORDS = re.compile(r"[A-Za-z]{2,}[,;:.]? +[A-Za-z{(]|\}[,;:]? +[a-z]{3,}|^[A-Za-z]+:? (\{|$)")
TRANSLATED = re.compile(r"(?<![\w.])t\(\s*$")
NOT_READ = re.compile(
    r"(STYLE\w*|className|font|style\.\w+)\s*[=:]\s*$|(from|import)\s*$"
    r"|(querySelector(All)?|closest|matches|classList\.\w+|new Error|console\.\w+|RegExp)\([^)]*$"
)
CODE_LIKE = re.compile(r"[.#/\[*]|\d[\d.%-]*(px|fr|%)?\b[\s\w.%-]*$|color-mix|cg-|\{\}$")
BEFORE_REGEX = re.compile(r"(^|[(,=:\[!&|?{};\n]|return)\s*$")


@dataclass(frozen=True)
class Text:
    """A string of the source: its line, the code of its statement before it, and itself.

    Values of a template stand as {} in it.
    """

    line: int
    before: str
    text: str
    is_key: bool = False  # of an object

    @property
    def is_translated(self) -> bool:
        """Whether it is the text of t(...)."""
        return bool(TRANSLATED.search(self.before))

    @property
    def is_read(self) -> bool:
        """Whether people read it on the page, as far as its place and its form tell."""
        if self.is_key or NOT_READ.search(self.before) or not re.search("[A-Za-z]{2}", self.text):
            return False
        if SHOWN.search(self.before) and not re.search(r"[=!]==?\s*$", self.before):
            return not self.text.startswith("cg-")
        return bool(WORDS.search(self.text)) and not CODE_LIKE.match(self.text)


def texts_of(source: str) -> list[Text]:
    """The strings of a JavaScript file, without those in comments."""
    found: list[Text] = []
    _scan(source, 0, "", found)
    return found


def _scan(source: str, at: int, end: str, found: list[Text]) -> int:
    """Reads code from `at` to the `end` that closes it; the place after it."""
    depth, statement = 0, at
    while at < len(source):
        here = source[at]
        if source.startswith("//", at):
            at = _after(source, "\n", at)
        elif source.startswith("/*", at):
            at = _after(source, "*/", at + 2)
        elif here in "\"'`":
            line, before = source.count("\n", 0, at) + 1, source[statement:at]
            at, text = _string(source, at, found)
            is_key = source[at : at + 1] == ":" and before.rstrip()[-1:] in ("", ",")
            found.append(Text(line, before, text, is_key))
        elif here == "/" and BEFORE_REGEX.search(source[max(0, at - 20) : at]):
            at += re.match(r"/(\\.|\[(\\.|[^\]\\])*\]|[^/\\\n])+/\w*", source[at:]).end()
        else:
            if here == end and depth == 0:
                return at + 1
            depth += {"{": 1, "}": -1}.get(here, 0)
            at += 1
            statement = at if here in ";{}" else statement
    return at


def _after(source: str, mark: str, at: int) -> int:
    place = source.find(mark, at)
    return len(source) if place < 0 else place + len(mark)


def _string(source: str, at: int, found: list[Text]) -> tuple[int, str]:
    """The place after a string, and its text; strings in a template's values are found, too."""
    quote, text = source[at], ""
    at += 1
    while source[at] != quote:
        if source[at] == "\\":
            text += source[at + 1]
            at += 2
        elif quote == "`" and source.startswith("${", at):
            text += "{}"
            at = _scan(source, at + 2, "}", found)
        else:
            text += source[at]
            at += 1
    return at + 1, text


def chinese_of(file: Path) -> dict[str, str]:
    """The texts in words_zh.js, with {} for each value in the English."""
    text = file.read_text("utf-8")
    words = json.loads(text[text.index("= {") + 2 : text.rindex("}") + 1])
    return {blank(key): value for key, value in words.items()}


def blank(text: str) -> str:
    """The text with {} for each {name}."""
    return re.sub(r"\{\w+\}", "{}", text)


def sentences_of(source: str) -> list[tuple[int, str]]:
    """The sentences in a Python file that the page shows, with their lines.

    They are in schedule and label errors, in `show_on_node` for a node, in {"error": ...}, and in
    a preview's notes.
    """
    tree = ast.parse(source)
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    said = [one for node in ast.walk(tree) for one in _said(node)]
    named = [constants.get(one.id, one) if isinstance(one, ast.Name) else one for one in said]
    texts = ((one.lineno, _template(one)) for one in named)
    return [(line, text) for line, text in texts if re.search("[A-Za-z]{2}", text)]


def _said(node: ast.AST) -> list[ast.expr]:
    """What the node of a syntax tree says to the page."""
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        pairs = zip(keys, node.values, strict=True)
        return [value for key, value in pairs if key == "error"]
    if not isinstance(node, ast.Call) or not node.args:
        return []
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    if name in ("ScheduleError", "LabelError") or _is_note(node):
        first = node.args[0]
        return [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
    for_a_node = len(node.args) > 1 and getattr(node.args[1], "value", "") is not None
    return node.args[:1] if name == "show_on_node" and for_a_node else []


def _is_note(call: ast.Call) -> bool:
    return ast.unparse(call.func) == "notes.append"


def _template(said: ast.expr) -> str:
    """A text with {} for each value; empty for what is no text."""
    if isinstance(said, ast.Constant):
        return said.value if isinstance(said.value, str) else ""
    if not isinstance(said, ast.JoinedStr):
        return ""
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "{}" for part in said.values
    )
