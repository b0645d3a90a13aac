"""What the page says and finds: classes of images, label hints, errors, search, Chinese."""

from __future__ import annotations

import itertools
import os

import pytest
from PIL import Image
from prompts import classifier, guidance, guided_run, node, write_models
from tiny_models import write_classifier

OPTIONS = "[...document.querySelector('.cg-label datalist').options].map(o => o.value)"
HINT = "document.querySelector('.cg-label .cg-hint').textContent"
ROWS = """() => [...document.querySelectorAll('.cg-seen .cg-image')].map(row => ({
    title: row.querySelector('.cg-title')?.textContent ?? '',
    said: row.getAttribute('aria-label'),
    names: [...row.querySelectorAll('.cg-name')].map(e => e.textContent),
    values: [...row.querySelectorAll('.cg-value')].map(e => e.textContent),
    bars: [...row.querySelectorAll('.cg-bar')].map(e => parseFloat(e.style.width)),
    loaded: row.querySelector('img')?.naturalWidth ?? 0,
}))"""
# what the page's own search finds, in the new search box and in the old one: at most 64 nodes
FOUND = """(phrase) => app.extensionManager._p._s.get('nodeDef').nodeSearchService
    .searchNode(phrase, [], { limit: 64 }).map(node => node.name)"""
SEARCHED = {
    "limited interval": "GuidanceSchedule",
    "guidance interval": "GuidanceSchedule",
    "clip guidance": "ZeroShotClassifier",
    "dynamic cfg": "CFGScaleScheduler",
    "cfg rescale over time": "CFGScaleScheduler",
    "imagenet": "ADMClassLabel",
    "aesthetic": "ImageClassifierLoader",
    "zero shot": "ZeroShotClassifier",
    "有限区间": "GuidanceSchedule",
    "引导区间": "GuidanceSchedule",
    "CLIP 引导": "ZeroShotClassifier",
    "动态 CFG": "CFGScaleScheduler",
    "美学": "ImageClassifierLoader",
    "零样本": "ZeroShotClassifier",
    "分类器引导": "ClassifierGuidance",
}

seeds = itertools.count(3000)


@pytest.fixture
def one_page(opened):
    """A page for what both renderers share."""
    page = opened("Nodes 2.0")
    page.reset()
    return page


def test_search_finds_the_node(one_page):
    found = {phrase: one_page.run(FOUND, phrase) for phrase in SEARCHED}
    for phrase, node_id in SEARCHED.items():
        # "imagenet" is so like "image" that core's popular nodes come before any alias
        first = 64 if phrase == "imagenet" else 1
        assert node_id in found[phrase][:first], (phrase, found[phrase])


def digits(server, count):
    """A picture in the input folder of each of so many digits, and a run that classifies them."""
    folder = server.base / "input"
    for index in range(count):
        Image.new("RGB", (32, 32), (80 * index, 90, 160)).save(folder / f"digit{index}.png")
    prompt = {
        "classifier": node("NoisyClassifierLoader", classifier_name="named.safetensors"),
        "0": node("LoadImage", image="digit0.png"),
    }
    prompt["classifier"]["inputs"] |= {"noise_schedule": "auto", "dtype": "auto"}
    for index in range(1, count):
        prompt[f"picture{index}"] = node("LoadImage", image=f"digit{index}.png")
        links = {"image1": [str(index - 1), 0], "image2": [f"picture{index}", 0]}
        prompt[str(index)] = node("ImageBatch", **links)
    links = {"classifier": ["classifier", 0], "image": [str(count - 1), 0]}
    return prompt | {"seen": node("ClassifyImage", **links, top_k=3)}


def write_named(server):
    path = write_models(server.base) / "classifiers" / "named.safetensors"
    small = {"channel_mult": (1,), "attention_levels": (), "pool": "adaptive"}
    write_classifier(path, labels=("zebra", "kit fox, Vulpes macrotis", "cat", "owl"), **small)


def test_each_image_has_bars_and_a_thumbnail(page, server):
    write_named(server)
    page.build(digits(server, 2))
    assert page.queue()["status"]["status_str"] == "success"
    page.wait(f"() => ({ROWS})().filter(row => row.loaded > 0).length === 2")
    rows = page.run(ROWS)
    assert [row["title"] for row in rows] == ["image 1", "image 2"]
    for row in rows:
        assert len(row["names"]) == len(row["bars"]) == 3
        assert row["bars"] == sorted(row["bars"], reverse=True) and sum(row["bars"]) <= 100.01
        assert row["said"].startswith(f"{row['title']}: {row['names'][0]} {row['values'][0]}")
    # neither the prompt nor the saved workflow holds anything of it
    assert set(page.prompt()["seen"]["inputs"]) == {"classifier", "image", "top_k"}


def test_a_score_is_a_number(page):
    seen = page.add("ClassifyImage")
    page.run(
        """(id) => app.graph.getNodeById(id).onExecuted({ text: ["score 5.42"], count: [1],
            is_score: [true], classified: [{ thumbnail: null, classes: [["score", 5.4211]] }] })""",
        seen,
    )
    page.show(seen)
    page.box(".cg-seen")
    (row,) = page.run(ROWS)
    assert (row["names"], row["values"], row["bars"]) == (["score"], ["5.42"], [])


