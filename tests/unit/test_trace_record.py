"""A trace without ComfyUI: what it counts, means and lengths, and its JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch

from guidance.core.host_copy import HostCopy
from guidance.sampling.trace import ClassifierRecord, Evaluation, Trace, mean_norm
from guidance.schedules.run_position import RunPosition

SIGMA = torch.tensor([2.5, 9.0])


def place_at(sigma):
    return RunPosition(percent=sigma / 10, step=sigma * 2, steps=20, sigma=sigma)


@pytest.fixture
def trace():
    """In its first evaluation, of two images."""
    trace = Trace()
    trace.evaluation(SIGMA, place_at)
    return trace


def seen(trace):
    """The last evaluation as numbers."""
    return trace.to_dict()["evaluations"][-1]


class OnItsWay(HostCopy):
    """A value that has not arrived from its device."""

    arrived = False


def later(value=1.0, there=True):
    return (HostCopy if there else OnItsWay)(torch.tensor(value))


def test_an_evaluation_starts_with_nothing_but_its_place(trace):
    """The sigma of the first image stands for the batch."""
    assert seen(trace) == {
        "sigma": 2.5,
        "step": 5.0,
        "percent": 0.25,
        "cfg": None,
        "cfg_norm": None,
        "passes": 0,
        "saved": 0,
        "classifiers": [],
    }
    assert trace.evaluations[0].place == place_at(2.5)


def test_sigma_of_any_shape():
    trace = Trace()
    begun = trace.evaluation(torch.tensor([[3.0], [4.0]]), place_at)
    assert begun is trace.evaluations[0] and begun.place.sigma == 3.0


def test_passes_add_up_in_the_evaluation_they_belong_to(trace):
    trace.passes(2)
    trace.passes(3)
    trace.saved(1)
    trace.saved(4)
    trace.evaluation(SIGMA, place_at)
    trace.passes(1)
    trace.saved(2)
    found = trace.to_dict()
    assert [one["passes"] for one in found["evaluations"]] == [5, 1]
    assert [one["saved"] for one in found["evaluations"]] == [5, 2]
    assert (found["passes"], found["saved"]) == (6, 7)
    assert list(found) == ["passes", "saved", "evaluations"]


def test_a_new_run_forgets_the_last(trace):
    trace.passes(2)
    trace.begin()
    assert trace.to_dict() == {"passes": 0, "saved": 0, "evaluations": []}


def test_before_the_first_evaluation_nothing_is_seen():
    trace = Trace()
    trace.passes(1)
    trace.saved(1)
    trace.cfg(2.0, torch.ones(1, 2), torch.zeros(1, 2))
    trace.classifier(torch.ones(1), torch.ones(1, 2), torch.zeros(1))
    assert trace.to_dict() == {"passes": 0, "saved": 0, "evaluations": []}


def test_cfg_of_one_scale(trace):
    """Its length is of (cfg - 1) (cond - uncond), of each image, then the mean."""
    cond = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    uncond = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    trace.cfg(4, cond, uncond)
    assert seen(trace)["cfg"] == 4.0 and isinstance(seen(trace)["cfg"], float)
    assert seen(trace)["cfg_norm"] == pytest.approx((3 * 5 + 3 * 1) / 2)


def test_cfg_of_a_scale_for_each_image(trace):
    cond = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    trace.cfg(torch.tensor([[2.0], [5.0]]), cond, torch.zeros(2, 2))
    assert seen(trace)["cfg"] == 3.5
    assert seen(trace)["cfg_norm"] == pytest.approx((1 * 5 + 4 * 10) / 2)


def test_cfg_without_uncond_has_a_scale_and_no_length(trace):
    trace.cfg(1.0, torch.ones(2, 2), None)
    assert (seen(trace)["cfg"], seen(trace)["cfg_norm"]) == (1.0, None)


def test_each_classifier_has_a_record(trace):
    term = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    trace.classifier(torch.tensor([2.0, 3.0]), term, torch.tensor([-1.0, -0.5]))
    trace.classifier(torch.tensor([7.0, 7.0]), 2 * term, torch.tensor([0.0, -4.0]))
    assert seen(trace)["classifiers"] == [
        {"scale": 2.5, "norm": 3.0, "log_probs": [-1.0, -0.5]},
        {"scale": 7.0, "norm": 6.0, "log_probs": [0.0, -4.0]},
    ]


def test_evaluations_do_not_share_their_classifiers(trace):
    trace.classifier(torch.ones(1), torch.ones(1, 2), torch.zeros(1))
    trace.evaluation(SIGMA, place_at)
    assert seen(trace)["classifiers"] == []


def test_mean_of_the_images_lengths():
    assert float(mean_norm(torch.tensor([[[3.0], [4.0]], [[0.0], [1.0]]]))) == 3.0
    kept = torch.ones(1, 2, requires_grad=True)
    assert not mean_norm(kept).requires_grad
    # the length of 65,504 twice is beyond half precision
    half = torch.full((1, 2), 65504.0, dtype=torch.float16)
    assert float(mean_norm(half)) == pytest.approx(65504 * math.sqrt(2))


@pytest.mark.parametrize("late", [None, 0, 1, 2])
def test_a_record_has_arrived_with_the_last_of_its_numbers(late):
    numbers = [later(there=index != late) for index in range(3)]
    assert ClassifierRecord(*numbers).arrived == (late is None)


@pytest.mark.parametrize("late", [None, "sigma", "cfg", "cfg_norm"])
def test_an_evaluation_has_arrived_with_the_last_of_its_numbers(late):
    numbers = {name: later(there=name != late) for name in ("sigma", "cfg", "cfg_norm")}
    assert Evaluation(place_at=place_at, **numbers).arrived == (late is None)


def test_an_evaluation_waits_for_its_classifiers_too():
    there = ClassifierRecord(later(), later(), later())
    late = ClassifierRecord(later(), later(there=False), later())
    assert Evaluation(later(), place_at, cfg=3.0, classifiers=[there]).arrived
    assert not Evaluation(later(), place_at, cfg=3.0, classifiers=[there, late]).arrived


def test_json_has_null_for_what_is_no_number(trace):
    broken = torch.tensor([-math.inf, math.nan, math.inf, -1.5])
    trace.classifier(torch.tensor([math.nan]), torch.ones(1, 4), broken)
    trace.passes(3)
    told = json.loads(trace.to_json())
    assert told["passes"] == 3 and told["evaluations"][0]["sigma"] == 2.5
    record = {"scale": None, "norm": 2.0, "log_probs": [None, None, None, -1.5]}
    assert told["evaluations"][0]["classifiers"] == [record]
    plain = trace.evaluations[0].to_plain()
    assert plain["classifiers"] == [record] and plain["passes"] == 3
    # as numbers they stay what they are
    assert seen(trace)["classifiers"][0]["log_probs"][0] == -math.inf
