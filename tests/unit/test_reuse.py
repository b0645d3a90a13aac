"""CFG's term used again, in the library's sampler."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import diffusion_model

from guidance.evaluation.compute_cost import count_compute
from guidance.sampling.cfg_cache import FIRST, LONGEST, CFGCache, CFGCacheConfig
from guidance.sampling.generate import SamplingConfig, generate

STEPS = 12


@pytest.fixture(scope="module")
def draw():
    """Images and the passes for each of them."""
    model = diffusion_model()

    def run(**options):
        job = {"num_samples": 3, "label": [0, 1, 2], "cfg": 4.0, "respacing": f"{STEPS}"}
        with count_compute(model, None) as work:
            images, _ = generate(model, None, SamplingConfig(**job | options))
        return torch.from_numpy(images), work.passes / 3

    return run


@pytest.mark.parametrize("every, computed", [(1, 12), (2, 6), (3, 4), (5, 3), (100, 1)])
@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_passes(draw, method, every, computed):
    _, passes = draw(cfg_every=every, method=method)
    assert passes == STEPS + computed


def test_once_in_each_step_is_nothing_new(draw):
    assert torch.equal(draw()[0], draw(cfg_every=1, cfg_tolerance=0.0)[0])


def test_at_cfg_1_and_0_there_is_no_term(draw):
    for cfg in (0.0, 1.0):
        images, passes = draw(cfg=cfg, cfg_every=3)
        assert passes == STEPS
        assert torch.equal(images, draw(cfg=cfg)[0])


def levels(sigma, batch=2):
    return torch.full((batch,), sigma), torch.ones(batch)


def run_of(reuse, terms, sigmas):
    """In which evaluations the terms of a run are computed."""
    held, computed = CFGCache(reuse), []
    for index, (term, sigma) in enumerate(zip(terms, sigmas, strict=True)):
        if held.due():
            held.renew(term, *levels(sigma, len(term)))
            computed.append(index)
    return computed


def test_a_term_keeps_its_share_of_noise():
    """Constant where sigma is large, in proportion to sigma where it is small."""
    term = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    held = CFGCache(CFGCacheConfig(2))
    held.renew(term, *levels(1000.0))
    torch.testing.assert_close(held.at(*levels(500.0)), term, rtol=1e-5, atol=0)
    held.renew(term, *levels(0.02))
    torch.testing.assert_close(held.at(*levels(0.01)), term / 2, rtol=1e-3, atol=0)
    # a flow model's start, which is noise alone
    held.renew(term, torch.ones(2), torch.zeros(2))
    assert bool(held.at(torch.ones(2), torch.zeros(2)).isfinite().all())


def test_a_term_that_is_as_foretold_is_computed_ever_less():
    sigmas = [10.0] * 40
    computed = run_of(CFGCacheConfig(1, 0.1), [torch.ones(2, 4)] * 40, sigmas)
    distances = [b - a for a, b in zip(computed, computed[1:], strict=False)]
    assert distances == sorted(distances)
    assert (distances[0], distances[-1]) == (FIRST, LONGEST)


def test_a_term_that_is_not_is_computed_ever_more():
    chance = torch.Generator().manual_seed(0)
    terms = [torch.randn(2, 64, generator=chance) for _ in range(20)]
    computed = run_of(CFGCacheConfig(1, 0.1), terms, [10.0] * 20)
    assert computed[:5] == [0, 4, 7, 9, 10] and computed[5:] == list(range(11, 20))
    # and never more often than `every` says
    assert run_of(CFGCacheConfig(3, 0.1), terms, [10.0] * 20) == [0, 4, 7, 10, 13, 16, 19]


def test_images_of_another_size_do_not_fit():
    held = CFGCache(CFGCacheConfig(2))
    assert not held.matches_shape(torch.zeros(2, 4))
    held.renew(torch.zeros(2, 4), *levels(1.0))
    assert held.matches_shape(torch.zeros(2, 4)) and not held.matches_shape(torch.zeros(3, 4))


@pytest.mark.parametrize(
    "values, said",
    [((0,), "every is 0"), ((1, -0.1), "tolerance is -0.1"), ((1, 1.0), "tolerance is 1")],
)
def test_what_cannot_be(values, said):
    with pytest.raises(ValueError, match=said):
        CFGCacheConfig(*values)
