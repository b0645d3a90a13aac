"""A trace without ComfyUI: what it counts, means and lengths, and its JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch

from guidance.core.host_copy import HostCopy
from guidance.sampling.trace import Evaluation, Trace
from guidance.schedules.run_position import RunPosition

SIGMA = torch.tensor([2.5, 9.0])


def position_of(sigma):
    return RunPosition(percent=sigma / 10, step=sigma * 2, steps=20, sigma=sigma)


@pytest.fixture
def trace():
    """In its first evaluation, of two images."""
    trace = Trace()
    trace.evaluation(SIGMA, position_of)
    return trace


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
    assert trace.to_dict() == {"passes": 0, "saved": 0, "evaluations": []}


def test_before_the_first_evaluation_nothing_is_recorded():
    trace = Trace()
    trace.passes(1)
    trace.saved(1)
    trace.cfg(2.0, torch.ones(1, 2), torch.zeros(1, 2))
    trace.classifier(torch.ones(1), torch.ones(1, 2), torch.zeros(1))
    assert trace.to_dict() == {"passes": 0, "saved": 0, "evaluations": []}


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
    term = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    trace.classifier(torch.tensor([2.0, 3.0]), term, torch.tensor([-1.0, -0.5]))
    trace.classifier(torch.tensor([7.0, 7.0]), 2 * term, torch.tensor([0.0, -4.0]))
    assert last(trace)["classifiers"] == [
        {"scale": 2.5, "norm": 3.0, "log_probs": [-1.0, -0.5]},
        {"scale": 7.0, "norm": 6.0, "log_probs": [0.0, -4.0]},
    ]
    trace.evaluation(SIGMA, position_of)
    assert last(trace)["classifiers"] == []


class OnItsWay(HostCopy):
    """A value that has not arrived from its device."""

    arrived = False


def copy(there=True):
    return (HostCopy if there else OnItsWay)(torch.tensor(1.0))


@pytest.mark.parametrize("late", [None, "sigma", "cfg", "cfg_norm", 0, 1, 2])
def test_an_evaluation_has_arrived_with_the_last_of_its_numbers(late):
    record = {str(index): copy(index != late) for index in range(3)}
    numbers = {name: copy(name != late) for name in ("sigma", "cfg", "cfg_norm")}
    evaluation = Evaluation(position_of=position_of, **numbers, classifiers=[{}, record])
    assert evaluation.arrived == (late is None)
    assert Evaluation(copy(), position_of, cfg=3.0).arrived


def test_json_has_null_for_what_is_no_number(trace):
    broken = torch.tensor([-math.inf, math.nan, math.inf, -1.5])
    trace.classifier(torch.tensor([math.nan]), torch.ones(1, 4), broken)
    trace.passes(3)
    found = json.loads(trace.to_json())
    assert found["passes"] == 3 and found["evaluations"][0]["sigma"] == 2.5
    record = {"scale": None, "norm": 2.0, "log_probs": [None, None, None, -1.5]}
    assert found["evaluations"][0]["classifiers"] == [record]
    plain = trace.evaluations[0].to_plain()
    assert plain["classifiers"] == [record] and plain["passes"] == 3
    # as numbers they stay what they are
    assert last(trace)["classifiers"][0]["log_probs"][0] == -math.inf
