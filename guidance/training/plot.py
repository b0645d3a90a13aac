"""A plot of a training, drawn by matplotlib without a display."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.figures import new_figure, to_pixels


def plot_training(losses: list[float], validations: list[dict[str, Any]]) -> np.ndarray:
    """(H, W, 3) uint8: the loss of each step, the validation loss, and accuracy by noise level."""
    figure = new_figure(9.0, 7.0)
    top, bottom = figure.subplots(2, 1)
    steps = np.arange(1, len(losses) + 1)
    top.plot(steps, losses, color="tab:blue", alpha=0.3, lw=1, label="each step")
    top.plot(steps, _smooth(losses), color="tab:blue", lw=2, label="mean of about 50")
    if validations:
        at = [seen["step"] for seen in validations]
        top.plot(
            at, [seen["loss"] for seen in validations], "o-", color="tab:red", label="held out"
        )
    top.set(xlabel="step", ylabel="cross-entropy", ylim=(0, None))
    top.legend()
    _accuracies(bottom, validations)
    for ax in (top, bottom):
        ax.grid(alpha=0.3)
    return to_pixels(figure)


def _accuracies(ax: Any, validations: list[dict[str, Any]]) -> None:
    """A line for each of the last validations; the newest is the darkest."""
    some = validations[-5:]
    for number, seen in enumerate(some):
        ax.plot(
            [int(t) for t in seen["accuracy"]],
            list(seen["accuracy"].values()),
            "o-",
            color="tab:green",
            alpha=(number + 1) / len(some),
            label=f"after step {seen['step']:g}",
        )
    ax.set(xlabel="timestep: noise grows to the right", ylabel="held-out accuracy", ylim=(0, 1.03))
    if some:
        ax.legend()


def _smooth(losses: list[float], reach: int = 50) -> np.ndarray:
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - reach, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
