"""Everything that the page says has a Chinese text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from page_words import chinese_of, sentences_of, texts_of

ROOT = Path(__file__).resolve().parents[2]
WORDS = ROOT / "web" / "lib" / "words_zh.js"
SCRIPTS = [file for file in sorted((ROOT / "web").rglob("*.js")) if file != WORDS]
SENDERS = [
    ROOT / "guidance" / "core" / "labels.py",
    *sorted((ROOT / "guidance" / "schedules").glob("*.py")),
    *sorted((ROOT / "nodes").rglob("*.py")),
]
CHINESE = chinese_of(WORDS)


def named(file):
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_every_text_of_the_page(script):
    """It goes through t(...), and its Chinese is in web/lib/words_zh.js."""
    missing = [
        f"{named(script)}:{one.line}: {one.text!r} is not in t(...)"
        for one in texts_of(script.read_text("utf-8"))
        if one.is_read and not one.is_translated
    ]
    missing += [
        f"{named(script)}:{one.line}: {one.text!r} has no Chinese text"
        for one in texts_of(script.read_text("utf-8"))
        if one.is_translated and re.sub(r"\{\w+\}", "{}", one.text) not in CHINESE
    ]
    assert not missing, "\n".join(missing)


def test_every_sentence_that_python_sends_to_the_page():
    missing = [
        f"{named(file)}:{line}: {text!r} has no Chinese text"
        for file in SENDERS
        for line, text in sentences_of(file.read_text("utf-8"))
        if text not in CHINESE
    ]
    assert not missing, "\n".join(missing)


def test_chinese_texts_keep_their_values():
    """Each value of the English is in the Chinese, by its name."""
    text = WORDS.read_text("utf-8")
    pairs = re.findall(r'^  "((?:[^"\\]|\\.)*)": "((?:[^"\\]|\\.)*)"', text, re.M)
    assert len(pairs) == len(CHINESE)  # no text is there twice
    for english, chinese in pairs:
        values = [sorted(re.findall(r"\{(\w+)\}", one)) for one in (english, chinese)]
        assert values[0] == values[1] == sorted(set(values[0])), english


def test_what_counts_as_a_text():
    source = """
        // "a comment", it's one
        const STYLE = `.a { color: red; font: 12px sans-serif }`;
        element.className = "cg-a cg-b"; field.setAttribute("aria-label", "classes");
        const found = /"[^"]*"?/g.exec(`M${x},${y}`); box.style.font = "11px sans-serif";
        status.textContent = last ? `step ${a}/${b.map((one) => `${one} px`)}` : t("done");
        list.append(new Option("linear", name)); row("and more of it"); svg("line", {});
    """
    found = texts_of(source)
    read = {one.text for one in found if one.is_read and not one.is_translated}
    assert read == {"classes", "step {}/{}", "linear", "and more of it"}
    assert [one.text for one in found if one.is_translated] == ["done"]
