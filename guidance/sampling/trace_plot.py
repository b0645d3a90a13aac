"""A plot of a trace, drawn by matplotlib without a display."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from ..core.figures import fonts_for_names, new_figure, plain, to_pixels
from .trace import Trace
from .trace_strip import draw_strip, strip_height, strips_of

COLOURS = ("tab:orange", "tab:green", "tab:red", "tab:purple")  # of classifiers, in turn
LONGEST = 44  # characters of a classifier's name in the legend
WIDTH, PANELS = 9.0, 7.0  # inches: of the figure, and the height of the panels


def plot_trace(trace: Trace) -> np.ndarray:
    """(H, W, 3) uint8: scales, lengths of the terms, p(label | x) and passes over the run.

    Below, for each classifier of which the trace has pictures, what it saw. Raises ValueError for a
    trace without evaluations.
    """
    seen = trace.to_dict()
    if not seen["evaluations"]:
        raise ValueError(
            "trace holds no evaluation; sample with the MODEL of Guidance Trace, and connect the "
            "sampled latent to samples."
        )
    names = classifier_names(seen["classifiers"])
    strips = strips_of(trace)
    heights = [PANELS, *(strip_height(strip) for strip in strips.values())]
    figure = new_figure(WIDTH, sum(heights))
    panels, *places = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _panels(panels, seen, names)
    for place, (number, strip) in zip(places, strips.items(), strict=True):
        draw_strip(place, WIDTH, strip, names[number], COLOURS[number % 4])
    return to_pixels(figure)


def classifier_names(classifiers: list[dict]) -> list[str]:
    """The names of a trace's classifiers with their labels, all different."""
    names = []
    for one in classifiers:
        labels = "" if one["kind"] == "score" else f": {', '.join(dict.fromkeys(one['labels']))}"
        names.append(plain(f"{one['name']}{labels}".rstrip(": "), LONGEST))
    counts = Counter(names)
    return [
        f"{name} ({number})" if counts[name] > 1 else name
        for number, name in enumerate(names, start=1)
    ]


def _panels(figure: Any, seen: dict, names: list[str]) -> None:
    """The panels that share the axis of the evaluations."""
    evaluations = seen["evaluations"]
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(3, 3, 3, 2))
    _terms(axes[0], evaluations, "scale", "cfg", names, "scale")
    _terms(axes[1], evaluations, "length of the term", "cfg_norm", names, "norm")
    _values(axes[2], seen)
    _passes(axes[3], evaluations)
    _sigmas(axes[0], evaluations)
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
        ax.margins(x=0.01)
    axes[-1].set_xlabel("evaluation of the model")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        columns = 3 if max(map(len, labels)) < 28 else 2
        font = {"family": fonts_for_names(), "size": 9}
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, prop=font)


def _terms(
    ax: Any, seen: list[dict], unit: str, of_cfg: str, names: list[str], of_each: str
) -> None:
    """Lines for CFG, with this key of an evaluation, and for each classifier's key `of_each`."""
    ax.set_ylabel(unit)
    values = [math.nan if one[of_cfg] is None else one[of_cfg] for one in seen]
    if not all(map(math.isnan, values)):
        ax.plot(values, label=" CFG", color="tab:blue", marker=".", lw=1.5)
    for number, name in enumerate(names):
        values = [row[of_each] if row else 0.0 for row in _records(seen, number)]
        ax.plot(values, label=name, color=COLOURS[number % 4], marker=".", lw=1.5)


def _values(ax: Any, seen: dict) -> None:
    """p(label | x) of each image from 0 to 1; scores have an axis of their own, on the right."""
    kinds = [one["kind"] for one in seen["classifiers"]]
    probabilities, scores = ax, ax
    if "score" in kinds:
        scores = ax.twinx() if "probability" in kinds else ax
        scores.set_ylabel("score")
    if "score" not in kinds or scores is not ax:
        probabilities.set_ylabel("p(label | x)")
        probabilities.set_ylim(-0.03, 1.03)
    for number, kind in enumerate(kinds):
        lines = [_values_of(row) for row in _records(seen["evaluations"], number)]
        images = max(map(len, lines))
        lines = [line or [math.nan] * images for line in lines]
        look = {"color": COLOURS[number % 4], "alpha": max(0.35, 0.9 / images**0.5), "lw": 1.2}
        look["ls"] = "--" if kind == "score" else "-"
        for line in zip(*lines, strict=True):
            (scores if kind == "score" else probabilities).plot(line, **look)
    if not kinds:
        ax.text(0.5, 0.5, "no classifier", transform=ax.transAxes, ha="center", color="gray")


def _values_of(record: dict | None) -> list[float]:
    """The probability or score of each image."""
    if record is None:
        return []
    return record["scores"] if "scores" in record else [math.exp(v) for v in record["log_probs"]]


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


def _records(seen: list[dict], number: int) -> list[dict | None]:
    """The record of a classifier at each evaluation, None where it was off."""
    of_each = ({row["classifier"]: row for row in one["classifiers"]} for one in seen)
    return [rows.get(number) for rows in of_each]
