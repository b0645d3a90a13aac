"""A plot of a trace, drawn by matplotlib without a display."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core.figures import new_figure, to_pixels
from .trace import Trace

COLOURS = ("tab:orange", "tab:green", "tab:red", "tab:purple")  # of classifiers, in turn


def plot_trace(trace: Trace) -> np.ndarray:
    """(H, W, 3) uint8: scales, lengths of the terms, p(label | x) and passes over the run.

    Raises ValueError for a trace without evaluations.
    """
    seen = trace.to_dict()["evaluations"]
    if not seen:
        raise ValueError(
            "trace holds no evaluation; sample with the MODEL of Guidance Trace, and connect the "
            "sampled latent to samples."
        )
    figure = new_figure(9.0, 7.0)
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(3, 3, 3, 2))
    _terms(axes[0], seen, "scale", "cfg", "CFG", "scale")
    _terms(axes[1], seen, "length of the term", "cfg_norm", "(cfg - 1)(cond - uncond)", "norm")
    _probabilities(axes[2], seen)
    _passes(axes[3], seen)
    _sigmas(axes[0], seen)
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.margins(x=0.01)
    axes[-1].set_xlabel("evaluation of the model")
    return to_pixels(figure)


def _terms(ax: Any, seen: list[dict], unit: str, of_cfg: str, label: str, of_each: str) -> None:
    """Lines for CFG, with this key of an evaluation, and for each classifier's key `of_each`."""
    ax.set_ylabel(unit)
    values = [math.nan if one[of_cfg] is None else one[of_cfg] for one in seen]
    if not all(map(math.isnan, values)):
        ax.plot(values, label=label, color="tab:blue", marker=".", lw=1.5)
    for number in range(_classifiers(seen)):
        label = "classifier" if _classifiers(seen) == 1 else f"classifier {number + 1}"
        rows = [_record(one, number) for one in seen]
        values = [row[of_each] if row else 0.0 for row in rows]
        ax.plot(values, label=label, color=COLOURS[number % 4], marker=".", lw=1.5)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper right", fontsize=8)


def _probabilities(ax: Any, seen: list[dict]) -> None:
    ax.set_ylabel("p(label | x)")
    ax.set_ylim(-0.03, 1.03)
    for number in range(_classifiers(seen)):
        rows = [_record(one, number) for one in seen]
        images = max((len(row["log_probs"]) for row in rows if row), default=0)
        for image in range(images):
            values = [math.exp(row["log_probs"][image]) if row else math.nan for row in rows]
            ax.plot(values, color=COLOURS[number % 4], alpha=max(0.15, 0.8 / images**0.5), lw=1)
    if not _classifiers(seen):
        ax.text(0.5, 0.5, "no classifier", transform=ax.transAxes, ha="center", color="gray")


def _passes(ax: Any, seen: list[dict]) -> None:
    passes = [one["passes"] for one in seen]
    ax.set_ylabel("passes")
    ax.bar(range(len(seen)), passes, color="tab:gray", width=0.8)
    ax.set_ylim(0, max(*passes, 2) + 0.5)
    full = len(seen) * max(passes)
    ax.set_title(f"{sum(passes)} of {full} passes", loc="right", fontsize=9)


def _sigmas(ax: Any, seen: list[dict]) -> None:
    """A few of the run's sigmas along the top axis."""
    chosen = sorted({round(i * (len(seen) - 1) / 8) for i in range(9)})
    top = ax.secondary_xaxis("top")
    top.set_xticks(chosen, [f"{seen[index]['sigma']:.3g}" for index in chosen])
    top.set_xlabel("sigma")


def _classifiers(seen: list[dict]) -> int:
    return max(len(one["classifiers"]) for one in seen)


def _record(one: dict, number: int) -> dict | None:
    return one["classifiers"][number] if number < len(one["classifiers"]) else None
