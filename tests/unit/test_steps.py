"""Which timesteps a run visits, and one step of DDPM and of DDIM: exact values."""

from __future__ import annotations

import pytest
import torch

from guidance import NoiseSchedule
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import (
    Step,
    chain,
    ddim_step,
    ddpm_step,
    ddpm_variance,
    posterior_variance,
    predict_x0,
)

ALPHA_BAR = NoiseSchedule("linear").alpha_bar.tolist()
STEP = Step(500, 0.36, 0.64, 0.1)  # beta 7/16, the posterior's variance 63/256


def number(value):
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", [0]),
        ("2", [0, 999]),
        ("ddim1", [0]),
        ("ddim4", [0, 250, 500, 750]),
        ("ddim7", list(range(0, 1000, 143))),
        (" DDIM2 ", [0, 500]),
        ("1,1", [0, 500]),
        ("2,1,2", [0, 333, 334, 667, 999]),
        ("1000", list(range(1000))),
        ("ddim1000", list(range(1000))),
        ("500,500", list(range(1000))),
    ],
)
def test_respacing_picks_timesteps(text, expected):
    assert respaced_timesteps(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ddim45", "no whole stride through 1000 timesteps gives 45"),
        ("ddim1001", "no whole stride"),
        ("ddim", "expected a count"),
        ("ddim0", "expected a count"),
        ("abc", "expected a count"),
        ("", "expected a count"),
        ("0", "expected a count"),
        ("-5", "expected a count"),
        ("2.5", "expected a count"),
        ("10,,5", "expected a count"),
        ("²", "expected a count"),
        ("2000", "2000 steps do not fit into a section of 1000"),
        ("10,501", "501 steps do not fit into a section of 500"),
    ],
)
def test_a_bad_respacing_is_refused_with_its_text(text, said):
    with pytest.raises(ValueError) as caught:
        respaced_timesteps(text)
    assert repr(text) in str(caught.value) and said in str(caught.value)


def test_a_chain_goes_from_noise_to_image():
    got = chain(ALPHA_BAR, [3, 500, 999])
    floor = posterior_variance(ALPHA_BAR[500], ALPHA_BAR[3])
    a, b, c = (ALPHA_BAR[t] for t in (999, 500, 3))
    assert got == [Step(999, a, b, floor), Step(500, b, c, floor), Step(3, c, 1.0, floor)]
    assert [step.last for step in got] == [False, False, True]
    (only,) = chain(ALPHA_BAR, [999])
    assert only == Step(999, a, 1.0, 1 - a) and only.last
    betas = torch.tensor([one.beta for one in chain(ALPHA_BAR, range(1000))[::-1]]).double()
    assert (betas - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).abs().max() < 1e-8


@pytest.mark.parametrize(
    "timesteps", [[], [5, 3], [3, 3], [0, 1000], [-1, 5], [*range(9), 0]], ids=str
)
def test_timesteps_that_do_not_rise_within_the_schedule_are_refused(timesteps):
    with pytest.raises(ValueError, match="timesteps are .*from 0 to 999") as caught:
        chain(ALPHA_BAR, timesteps)
    assert ("7]..." in str(caught.value)) == (len(timesteps) > 8)


def test_the_clean_image_is_found_from_its_noise():
    x0, eps = number(0.3), number(-2.0)
    for alpha_bar in (0.99, 0.5, 0.01):
        noisy = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps
        assert predict_x0(noisy, eps, alpha_bar).item() == pytest.approx(0.3)


def test_variances():
    """From the posterior's to beta, as v says; in the last step the floor is the lower end."""
    assert STEP.beta == pytest.approx(7 / 16)
    assert posterior_variance(0.36, 0.64) == pytest.approx(63 / 256)
    v = torch.tensor([-1.0, 0.0, 1.0])
    expected = [63 / 256, (63 / 256 * 7 / 16) ** 0.5, 7 / 16]
    assert ddpm_variance(STEP, v, v).tolist() == pytest.approx(expected)
    last = Step(0, 0.36, 1.0, 0.1)
    assert ddpm_variance(last, v, v).tolist() == pytest.approx([0.1, 0.064**0.5, 0.64])
    x = torch.zeros(2, 3)
    for step, fixed in ((STEP, 7 / 16), (last, 0.1)):
        found = ddpm_variance(step, None, x)
        assert found.shape == (1, 3) and found.flatten().tolist() == pytest.approx([fixed] * 3)


def test_a_ddpm_step():
    """The posterior's mean and a shift, and its noise (Ho et al. 2020, eq. 7)."""
    x0, x, noise, variance = (number(value) for value in (2.0, 3.0, 5.0, 0.25))
    mean = (0.8 * 7 / 16 * 2 + 0.75 * 0.36 * 3) / 0.64  # sqrt(1 - beta) = 0.75
    assert ddpm_step(x, x0, variance, STEP, 0.5, noise).item() == pytest.approx(mean + 0.5 + 2.5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_ddim_step(eta):
    """Song et al. 2021, eq. 12 and 16."""
    x0, eps, noise = number(2.0), number(-1.5), number(5.0)
    sigma = eta * (63 / 256) ** 0.5
    expected = 0.8 * 2 - 1.5 * (0.36 - sigma**2) ** 0.5 + sigma * 5
    found = ddim_step(0.6 * x0 + 0.8 * eps, x0, STEP, eta, noise)
    assert found.item() == pytest.approx(expected)


def test_the_last_step_adds_no_noise():
    step, noise = Step(3, 0.4, 1.0, 0.1), number(1e6)
    assert ddim_step(number(2.0), number(0.5), step, 1.0, noise).item() == pytest.approx(0.5)
    found = ddpm_step(number(2.0), number(0.5), number(1.0), step, 0.25, noise)
    assert found.item() == pytest.approx(0.75)
