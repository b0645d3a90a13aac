"""Labels as people write them."""

from __future__ import annotations

import sys

import pytest

from guidance import LabelError
from guidance.core.labels import class_names, imagenet_names, parse_labels, spread_labels

NAMES = ("zebra", "golden retriever", "golden eagle", "Kit Fox", "cat", "catfish", "crane", "crane")


def parse(text, names=NAMES):
    return parse_labels(text, len(names), names)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("0", 0),
        ("7", 7),
        (" 3 ", 3),
        ("+3", 3),
        ("zebra", 0),
        ("ZEBRA", 0),
        ("kit fox", 3),
        ("golden r", 1),
        ("GOLDEN E", 2),
        ("z", 0),
        ("cat", 4),
        ("catf", 5),
    ],
)
def test_a_class_is_found_by_index_name_or_unique_prefix(text, index):
    assert parse(text) == [index]


def test_a_list_keeps_its_order_and_repeats():
    assert parse("zebra, 2 ,cat,zebra") == [0, 2, 4, 0]


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("golden", ["'golden retriever' (1)", "'golden eagle' (2)"]),
        ("crane", ["'crane' (6)", "'crane' (7)"]),
        ("ca", ["'cat' (4)", "'catfish' (5)"]),
    ],
)
def test_an_ambiguous_name_lists_what_it_could_be(text, offered):
    with pytest.raises(LabelError) as caught:
        parse(text)
    for option in (repr(text), *offered, "index"):
        assert option in str(caught.value)


@pytest.mark.parametrize(
    ("text", "near"), [("zibra", "'zebra'"), ("golden retreiver", "'golden retriever'")]
)
def test_an_unknown_name_offers_the_nearest(text, near):
    with pytest.raises(LabelError) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert near in str(caught.value)


def test_an_unknown_name_near_nothing_says_so():
    with pytest.raises(LabelError, match="'qqqqqqq'.*no name is similar"):
        parse("qqqqqqq")


def test_many_ambiguous_classes_are_not_all_listed():
    names = [f"class {index}" for index in range(500)]
    with pytest.raises(LabelError, match="any of 500 classes") as caught:
        parse("class", names)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["8", "-1", "1000000", "zebra, 8"])
def test_an_index_out_of_range_is_refused(text):
    with pytest.raises(LabelError, match="label is (8|-1|1000000),.* from 0 to 7"):
        parse(text)


@pytest.mark.parametrize("text", ["", " ", ",", "1,", ",1", "1,,2"])
def test_an_empty_entry_is_refused(text):
    with pytest.raises(LabelError, match="expected a class index or name"):
        parse(text)


@pytest.mark.parametrize("text", ["--3", "+-3", "-+3", "²", "1.5", "9" * 5000])
def test_what_looks_like_a_number_but_is_none_is_a_label_error(text):
    with pytest.raises(LabelError):
        parse(text)


def test_without_names_only_an_index_will_do():
    assert parse_labels("4", 5) == [4]
    with pytest.raises(
        LabelError, match="'zebra', but this model's classes have no names.* 0 to 4"
    ):
        parse_labels("zebra", 5)


def test_a_name_that_is_a_number_comes_before_the_index():
    names = ("7", "3", "0", "10", "11")
    assert parse("7", names) == [0]
    assert parse("0", names) == [2]
    assert parse("1", names) == [1], "an index, not a prefix of '10' and '11'"


def test_classes_are_named_by_the_model_or_by_imagenet():
    assert class_names(1000, ("own",)) == ("own",)
    assert class_names(10, None) is None
    assert class_names(1000, None) == imagenet_names()


def test_imagenet_names_come_from_torchvision():
    models = pytest.importorskip("torchvision.models")
    categories = models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(imagenet_names()) == list(categories)
    assert parse_labels("golden retriever, 207, Golden Ret", 1000) == [207, 207, 207]
    with pytest.raises(LabelError, match="'zibra'.*did you mean 'zebra'"):
        parse_labels("zibra", 1000)
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
    assert spread_labels([4], 3) == [4, 4, 4]
    assert spread_labels([4, 5, 6], 3) == [4, 5, 6]


@pytest.mark.parametrize("labels", [[1, 2], [1, 2, 3, 4], []])
def test_labels_that_do_not_fit_the_batch_are_refused(labels):
    with pytest.raises(LabelError, match=f"lists {len(labels)} classes.* 3 images"):
        spread_labels(labels, 3)
