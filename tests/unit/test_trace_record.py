"""A trace without ComfyUI: what it counts, means and lengths, and its JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch

from guidance.classifiers.base import ClassifierOutput
from guidance.core.host_copy import HostCopy
from guidance.sampling.classifier_record import (
    LONGEST_SIDE,
    MOST_IMAGES,
    MOST_PICTURES,
    ClassifierRecord,
    TracedClassifier,
)
from guidance.sampling.trace import Evaluation, Trace
from guidance.schedules.run_position import RunPosition

EMPTY = {"passes": 0, "saved": 0, "classifiers": [], "evaluations": []}
SIGMA = torch.tensor([2.5, 9.0])


def position_of(sigma):
    return RunPosition(percent=sigma / 10, step=sigma * 2, steps=20, sigma=sigma)


@pytest.fixture
def trace():
    """In its first evaluation, of two images."""
    trace = Trace()
    trace.evaluation(SIGMA, position_of)
    return trace


def output_of(log_probs, seen=None):
    """A classifier's output with log p(y | x) (B, classes)."""
    ones = torch.ones(len(log_probs))
    return ClassifierOutput(torch.ones(1), ones, log_probs, ones, ones, seen=seen)


def add(trace, log_probs, *, which=None, labels=None, scales=None, term=None, seen=None):
    """One evaluation of a classifier, for class 0 unless there are labels."""
    batch = len(log_probs)
    scales = torch.ones(batch) if scales is None else scales
    term = torch.ones(batch, 2) if term is None else term
    labels = torch.zeros(batch, dtype=torch.long) if labels is None else labels
    which = which or TracedClassifier("a")
    trace.classifier(which, scales, term, labels, output_of(log_probs, seen))


def last(trace):
    """The last evaluation as numbers."""
    return trace.to_dict()["evaluations"][-1]


def test_an_evaluation_starts_with_nothing_but_its_position(trace):
    """The sigma of the first image stands for the batch."""
    nothing = {"cfg": None, "cfg_norm": None, "passes": 0, "saved": 0, "classifiers": []}
    assert last(trace) == {"sigma": 2.5, "step": 5.0, "percent": 0.25} | nothing
    assert trace.evaluations[0].position == position_of(2.5)
    begun = trace.evaluation(torch.tensor([[3.0], [4.0]]), position_of)
    assert begun is trace.evaluations[1] and begun.position.sigma == 3.0


def test_passes_add_up_in_the_evaluation_they_belong_to(trace):
    for passes, saved in ((2, 1), (3, 4)):
        trace.passes(passes)
        trace.saved(saved)
    trace.evaluation(SIGMA, position_of)
    trace.passes(1)
    trace.saved(2)
    found = trace.to_dict()
    assert [one["passes"] for one in found["evaluations"]] == [5, 1]
    assert [one["saved"] for one in found["evaluations"]] == [5, 2]
    assert (found["passes"], found["saved"]) == (6, 7)
    trace.begin()
    assert trace.to_dict() == EMPTY


def test_before_the_first_evaluation_nothing_is_recorded():
    trace = Trace()
    trace.passes(1)
    trace.saved(1)
    trace.cfg(2.0, torch.ones(1, 2), torch.zeros(1, 2))
    add(trace, torch.zeros(1, 2))
    assert trace.to_dict() == EMPTY


@pytest.mark.parametrize(
    ("scale", "cfg", "norm"),
    [(4, 4.0, (3 * 5 + 3 * 1) / 2), (torch.tensor([[2.0], [5.0]]), 3.5, (1 * 5 + 4 * 1) / 2)],
)
def test_cfg_has_a_scale_and_the_length_of_its_term(trace, scale, cfg, norm):
    """Of (cfg - 1) (cond - uncond), of each image, then the mean."""
    cond = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    uncond = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    trace.cfg(scale, cond, None)
    assert (last(trace)["cfg"], last(trace)["cfg_norm"]) == (cfg, None)
    assert isinstance(last(trace)["cfg"], float)
    trace.cfg(scale, cond, uncond)
    assert last(trace)["cfg"] == cfg and last(trace)["cfg_norm"] == pytest.approx(norm)


def test_each_classifier_has_a_record(trace):
    """Of the label of each image; the best classes by their names."""
    term = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    log_probs = torch.tensor([[0.1, 0.2, 0.6, 0.1], [0.5, 0.15, 0.05, 0.3]]).log()
    named = TracedClassifier("b", "animals", (3, 0), ("cat", "dog", "cow", "emu"))
    labels = torch.tensor(named.labels)
    scales = torch.tensor([2.0, 3.0])
    add(trace, log_probs, which=named, labels=labels, scales=scales, term=term)
    add(trace, log_probs[:, :2], labels=torch.tensor([1, 1]), term=2 * term)
    first, second = last(trace)["classifiers"]
    assert (first["classifier"], first["scale"], first["norm"]) == (0, 2.5, 3.0)
    assert first["log_probs"] == pytest.approx([math.log(0.1), math.log(0.5)])
    assert [name for name, _ in first["best"][0]][:2] == ["cow", "dog"]
    assert first["best"][1] == [["cat", 0.5], ["emu", 0.3], ["dog", 0.15]]
    assert (second["classifier"], second["norm"]) == (1, 6.0)
    assert second["best"][0] == [["1", 0.2], ["0", 0.1]]
    assert trace.to_dict()["classifiers"] == [
        {"name": "animals", "kind": "probability", "labels": ["emu", "cat"]},
        {"name": "classifier", "kind": "probability", "labels": []},
    ]
    trace.evaluation(SIGMA, position_of)
    assert last(trace)["classifiers"] == []


