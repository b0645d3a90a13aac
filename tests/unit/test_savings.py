"""Answers and terms that serve again, and gradients in little memory: when, how long, how much."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import SmoothClassifier, classifier_layout, half_unet

from guidance.classifiers.base import ClassifierOutput
from guidance.classifiers.gradient_cache import CachedClassifier, Memory, cached_classifier
from guidance.classifiers.gradient_memory import (
    WHOLE,
    GradientMemoryPlan,
    gradient_bytes,
    memory_plan_within,
)
from guidance.sampling.cfg_cache import ALWAYS, CFGCache, CFGCacheConfig

# --- a classifier with a memory --------------------------------------------------------------


class Witness:
    """A classifier whose answers tell what it was asked."""

    network = SmoothClassifier()
    reads_images = True
    through_model = True
    labels = ("cat", "dog")
    num_classes = 2
    channels = 3

    def __init__(self):
        self.asked, self.again_asked = [], []

    def evidence(self, *arguments):
        self.asked.append(arguments)
        x, _, sigma, _, alpha, _ = arguments
        return ClassifierOutput(
            torch.full_like(x, len(self.asked)), torch.zeros(2, 2), sigma, alpha
        )

    def rescale(self, *arguments):
        self.again_asked.append(arguments)
        return "again"


SIGMA, ALPHA, LABEL = torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([1])


def ask(classifier, x=None, *more):
    x = torch.zeros(1, 3, 2, 2) if x is None else x
    return classifier.evidence(x, x + 1, SIGMA, LABEL, ALPHA, *more)


def test_a_memory_is_due_in_each_so_many_th_evaluation():
    memory = Memory(3)
    assert (memory.every, memory.count, memory.evidence) == (3, 0, None)
    assert memory.due
    memory.evidence = ask(Witness(), None, 0.0)
    due = []
    for memory.count in range(7):
        due.append(memory.due)
    assert due == [True, False, False, True, False, False, True]
    memory.evidence, memory.count = None, 1
    assert memory.due, "there is nothing to serve"


def test_a_memory_serves_images_of_its_shape():
    memory = Memory(3)
    assert not memory.matches_shape(torch.zeros(1, 3, 2, 2))
    memory.evidence = ask(Witness(), None, 0.0)
    assert memory.matches_shape(torch.ones(1, 3, 2, 2)) and not memory.matches_shape(
        torch.zeros(2, 3, 2, 2)
    )


@pytest.mark.parametrize("every", [0, -3])
def test_a_memory_that_cannot_be(every):
    for make in (Memory, lambda every: cached_classifier(Witness(), every)):
        with pytest.raises(ValueError) as error:
            make(every)
        assert str(error.value) == f"every is {every}; it must be at least 1."


def test_it_asks_and_then_serves():
    witness = Witness()
    held = CachedClassifier(witness, Memory(3))
    answers = [ask(held) for _ in range(7)]
    assert len(witness.asked) == 3 and len(witness.again_asked) == 4
    assert [float(answers[index].gradient[0, 0, 0, 0]) for index in (0, 3, 6)] == [1, 2, 3]
    assert [answers[index] for index in (1, 2, 4, 5)] == ["again"] * 4
    for index, (seen, sigma, alpha) in enumerate(witness.again_asked):
        assert seen is answers[0 if index < 2 else 3]
        assert sigma is SIGMA and alpha is ALPHA


def test_what_it_is_asked_reaches_the_classifier():
    witness = Witness()
    held, x = CachedClassifier(witness, Memory(1)), torch.zeros(1, 3, 2, 2)
    ask(held, x)
    ask(held, x, 0.25)
    assert [asked[5] for asked in witness.asked] == [0.0, 0.25]
    for asked in witness.asked:
        assert asked[0] is x and (asked[1] == 1).all()
        assert asked[2] is SIGMA and asked[3] is LABEL and asked[4] is ALPHA


def test_other_images_begin_a_new_count():
    witness = Witness()
    held = CachedClassifier(witness, Memory(3))
    small, large = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 4, 4)
    answers = [ask(held, x) for x in (small, small, large, large, large, large)]
    assert [one == "again" for one in answers] == [False, True, False, True, True, False]


def test_it_goes_through_the_model_only_when_it_asks():
    witness = Witness()
    held = CachedClassifier(witness, Memory(2))
    seen = []
    for _ in range(4):
        seen.append(held.through_model)
        ask(held)
    assert seen == [True, False, True, False]
    witness.through_model = False
    assert not CachedClassifier(witness, Memory(2)).through_model


def test_it_is_otherwise_its_classifier():
    witness = Witness()
    held = cached_classifier(witness, 2)
    assert held.classifier is witness and held.memory.every == 2
    assert held.network is witness.network and held.reads_images is True
    assert (held.labels, held.num_classes, held.channels) == (("cat", "dog"), 2, 3)
    assert held.rescale("seen", SIGMA, ALPHA) == "again"
    assert witness.again_asked == [("seen", SIGMA, ALPHA)]


# --- CFG's term, used again ------------------------------------------------------------------


def test_reuse_without_more_is_always():
    assert CFGCacheConfig() == CFGCacheConfig(1, 0.0) == ALWAYS
    assert ALWAYS.always
    assert not CFGCacheConfig(2).always and not CFGCacheConfig(1, 0.01).always


@pytest.mark.parametrize(
    "values, said",
    [
        ((0,), "every is 0; it must be at least 1."),
        ((1, -0.5), "tolerance is -0.5; it must be at least 0 and below 1."),
        ((1, 1.0), "tolerance is 1; it must be at least 0 and below 1."),
    ],
)
def test_reuse_that_cannot_be(values, said):
    with pytest.raises(ValueError) as error:
        CFGCacheConfig(*values)
    assert str(error.value) == said


NOISE = (torch.ones(2), torch.zeros(2))  # where a term is held as it is


def computed(reuse, lengths):
    """The evaluations that compute a term of so much in its one number, for each of two images."""
    held, found = CFGCache(reuse), []
    for index, length in enumerate(lengths):
        if held.due():
            held.renew(torch.full((2, 1), float(length)), *NOISE)
            found.append(index)
    return found


def test_the_first_evaluation_computes_however_late():
    held = CFGCache(CFGCacheConfig(3))
    assert held.due() and held.due() and held.due(), "nothing was computed yet"
    held.renew(torch.ones(2, 1), *NOISE)
    assert [held.due() for _ in range(4)] == [False, False, True, True]


def test_without_a_tolerance_distances_stay():
    assert computed(CFGCacheConfig(3), [1, 9, -5, 7, 0, 0, 4, 1]) == [0, 3, 6]


def test_distances_from_four_to_six_where_the_tolerance_decides():
    assert computed(CFGCacheConfig(1, 0.1), [1.0] * 30) == [0, 4, 9, 15, 21, 27]
    assert computed(CFGCacheConfig(5, 0.1), [1.0] * 30) == [0, 5, 11, 17, 23, 29]
    assert computed(CFGCacheConfig(9, 0.1), [1.0] * 30) == [0, 9, 18, 27]


@pytest.mark.parametrize(
    "change, second",
    [
        (0.1, 9),  # below half of the tolerance: five evaluations later
        (0.25, 8),  # at half of it and to the whole: as before
        (0.3, 8),
        (0.5, 8),
        (0.6, 7),  # above it: three later
    ],
)
def test_the_distance_after_a_guess(change, second):
    """The change is a share of the run's longest term, here of the one that is foretold."""
    lengths = [1 - change] * 4 + [1.0] * 20
    assert computed(CFGCacheConfig(1, 0.5), lengths)[:3] == [0, 4, second]


