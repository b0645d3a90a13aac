"""The sigma of each evaluation, known without reading it; here on a CPU, as if that were slow."""

from __future__ import annotations

import logging

import pytest
import torch
from sampler_runs import (
    copying_sampler,
    core_guider,
    drawn,
    few_sigmas,
    latent_noise,
    picture,
    sampler_named,
)
from test_samplers import SAMPLERS

NOT_STEPS = "of this run was at sigma"


@pytest.fixture
def known(pack_module):
    """The module that knows them."""
    return pack_module("nodes.host.known_sigmas")


@pytest.fixture
def costly(known, monkeypatch):
    """Reading a value costs time on every device, as on a GPU."""
    monkeypatch.setattr(known, "FREE_TO_READ", ())


@pytest.fixture
def reads(pack_module, monkeypatch):
    """The sigmas that were read."""
    state, seen = pack_module("nodes.host.run_state").RunState, []
    sigma_of = state.sigma

    def sigma(self, tensor):
        if self.known is None or self.known.wrong or tensor is not self.known._sigma:
            seen.append(float(tensor[0]))
        return sigma_of(self, tensor)

    monkeypatch.setattr(state, "sigma", sigma)
    return seen


@pytest.fixture
def positions(wiring, scheduled):
    """The positions at which a run reads its schedule."""

    def run(model, sigmas, sampler="euler", change=lambda model: model, **options):
        seen = []
        schedule = type("Seen", (), {})()
        schedule.check_model = lambda flow: None
        schedule.scales = lambda position, batch: seen.append(position) or 1.0
        drawn(wiring.cfg_guider(change(scheduled(model, schedule))), sigmas, sampler, **options)
        return seen

    return run


@pytest.fixture
def evaluations():
    """The sigmas (N, B) that a run evaluates at."""
    import comfy.patcher_extension as extension

    def run(model, sigmas, name):
        seen = []

        def note(executor, x, sigma, *rest):
            seen.append(sigma.clone())
            return executor(x, sigma, *rest)

        model = model.clone()
        model.add_wrapper_with_key(extension.WrappersMP.PREDICT_NOISE, "note", note)
        # uni_pc writes into the sigmas
        drawn(core_guider(model), sigmas.clone(), name, start=latent_noise(2, 4, 8, 8))
        return torch.stack(seen)

    return run


def of_steps(sigmas):
    """One evaluation of two images at each but the last."""
    return sigmas[:-1, None].expand(-1, 2)


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize("end", [7, 5], ids=["whole", "first part"])
def test_the_table_names_the_samplers_that_evaluate_once_per_step(
    core_model, known, evaluations, kind, end
):
    """All of core's are run; those and only those are at sigmas[n] in their n-th evaluation."""
    import comfy.samplers

    model = core_model(kind)
    sampling, sigmas = model.get_model_object("model_sampling"), few_sigmas(model, 6)[:end]
    names = {*comfy.samplers.SAMPLER_NAMES} & {*SAMPLERS}
    once = {
        name for name in names if torch.equal(evaluations(model, sigmas, name), of_steps(sigmas))
    }
    claimed = {
        name for name in names if known.evaluates_once_per_step(sampler_named(name), sampling)
    }
    assert claimed == once and len(once) > 15
    if end == 5:
        return
    for name in claimed:  # also in the shortest run
        assert torch.equal(evaluations(model, sigmas[-3:], name), of_steps(sigmas[-3:])), name


def test_other_functions_of_such_a_name_are_not_known(known, conditional, call):
    import comfy.k_diffusion.sampling as core
    import comfy.samplers

    sampling = conditional.get_model_object("model_sampling")

    def is_known(sampler):
        return known.evaluates_once_per_step(sampler, sampling)

    def sample_euler(*rest, **more):
        return core.sample_euler(*rest, **more)

    class Other(comfy.samplers.KSAMPLER):
        """It may do anything."""

    assert not is_known(comfy.samplers.KSAMPLER(sample_euler))
    assert not is_known(Other(core.sample_euler))
    assert not is_known(copying_sampler())
    assert is_known(comfy.samplers.KSAMPLER(core.sample_euler, {"s_churn": 0.0}))
    assert not is_known(comfy.samplers.KSAMPLER(core.sample_euler, {"s_churn": 0.5}))
    assert not is_known(comfy.samplers.KSAMPLER(core.sample_sa_solver, {"use_pece": True}))
    for method in ("ddpm", "ddim"):
        assert is_known(call("SamplerADM", method=method, eta=0.0)[0])


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "lcm", "ddpm of the pack"])
def test_positions_are_those_that_are_read(
    conditional, positions, sampler_of, costly, reads, known, monkeypatch, sampler
):
    sigmas = few_sigmas(conditional, 6)
    for part in (sigmas, sigmas[:4], sigmas[3:]):
        got = positions(conditional, part, sampler_of(sampler))
        assert len(got) == len(part) - 1 and not reads
        monkeypatch.setattr(known, "FREE_TO_READ", ("cpu",))
        assert got == positions(conditional, part, sampler_of(sampler))
        assert len(reads) == len(got)
        monkeypatch.setattr(known, "FREE_TO_READ", ())
        reads.clear()