def test_a_classifier_keeps_its_number_where_another_is_off(trace):
    one, two = TracedClassifier("one"), TracedClassifier("two")
    add(trace, torch.zeros(1, 2), which=one)
    trace.evaluation(SIGMA, position_of)
    add(trace, torch.zeros(1, 2), which=two)
    trace.evaluation(SIGMA, position_of)
    add(trace, torch.zeros(1, 2), which=two)
    add(trace, torch.zeros(1, 2), which=one)
    seen = trace.to_dict()["evaluations"]
    found = [[row["classifier"] for row in one["classifiers"]] for one in seen]
    assert found == [[0], [1], [1, 0]]


def test_a_score_is_not_a_probability(trace):
    """It stays what the classifier gave."""
    which = TracedClassifier("a", "beauty", (0,), ("score",), is_score=True)
    add(trace, torch.tensor([[812.5], [-3.0]]), which=which)
    (record,) = last(trace)["classifiers"]
    assert record["scores"] == [812.5, -3.0] and "log_probs" not in record
    assert record["best"] == [[["score", 812.5]], [["score", -3.0]]]
    assert trace.to_dict()["classifiers"][0]["kind"] == "score"


# --- pictures --------------------------------------------------------------------------------


def pictures_of(trace):
    """By the number of the evaluation, the pictures that the trace keeps."""
    return {
        index: record.pictures.wait()
        for index, evaluation in enumerate(trace.evaluations)
        for record in evaluation.classifiers
        if record.pictures is not None
    }


def test_pictures_are_small_and_of_the_first_images(trace):
    """Black, white and gray stay so; the longer side is shrunk, small images stay."""
    seen = torch.tensor([-1.0, 1.0, 0.0, 5.0, 0.0, 0.0]).view(-1, 1, 1, 1).expand(-1, 3, 64, 512)
    add(trace, torch.zeros(6, 5), seen=seen)
    (kept,) = pictures_of(trace).values()
    assert kept.dtype == torch.uint8 and kept.shape == (MOST_IMAGES, 16, LONGEST_SIDE, 3)
    assert [one.unique().tolist() for one in kept] == [[0], [255], [128], [255]]
    assert len(last(trace)["classifiers"][0]["best"]) == MOST_IMAGES
    trace.begin()
    trace.evaluation(SIGMA, position_of)
    image = torch.rand(1, 1, 28, 20) * 2 - 1
    add(trace, torch.zeros(1, 5), seen=image)
    (kept,) = pictures_of(trace).values()
    assert kept.shape == (1, 28, 20, 1)
    assert (kept[0, ..., 0] / 127.5 - 1 - image[0, 0]).abs().max() < 1 / 127


@pytest.mark.parametrize("length", [1, 7, MOST_PICTURES, MOST_PICTURES + 1, 50, 1000])
def test_a_long_run_keeps_few_pictures_evenly_spread(length):
    """Those of the first and the last evaluation among them; every number is kept."""
    trace = Trace()
    for index in range(length):
        trace.evaluation(SIGMA, position_of)
        add(trace, torch.zeros(1, 2), seen=torch.full((1, 3, 4, 4), index / 500 - 1))
    kept = sorted(pictures_of(trace))
    assert (kept[0], kept[-1]) == (0, length - 1)
    assert len(kept) == length or MOST_PICTURES / 2 <= len(kept) <= MOST_PICTURES + 1
    gaps = {b - a for a, b in zip(kept[:-2], kept[1:-1], strict=True)}
    assert len(gaps) <= 1 and kept[-1] - kept[-2:][0] <= max(gaps, default=1)
    assert all(len(one.classifiers) == 1 for one in trace.evaluations)


def test_an_output_of_the_cache_leaves_no_picture(trace):
    add(trace, torch.zeros(1, 2), seen=None)
    assert pictures_of(trace) == {} and len(last(trace)["classifiers"]) == 1


# --- values that come late -------------------------------------------------------------------


class OnItsWay(HostCopy):
    """A value that has not arrived from its device."""

    arrived = False


def copy(there=True):
    return (HostCopy if there else OnItsWay)(torch.tensor(1.0))


COPIES = ("scale", "norm", "values", "best", "best_classes")


@pytest.mark.parametrize("late", [None, "sigma", "cfg", "cfg_norm", *COPIES])
def test_an_evaluation_has_arrived_with_the_last_of_its_numbers(late):
    scales, term, labels = torch.ones(1), torch.ones(1, 2), torch.zeros(1).long()
    output = output_of(torch.zeros(1, 2))
    record = ClassifierRecord(0, TracedClassifier("a"), scales, term, labels, output)
    for name in COPIES:
        setattr(record, name, copy(name != late))
    numbers = {name: copy(name != late) for name in ("sigma", "cfg", "cfg_norm")}
    evaluation = Evaluation(position_of=position_of, **numbers, classifiers=[record])
    assert evaluation.arrived == (late is None)
    assert Evaluation(copy(), position_of, cfg=3.0).arrived


def test_json_has_null_for_what_is_no_number(trace):
    broken = torch.tensor([-math.inf, math.nan, math.inf, -1.5])[:, None]
    add(trace, broken, scales=torch.full((4,), math.nan), term=torch.ones(4, 4))
    trace.passes(3)
    found = json.loads(trace.to_json())
    assert found["passes"] == 3 and found["evaluations"][0]["sigma"] == 2.5
    record = {"classifier": 0, "scale": None, "norm": 2.0, "log_probs": [None, None, None, -1.5]}
    best = [[["0", value]] for value in (0.0, None, None, 0.2231)]
    assert found["evaluations"][0]["classifiers"] == [record | {"best": best}]
    plain = trace.evaluations[0].to_plain()
    assert plain["classifiers"] == [record | {"best": best}] and plain["passes"] == 3
    # as numbers they stay what they are
    assert last(trace)["classifiers"][0]["log_probs"][0] == -math.inf