def test_errors_are_measured_by_the_runs_longest_term():
    """A term that turns round is a bad guess beside itself, and a good one beside ten of it."""
    lengths = [10] * 9 + [1] * 4 + [-1] * 20
    assert computed(CFGCacheConfig(1, 0.5), lengths)[:5] == [0, 4, 9, 13, 18]


def test_distances_do_not_shrink_below_the_shortest():
    swinging = [(-1) ** index * 10.0 for index in range(8)]

    def run(reuse):
        held, found = CFGCache(reuse), []
        for index in range(30):
            if held.due():
                held.renew(torch.full((2, 1), swinging[len(found) % 8]), *NOISE)
                found.append(index)
        return found

    assert run(CFGCacheConfig(1, 0.5))[:7] == [0, 4, 7, 9, 10, 11, 12]
    assert run(CFGCacheConfig(2, 0.5))[:6] == [0, 4, 7, 9, 11, 13]


def test_very_small_terms_are_measured_too():
    assert computed(CFGCacheConfig(1, 0.5), [1e-6] * 4 + [-1e-6] * 9)[:3] == [0, 4, 7]
    assert computed(CFGCacheConfig(1, 0.5), [0] * 20) == [0, 4, 9, 15]


def test_lengths_are_of_each_image_and_then_the_mean():
    """An image that misses all of its term, and three that miss nothing, miss a quarter."""

    def second(tolerance):
        held, noise = CFGCache(CFGCacheConfig(1, tolerance)), (torch.ones(4), torch.zeros(4))
        held.renew(torch.tensor([[0.0, 0.0]] + [[3.0, 4.0]] * 3), *noise)
        held.renew(torch.tensor([[3.0, 4.0]] * 4), *noise)
        return next(count for count in range(1, 9) if held.due())

    assert [second(tolerance) for tolerance in (0.2, 0.3, 0.6)] == [3, 4, 5]


def test_a_term_is_held_in_proportion_to_its_noise():
    """sigma / sqrt(alpha^2 + sigma^2): of 3 beside 4 it is 0.6, of 4 beside 3 it is 0.8."""
    held = CFGCache(CFGCacheConfig(2))
    term = torch.tensor([[6.0], [3.0]])
    held.renew(term, torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0]))
    found = held.at(torch.tensor([4.0, 4.0]), torch.tensor([3.0, 3.0]))
    assert found.ravel().tolist() == pytest.approx([8.0, 3.0])