def test_inpainting_changes_nothing(conditional, positions, costly, reads):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    options = {"latent": picture(), "mask": mask}
    seen = positions(conditional, few_sigmas(conditional, 6), **options)
    assert [one.step for one in seen] == list(range(6)) and not reads


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_sde", "dpm_adaptive", "recurrent"])
def test_others_are_read(conditional, positions, costly, reads, call, sampler):
    if sampler == "recurrent":
        inner = sampler_named("euler")
        options = {"repeats": 2, "start_percent": 0.0, "end_percent": 1.0}
        (sampler,) = call("RecurrentSampler", sampler=inner, **options)
    seen = positions(conditional, few_sigmas(conditional, 6), sampler)
    assert len(reads) == len(seen) >= 6


def test_on_a_cpu_all_are_read(conditional, positions, reads):
    assert len(positions(conditional, few_sigmas(conditional, 6))) == len(reads) == 6


def test_each_run_begins_anew(wiring, scheduled, conditional, made, costly, reads):
    guider = wiring.cfg_guider(scheduled(conditional, made("linear", axis="step", scale=6.0)))
    sigmas = few_sigmas(conditional, 5)
    one = drawn(guider, sigmas)
    assert torch.equal(one, drawn(guider, sigmas)) and not reads
    drawn(guider, sigmas[2:])
    assert not reads


def wrapped(prediction, innermost=True):
    """Changes a MODEL: another pack's wrapper around its prediction."""

    def change(model):
        import comfy.patcher_extension as extension

        kind, model = extension.WrappersMP.PREDICT_NOISE, model.clone()
        there = model.wrappers[kind]
        here = {"other": [prediction]}
        model.wrappers[kind] = there | here if innermost else here | there
        return model

    return change


def twice(executor, x, sigma, *rest):
    executor(x, sigma * 0.9, *rest)
    return executor(x, sigma, *rest)


def seldom():
    last = []

    def skip(executor, x, sigma, *rest):
        if len(last) in (2, 3):
            return last.append(last[-1]) or last[-1]
        last.append(executor(x, sigma, *rest))
        return last[-1]

    return skip


def test_a_patch_outside_that_evaluates_twice_is_noticed(
    conditional, positions, costly, reads, caplog
):
    sigmas = few_sigmas(conditional, 6)
    with caplog.at_level(logging.WARNING):
        seen = positions(conditional, sigmas, change=wrapped(twice, innermost=False))
    expected = [float(sigma) * factor for sigma in sigmas[:-1] for factor in (0.9, 1)]
    assert len(seen) == 12 and caplog.text.count(NOT_STEPS) == 1
    assert [one.sigma for one in seen][2:] == pytest.approx(expected[2:])
    assert len(reads) == 10


def test_a_patch_that_leaves_an_evaluation_out_is_noticed(
    conditional, positions, costly, reads, caplog
):
    sigmas = few_sigmas(conditional, 8)
    with caplog.at_level(logging.WARNING):
        seen = positions(conditional, sigmas, change=wrapped(seldom(), innermost=False))
    assert [one.sigma for one in seen][:2] == pytest.approx(sigmas[:2].tolist())
    assert [one.sigma for one in seen][4:] == pytest.approx(sigmas[6:8].tolist())
    assert caplog.text.count(NOT_STEPS) == 1


def test_patches_further_in_do_not_disturb(
    conditional, positions, load_classifier, steered, made, costly, reads, caplog
):
    """One that evaluates twice, once at a sigma of its own, between two nodes with schedules."""
    schedule, sigmas = made("linear", axis="step", scale=2.0), few_sigmas(conditional, 5)

    def change(model):
        return steered(wrapped(twice)(model), load_classifier(), schedule=schedule)

    with caplog.at_level(logging.WARNING):
        seen = positions(conditional, sigmas, change=change)
    assert [one.sigma for one in seen] == sigmas[:-1].tolist()
    assert reads == pytest.approx([0.9 * sigma for sigma in sigmas[:-1].tolist()])
    assert NOT_STEPS not in caplog.text


def test_a_sampler_that_a_patch_replaces_is_noticed(conditional, positions, costly, caplog):
    """The run begins with euler, but another pack samples by heun."""
    import comfy.patcher_extension as extension

    def exchange(executor, noise, latent, _, *rest, **options):
        return executor(noise, latent, sampler_named("heun"), *rest, **options)

    def change(model):
        model = model.clone()
        model.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, "other", exchange)
        return model

    sigmas = few_sigmas(conditional, 6)
    with caplog.at_level(logging.WARNING):
        seen = positions(conditional, sigmas, change=change)
    assert len(seen) == 11 and caplog.text.count(NOT_STEPS) == 1
    assert seen[4:] == positions(conditional, sigmas, "heun")[4:]


def test_sigmas_that_a_patch_replaces_are_read(conditional, positions, costly, caplog):
    import comfy.patcher_extension as extension

    def shorter(executor, noise, latent, sampler, sigmas, *rest, **options):
        return executor(noise, latent, sampler, sigmas[1:], *rest, **options)

    def change(model):
        model = model.clone()
        model.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, "other", shorter)
        return model

    sigmas = few_sigmas(conditional, 6)
    seen = positions(conditional, sigmas, change=change)
    assert seen == positions(conditional, sigmas[1:]) and NOT_STEPS not in caplog.text


def test_a_device_that_tells_nothing_is_compared_at_the_end(
    conditional, positions, costly, pack_module, monkeypatch, caplog
):
    copies = pack_module("guidance.core.host_copy").HostCopy
    monkeypatch.setattr(copies, "on_its_way", False)
    with caplog.at_level(logging.WARNING):
        positions(conditional, few_sigmas(conditional, 6))
        assert NOT_STEPS not in caplog.text
        positions(conditional, few_sigmas(conditional, 6), change=wrapped(twice, innermost=False))
    assert caplog.text.count(NOT_STEPS) == 1
