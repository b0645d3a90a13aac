"""Labels as people write them."""

from __future__ import annotations

import sys

import pytest

from guidance import LabelError
from guidance.core.labels import (
    class_names,
    distinct_names,
    imagenet_names,
    parse_labels,
    spread_labels,
)

NAMES = ("zebra", "golden retriever", "golden eagle", "Kit Fox", "cat", "catfish", "crane", "crane")


def parse(text, names=NAMES):
    return parse_labels(text, len(names), names)


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("0", [0]),
        ("7", [7]),
        (" 3 ", [3]),
        ("+3", [3]),
        ("000000001", [1]),
        ("ZEBRA", [0]),
        ("kit fox", [3]),
        ("golden r", [1]),
        ("GOLDEN E", [2]),
        ("z", [0]),
        ("cat", [4]),
        ("catf", [5]),
        ("zebra, 2 ,cat,zebra", [0, 2, 4, 0]),
    ],
)
def test_a_class_is_found_by_index_name_or_unique_prefix(text, indices):
    assert parse(text) == indices


def test_a_name_that_is_a_number_comes_before_the_index():
    names = ("7", "3", "0", "10", "11")
    assert parse("7, 0", names) == [0, 2]
    assert parse("1", names) == [1], "an index, not a prefix of '10' and '11'"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("golden", ["'golden'", "2 classes: 'golden retriever' (1), 'golden eagle' (2)", "index"]),
        ("Crane", ["'Crane'", "'crane' (6), 'crane' (7)", "index"]),
        ("ca", ["'cat' (4)", "'catfish' (5)"]),
        ("zibra", ["'zibra'", "none of the 8 classes", "did you mean 'zebra'?"]),
        ("catz", ["did you mean 'cat' or 'catfish'?"]),
        ("golden retreiver", ["'golden retriever'"]),
        ("kit fix", ["'Kit Fox'"]),
        ("qqqqqqq", ["'qqqqqqq'", "no name is similar"]),
        ("1234567890", ["'1234567890'", "none of the 8 classes"]),
        ("8", ["label is 8,", "from 0 to 7"]),
        ("-1", ["label is -1,", "from 0 to 7"]),
        ("zebra, 8", ["label is 8,"]),
        *((text, [repr(text), "expected a class index"]) for text in ("", " ", ",", "1,", "1,,2")),
        *((text, ["label"]) for text in ("--3", "+-3", "²", "1.5", "9" * 5000)),
    ],
)
def test_a_label_that_names_no_class_or_several(text, said):
    with pytest.raises(LabelError) as caught:
        parse(text)
    for words in said:
        assert words in str(caught.value)


def test_at_most_five_classes_are_offered():
    names = [f"class {index}" for index in range(500)]
    with pytest.raises(LabelError, match=r"any of 500 classes: .*'class 4' \(4\);"):
        parse("class", names)


def test_without_names_only_an_index_will_do():
    assert parse_labels("4", 5) == [4]
    with pytest.raises(LabelError, match="'zebra', .* no names; .* 0 to 4"):
        parse_labels("zebra", 5)


def test_classes_are_named_by_the_model_or_by_imagenet(monkeypatch):
    monkeypatch.setattr("guidance.core.labels.imagenet_names", lambda: ("tench",))
    assert class_names(1000, None) == ("tench",)
    assert class_names(999, None) is None and class_names(1001, None) is None
    assert class_names(1000, ["own"]) == ("own",)


def test_imagenet_names_come_from_torchvision():
    models = pytest.importorskip("torchvision.models")
    categories = models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(imagenet_names()) == list(categories)
    assert parse_labels("golden retriever, 207, Golden Ret", 1000) == [207, 207, 207]
    with pytest.raises(LabelError, match=r"'goldfish' \(1\), 'goldfinch' \(11\)"):
        parse_labels("goldf", 1000)


def test_without_torchvision_there_are_no_imagenet_names(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    imagenet_names.cache_clear()
    try:
        assert imagenet_names() is None
        assert parse_labels("207", 1000) == [207]
    finally:
        imagenet_names.cache_clear()


def test_one_label_is_spread_over_the_batch():
    assert spread_labels((4,), 1) == [4] and spread_labels([4], 3) == [4, 4, 4]
    assert spread_labels([4, 5, 6], 3) == [4, 5, 6]
    for labels in ([1, 2], [1, 2, 3, 4], []):
        for name, given in (("label", ()), ("away from", ("away from",))):
            said = f"{name} lists {len(labels)} classes.* 3 images; .* or 3"
            with pytest.raises(LabelError, match=said):
                spread_labels(labels, 3, *given)


SPECIES = (
    "tench, Tinca tinca",
    "goldfish, Carassius auratus",
    "crane",
    "crane, bird",
    "7",
    "cat",
    "1,2-xylene",
    "rose, rose hip",
)


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("tench, Tinca tinca", [0]),
        ("TENCH, tinca TINCA", [0]),
        ("tench, Tin", [0]),
        ("tench, goldfish", [0, 1]),
        ('"tench, Tinca tinca", cat', [0, 5]),
        ('cat,"tench, Tinca tinca"', [5, 0]),
        ("tench, Tinca tinca, goldfish, Carassius auratus", [0, 1]),
        ("tench, Tinca tinca\ngoldfish, Carassius auratus\n", [0, 1]),
        ("cat, 0\n7", [5, 0, 4]),
        ("crane, bird, cat", [3, 5]),
        ("crane", [2]),
        ("crane (2)", [2]),
        ("cat, 1,2-xylene,  ROSE ,rose hip , cat", [5, 6, 7, 5]),  # however commas are spaced
    ],
)
def test_names_with_commas(text, indices):
    assert parse(text, SPECIES) == indices


@pytest.mark.parametrize("text", ["", " , ", "cat,,cat", "cat,", '""', "\n"])
def test_an_empty_label_of_a_list_is_refused(text):
    with pytest.raises(LabelError, match="expected a class index or name"):
        parse(text, SPECIES)


def test_every_name_of_imagenet_as_the_page_offers_it_is_its_own_class():
    """With all synonyms, as Hugging Face's models spell them; two classes are called crane."""
    info = pytest.importorskip("timm.data").ImageNetInfo("imagenet-1k")
    names = tuple(info.index_to_description(index) for index in range(1000))
    offered = distinct_names(names)
    assert len(set(offered)) == 1000 and sum("," in name for name in names) > 400
    for index, name in enumerate(offered):
        assert parse(name, names) == [index], name
        assert parse(f"{offered[0]}, {name}", names) == [0, index], name


@pytest.mark.parametrize("text", ["x" * 200_000, "cat," * 50_000 + "x", " " * 200_000 + "x"])
def test_a_long_text_is_refused_in_a_short_sentence(text):
    with pytest.raises(LabelError) as caught:
        parse(text, SPECIES)
    assert len(str(caught.value)) < 300
