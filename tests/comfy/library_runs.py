"""What the library does without ComfyUI, for runs of the nodes to be compared with."""

from __future__ import annotations

import torch
from mixture_model import Mixture
from sampler_runs import SEED, noise

from guidance import NoisyClassifier, load_adm
from guidance.classifiers.base import SamplingPoint
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.loop import sample
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import chain
from guidance.sampling.strength import Strength


def mixture_classifier(seed):
    """A noisy classifier that knows its classes exactly."""
    return NoisyClassifier(Mixture(seed), "linear", [f"class {index}" for index in range(4)])


def guide(classifier, labels, scale):
    """A Guide of a library run."""
    return Guide(classifier, torch.tensor(labels), Strength(scale=scale))


def term_of(classifier, x, denoised, sigma, labels, scale):
    """What the library says that guidance adds."""
    return guide(classifier, labels, scale).term(SamplingPoint.at(x, denoised, sigma))


def opinion(classifier, images, labels):
    """log p(label | image) of each finished image."""
    return classifier.log_probs(images, 0.0)[range(len(images)), labels]


def start_of(sigmas, start=None):
    """What ComfyUI starts from, sigma * noise, in VP coordinates."""
    start = noise() if start is None else start
    return start * sigmas[0] / (1 + sigmas[0] ** 2) ** 0.5


def draws(seed=SEED, like=None):
    """What core's ancestral samplers draw in a run with that seed."""
    import comfy.k_diffusion.sampling as k_sampling

    draw = k_sampling.default_noise_sampler(noise() if like is None else like, seed=seed)
    return lambda x=None: draw(None, None)


def library_run(path, x, respacing="ddim25", last=None, **options):
    """The library's run of a model file over ADM Scheduler's steps, or the `last` ones."""
    model = load_adm(path)
    steps = chain(model.schedule.alpha_bar.tolist(), respaced_timesteps(respacing))
    return sample(model, x, steps[-last:] if last else steps, **options)
