"""The CFG cache: when CFG's term is computed, and what the last one becomes at another level."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import SIZE, diffusion_model

from guidance.sampling.cfg_cache import FIRST, LONGEST, NO_CACHE, CFGCache, CFGCacheConfig
from guidance.sampling.loop import sample
from guidance.sampling.steps import chain, predict_x0

NOISE = (torch.ones(2), torch.zeros(2))  # where a term is stored as it is


def computed(config, lengths):
    """The evaluations that compute a term of this length, for each of two images."""
    cache, found = CFGCache(config), []
    for index, length in enumerate(lengths):
        if cache.due():
            cache.store(torch.full((2, 1), float(length)), *NOISE)
            found.append(index)
    return found


def test_an_interval_of_one_without_tolerance_is_off():
    assert CFGCacheConfig() == CFGCacheConfig(1, 0.0) == NO_CACHE
    assert NO_CACHE.is_off
    assert not CFGCacheConfig(2).is_off and not CFGCacheConfig(1, 0.01).is_off


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0,), "cfg_interval is 0; .* at least 1"),
        ((1, -0.5), "tolerance is -0.5; .* at least 0 and below 1"),
        ((1, 1.0), "tolerance is 1; .* below 1"),
    ],
)
def test_values_outside_their_range(values, said):
    with pytest.raises(ValueError, match=said):
        CFGCacheConfig(*values)


def test_the_first_evaluation_computes_however_late():
    cache = CFGCache(CFGCacheConfig(3))
    assert cache.due() and cache.due() and cache.due(), "nothing is stored yet"
    cache.store(torch.ones(2, 1), *NOISE)
    assert [cache.due() for _ in range(4)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("config", "lengths", "expected"),
    [
        ((3, 0.0), [1, 9, -5, 7, 0, 0, 4, 1], [0, 3, 6]),  # without a tolerance nothing adapts
        # from FIRST to LONGEST where every term is predicted well
        ((1, 0.1), [1] * 30, [0, 4, 9, 15, 21, 27]),
        ((5, 0.1), [1] * 30, [0, 5, 11, 17, 23, 29]),
        ((9, 0.1), [1] * 30, [0, 9, 18, 27]),
        # the error is a share of the run's longest term: a turned term is a bad prediction beside
        # itself, and a good one beside ten of it
        ((1, 0.5), [10] * 9 + [1] * 4 + [-1] * 6, [0, 4, 9, 13, 18]),
        # very small terms are measured, too
        ((1, 0.5), [1e-6] * 4 + [-1e-6] * 5, [0, 4, 7]),
        ((1, 0.5), [0] * 16, [0, 4, 9, 15]),
    ],
)
def test_evaluations_that_compute_the_term(config, lengths, expected):
    assert (FIRST, LONGEST) == (4, 6)
    assert computed(CFGCacheConfig(*config), lengths) == expected


@pytest.mark.parametrize(("change", "second"), [(0.1, 9), (0.25, 8), (0.3, 8), (0.5, 8), (0.6, 7)])
def test_the_interval_after_a_prediction(change, second):
    """Five below half of the tolerance, four from there to the whole, three above it."""
    lengths = [1 - change] * 4 + [1.0] * 6
    assert computed(CFGCacheConfig(1, 0.5), lengths)[:3] == [0, 4, second]


@pytest.mark.parametrize(
    ("interval", "expected"), [(1, [0, 4, 7, 9, 11, 12, 13]), (2, [0, 4, 7, 9, 11, 13])]
)
def test_intervals_do_not_shrink_below_the_shortest(interval, expected):
    cache, found = CFGCache(CFGCacheConfig(interval, 0.5)), []
    for index in range(30):
        if cache.due():
            cache.store(torch.full((2, 1), (-1) ** len(found) * 10.0), *NOISE)
            found.append(index)
    assert found[: len(expected)] == expected


@pytest.mark.parametrize(("tolerance", "second"), [(0.2, 3), (0.3, 4), (0.6, 5)])
def test_the_error_is_the_mean_of_the_images_own(tolerance, second):
    """One image that misses its whole term and three that miss nothing miss a quarter."""
    cache, noise = CFGCache(CFGCacheConfig(1, tolerance)), (torch.ones(4), torch.zeros(4))
    cache.store(torch.tensor([[0.0, 0.0]] + [[3.0, 4.0]] * 3), *noise)
    cache.store(torch.tensor([[3.0, 4.0]] * 4), *noise)
    assert next(count for count in range(1, 9) if cache.due()) == second


def test_a_term_is_kept_in_proportion_to_its_noise():
    """sigma / sqrt(alpha^2 + sigma^2): 0.6 for 3 and 4, 0.8 for 4 and 3."""
    low = torch.tensor([3.0] * 2), torch.tensor([4.0] * 2)
    high = low[::-1]
    cache = CFGCache(CFGCacheConfig(2))
    mixed = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    cache.store(torch.tensor([[6.0], [3.0]]), *mixed)
    assert cache.term_at(*high).ravel().tolist() == pytest.approx([8.0, 3.0])
    # and a prediction is made for its own level
    cache = CFGCache(CFGCacheConfig(1, 0.5))
    cache.store(torch.full((2, 1), 6.0), *low)
    cache.store(torch.full((2, 1), 8.0), *high)
    assert [cache.due() for _ in range(5)] == [False] * 4 + [True], "predicted exactly"


@pytest.mark.parametrize("levels", [NOISE, NOISE[::-1]], ids=["noise alone", "no noise"])
def test_a_term_at_the_ends_of_a_run_comes_back_in_its_dtype(levels):
    cache, exact = CFGCache(CFGCacheConfig(2)), [level.double() for level in levels]
    cache.store(torch.ones(2, 1), *exact)
    found = cache.term_at(*exact)
    assert found.dtype == torch.float32 and found.ravel().tolist() == pytest.approx([1.0, 1.0])


def test_images_of_another_shape_do_not_fit():
    cache = CFGCache(CFGCacheConfig(2, 0.5))
    assert not cache.matches_shape((2, 4))
    cache.store(torch.zeros(2, 4), *NOISE)
    assert cache.matches_shape((2, 4)) and not cache.matches_shape((3, 4))
    cache.store(torch.zeros(3, 4), torch.ones(3), torch.zeros(3))
    assert cache.matches_shape((3, 4))


def test_a_step_without_its_own_term_adds_the_last_one():
    model, labels = diffusion_model(), torch.tensor([0, 2])
    first, second = chain(model.schedule.alpha_bar.tolist(), [400, 600])
    seen = []

    def noise(x):
        seen.append(x)
        return torch.zeros_like(x)

    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9))
    options = {"labels": labels, "cfg": 3.0, "clip_denoised": False, "noise": noise}
    got = sample(model, x, [first, second], cfg_cache=CFGCacheConfig(2), **options)

    @torch.no_grad()
    def denoised(x, step, labels):
        eps, _ = model(x, torch.full((2,), float(step.timestep)), labels)
        return predict_x0(x, eps, step.alpha_bar)

    term = denoised(x, first, labels) - denoised(x, first, model.null_labels(2))
    term *= ((1 - second.alpha_bar) / (1 - first.alpha_bar)) ** 0.5
    assert term.abs().max() > 1e-3
    assert (got - denoised(seen[1], second, labels) - 2 * term).abs().max() < 1e-5