def test_label_field_of_a_file_without_names_or_not_yet_there(page, server):
    """The hint follows the loader's file; OpenAI's classes have names before the download."""
    write_models(server.base)
    page.build({"classifier": classifier("one.safetensors"), "guided": guidance("0", 1.0)})
    page.wait(f"() => {HINT} === 'no names: 0 to 3'")
    page.set_values("classifier", classifier_name="openai/64x64_classifier.pt")
    field = page.tab.locator(".cg-label input")
    field.focus()
    page.wait(f"() => {OPTIONS}.includes('golden retriever')")
    assert page.run(f"() => [{HINT}, {OPTIONS}.length]") == ["", 1000]


def test_names_with_commas_stay_whole(page, server):
    write_named(server)
    page.build({"classifier": classifier("named.safetensors"), "guided": guidance("0", 1.0)})
    field = page.tab.locator(".cg-label input")
    field.focus()
    page.wait(f"() => {OPTIONS}.length === 4")
    field.fill("Kit fox, V")
    assert page.run(f"() => {OPTIONS}")[1] == "kit fox, Vulpes macrotis"
    field.fill("cat, kit fox, V")
    assert page.run(f"() => {OPTIONS}")[1] == 'cat, "kit fox, Vulpes macrotis"'
    field.fill("kit fox, Vulpes macrotis, ")
    assert page.run(f"() => {OPTIONS}")[2] == "kit fox, Vulpes macrotis, cat"


def test_a_wrong_count_of_labels_is_an_error_of_the_guidance_node(page, server):
    write_models(server.base)
    prompt = guided_run(label="0, 1, 2", batch=2, seed=next(seeds))
    prompt["7"] = prompt.pop("guided")  # a number, as the page has them
    prompt["sampled"]["inputs"]["model"] = ["7", 0]
    page.build(prompt)
    ended = page.queue()
    assert ended["status"]["status_str"] == "error"
    error = page.wait("() => app.lastExecutionError")
    assert (error["node_id"], error["node_type"]) == ("7", "ClassifierGuidance")
    assert error["exception_message"].startswith("label of Classifier Guidance lists 3 classes")
    assert error["exception_type"] == "guidance.LabelError"  # and not this pack's path


def test_a_plot_without_samples_says_what_they_are_for(page, server):
    write_models(server.base)
    prompt = guided_run(seed=next(seeds))
    prompt["7"] = node("GuidanceTrace", model=["guided", 0])
    prompt["sampled"]["inputs"]["model"] = ["7", 0]
    page.build(prompt | {"8": node("GuidancePlot", trace=["7", 1])})
    assert page.queue()["status"]["status_str"] == "success"
    page.wait(
        """() => app.graph.getNodeById(8).widgets?.some(
            one => String(one.value).startsWith("samples is not connected"))"""
    )


@pytest.fixture
def chinese(one_page):
    """The page in Chinese."""
    change = "(locale) => app.extensionManager.setting.set('Comfy.Locale', locale)"
    for locale in ("zh", "en"):
        one_page.run(change, locale)
        one_page.tab.wait_for_timeout(2000)  # the page reads its nodes and its workflow again
        if locale == "zh":
            yield one_page


def test_the_page_in_chinese(chinese, server):
    """The label field, its hint, the classified images, and a sentence of the server."""
    write_named(server)
    chinese.reset()
    chinese.build({"classifier": classifier("one.safetensors"), "guided": guidance("0", 1.0)})
    chinese.wait(f"() => {HINT} === '无名称：0 到 3'")
    assert chinese.run("() => document.querySelector('.cg-label span').textContent") == "标签"
    chinese.build(digits(server, 2))
    chinese.wait("() => document.querySelector('.cg-empty')?.textContent.startsWith('运行后')")
    chinese.queue()
    chinese.wait(f"() => ({ROWS})()[1]?.title === '图像 2'")
    words = "(text) => import('/extensions/classifier-guidance/lib/words.js')"
    words += ".then(words => words.translated(text))"
    said = "keyframes has 'x'; expected a number."
    assert chinese.run(words, said) == "关键帧含有 'x'；应为数。"
    said = "scale is 'x'; expected a number from 0 to 9."
    assert chinese.run(words, said) == "强度为 'x'；应为 0 到 9 的数。"
    assert chinese.errors == []


@pytest.mark.long
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_pictures(page, server, renderer, theme, tmp_path):
    """Classify Image and the label hint in both themes; PICTURES names a folder to keep them."""
    write_named(server)
    prompt = digits(server, 3) | {"one": classifier("one.safetensors")}
    prompt["guided"] = guidance("0", 1.0)
    prompt["guided"]["inputs"]["classifier"] = ["one", 0]
    page.run("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", theme)
    page.build(prompt)
    page.queue()
    page.wait(f"() => ({ROWS})().filter(row => row.loaded > 0).length === 3")
    page.run(
        """() => {
            app.graph.getNodeById("seen").pos = [-4000, 0];
            app.graph.getNodeById("guided").pos = [-3640, 0];
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [4100, 150];
            app.canvas.setDirty(true, true);
        }"""
    )
    page.box(".cg-seen")
    folder = os.environ.get("PICTURES", tmp_path)
    name = f"{folder}/classes_{theme}_{renderer.replace(' ', '_')}.png"
    page.tab.screenshot(path=name, clip={"x": 60, "y": 60, "width": 900, "height": 560})
    page.run("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