def test_a_guess_is_made_for_its_own_noise_level():
    held = CFGCache(CFGCacheConfig(1, 0.5))
    held.renew(torch.full((2, 1), 6.0), torch.full((2,), 3.0), torch.full((2,), 4.0))
    held.renew(torch.full((2, 1), 8.0), torch.full((2,), 4.0), torch.full((2,), 3.0))
    assert [held.due() for _ in range(5)] == [False] * 4 + [True], "foretold exactly"


def test_a_term_without_noise_comes_back():
    held, none = CFGCache(CFGCacheConfig(2)), (torch.zeros(2), torch.ones(2))
    held.renew(torch.ones(2, 1), *none)
    assert held.at(*none).ravel().tolist() == pytest.approx([1.0, 1.0])


def test_a_term_keeps_its_dtype_at_levels_of_another():
    held, exact = CFGCache(CFGCacheConfig(2)), [level.double() for level in NOISE]
    held.renew(torch.ones(2, 1), *exact)
    assert held.at(*exact).dtype == torch.float32


# --- gradients in little memory --------------------------------------------------------------


def test_an_economy_without_more_is_the_whole_batch():
    assert GradientMemoryPlan() == GradientMemoryPlan(images=0, recompute=False) == WHOLE
    with pytest.raises(ValueError) as error:
        GradientMemoryPlan(images=-1)
    assert str(error.value) == "images is -1; it must be 0 (the whole batch) or more."


@pytest.mark.parametrize(
    "images, batch, parts",
    [
        (0, 5, [(0, 5)]),
        (2, 5, [(0, 2), (2, 4), (4, 6)]),
        (2, 4, [(0, 2), (2, 4)]),
        (9, 5, [(0, 9)]),
        (1, 2, [(0, 1), (1, 2)]),
        (0, 0, [(0, 1)]),  # one part that is empty
        (3, 0, [(0, 3)]),
    ],
)
def test_parts_of_a_batch(images, batch, parts):
    assert list(GradientMemoryPlan(images).parts(batch)) == [slice(*part) for part in parts]


def test_networks_that_can_be_computed_again():
    GradientMemoryPlan(images=1).check(SmoothClassifier())
    GradientMemoryPlan(recompute=True).check(half_unet())
    with pytest.raises(ValueError) as error:
        GradientMemoryPlan(recompute=True).check(SmoothClassifier())
    assert str(error.value) == (
        "recompute needs an ADM classifier; this network is a SmoothClassifier. Set images to 1 "
        "instead, which saves memory with any network."
    )


# Numbers that each stage reads and keeps, counted by hand: (reads, keeps).
SMALL = [
    (32 * 64, 2 * (32 + 32) * 64),  # a block of 8x8 places
    (32 * 64, 3 * 32 * 64 + 2 * 32 * 16),  # half the size
    (32 * 16, 2 * (32 + 64) * 16 + 5 * 64 * 16),  # a block with attention
    (64 * 16, 13 * 64 * 16),  # the middle
]
DEEP = [
    (32 * 128, 2 * (32 + 32) * 128 + 5 * 32 * 128),  # blocks with attention, of 8x16 places
    (32 * 128, 2 * (32 + 32) * 128 + 5 * 32 * 128),
    (32 * 128, 3 * 32 * 128 + 2 * 32 * 32),
    (32 * 32, 2 * (32 + 64) * 32),
    (64 * 32, 2 * (64 + 64) * 32),
    (64 * 32, 3 * 64 * 32 + 2 * 64 * 8),
    (64 * 8, 2 * (64 + 96) * 8),
    (96 * 8, 2 * (96 + 96) * 8),
    (96 * 8, 13 * 96 * 8),
]


@pytest.mark.parametrize(
    "changes, size, stages",
    [
        ({}, (8, 8), SMALL),
        (
            {"num_res_blocks": 2, "channel_mult": (1, 2, 3), "attention_levels": (0,)},
            (8, 16),
            DEEP,
        ),
    ],
)
def test_the_memory_of_a_gradient(changes, size, stages):
    """What is kept, and three times the largest for what is computed meanwhile."""
    layout = classifier_layout(**changes)
    reads, keeps = (sum(numbers) for numbers in zip(*stages, strict=True))
    largest = max(kept for _, kept in stages)
    for dtype, width in ((torch.float32, 4), (torch.float16, 2)):
        assert gradient_bytes(layout, size, dtype) == width * (keeps + 3 * largest)
        again = gradient_bytes(layout, size, dtype, recompute=True)
        assert again == width * (reads + 4 * largest)


def test_the_economy_for_what_is_free():
    layout, shape, size = classifier_layout(), (3, 3, 8, 16), (8, 16)
    whole, again = (
        gradient_bytes(layout, size, torch.float16, recompute) for recompute in (False, True)
    )

    def chosen(free):
        economy = memory_plan_within(free, layout, shape, torch.float16)
        return economy.images, economy.recompute

    assert chosen(3 * whole) == (0, False)
    assert chosen(3 * whole - 1) == (0, True)
    assert chosen(3 * again) == (0, True)
    assert chosen(3 * again - 1) == (2, True)
    assert chosen(2 * again) == (2, True)
    assert chosen(2 * again - 1) == (1, True)
    assert chosen(again - 1) == (1, True)
