"""The pictures of matplotlib: which numbers are drawn where, and what they are called."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from guidance.classifiers.base import ClassifierOutput
from guidance.evaluation import report_plot
from guidance.evaluation.judge import Score
from guidance.evaluation.report import Row
from guidance.sampling import trace_plot
from guidance.sampling.classifier_record import TracedClassifier
from guidance.sampling.trace import Trace
from guidance.schedules.run_position import RunPosition
from guidance.training import plot as training_plot


@pytest.fixture
def figure_of(monkeypatch):
    """The figure that a function draws, instead of its pixels."""

    def drawn(function, *arguments):
        for module in (trace_plot, report_plot, training_plot):
            monkeypatch.setattr(module, "to_pixels", lambda figure: figure)
        return function(*arguments)

    return drawn


def values(line):
    return [pytest.approx(value, nan_ok=True) for value in line.get_ydata()]


def legend(ax):
    """The names in its legend, in order; None without one."""
    found = ax.get_legend()
    return found and [text.get_text() for text in found.get_texts()]


def panels(figure):
    """The part of a trace's figure above the pictures."""
    return figure.subfigs[0]


# --- a trace ---------------------------------------------------------------------------------


def trace_of(*evaluations):
    """(cfg, whether uncond was computed, passes, [(scale, probabilities)]) for each evaluation."""
    trace = Trace()
    for index, (cfg, uncond, passes, classifiers) in enumerate(evaluations):
        sigma = torch.tensor([10.0 / 2**index])
        trace.evaluation(sigma, lambda s: RunPosition(percent=0.0, step=0.0, steps=1, sigma=s))
        trace.passes(passes)
        if cfg is not None:
            trace.cfg(cfg, torch.ones(1, 1), torch.zeros(1, 1) if uncond else None)
        for number, (scale, shares) in enumerate(classifiers):
            add(trace, scale, torch.tensor(shares)[:, None].log(), TracedClassifier(str(number)))
    return trace


def add(trace, scale, log_probs, which, seen=None):
    """One evaluation of a classifier with log p(y | x) (B, classes)."""
    batch = len(log_probs)
    labels = torch.tensor(which.labels or (0,)).expand(batch)
    scales, ones = torch.full((batch,), scale), torch.ones(batch)
    output = ClassifierOutput(ones, ones, log_probs, ones, ones, seen=seen)
    trace.classifier(which, scales, torch.full((batch, 1), 2 * scale), labels, output)


GUIDED = (
    (4.0, True, 2, []),
    (3.0, True, 2, [(5.0, [0.25, 0.5])]),
    (1.0, False, 1, [(6.0, [0.75, 1.0])]),
)


def test_the_numbers_of_a_trace(figure_of):
    """CFG in the first two of three evaluations, a classifier in the last two, of two images."""
    figure = figure_of(trace_plot.plot_trace, trace_of(*GUIDED))
    scales, norms, shares, passes = figure.axes
    assert [values(line) for line in scales.lines] == [[4, 3, 1], [0, 5, 6]]
    assert [values(line) for line in norms.lines] == [[3, 2, math.nan], [0, 10, 12]]
    chances = [values(line) for line in shares.lines]
    assert chances == [[math.nan, 0.25, 0.75], [math.nan, 0.5, 1.0]]
    assert [bar.get_height() for bar in passes.patches] == [2, 2, 1]
    assert [bar.get_x() + bar.get_width() / 2 for bar in passes.patches] == pytest.approx([0, 1, 2])
    assert passes.get_title("right") == "5 of 6 passes" and passes.get_ylim() == (0, 2.5)
    assert names(panels(figure)) == [" CFG", " classifier"]
    assert not shares.texts and shares.get_ylim() == (-0.03, 1.03)
    named = [ax.get_ylabel() for ax in figure.axes]
    assert named == ["scale", "length of the term", "p(label | x)", "passes"]
    assert passes.get_xlabel() == "evaluation of the model"


def test_sigmas_along_the_top(figure_of):
    for count, ticks in ((3, [0, 1, 2]), (17, list(range(0, 17, 2)))):
        figure = figure_of(trace_plot.plot_trace, trace_of(*[(1.0, False, 1, [])] * count))
        (top,) = figure.axes[0].child_axes
        assert top.get_xlabel() == "sigma" and top.get_xticks().tolist() == ticks
        shown = [text.get_text() for text in top.get_xticklabels()]
        assert shown == [f"{10 / 2**index:.3g}" for index in ticks]


def test_parts_without_numbers(figure_of):
    """No line and no legend for what never was a number."""
    figure = figure_of(trace_plot.plot_trace, trace_of((2.0, False, 2, [])))
    (said,) = figure.axes[2].texts
    assert said.get_text() == "no classifier"
    assert names(panels(figure)) == [" CFG"]
    assert not figure.axes[1].lines
    nothing = figure_of(trace_plot.plot_trace, trace_of(*[(None, False, 1, [])] * 2))
    assert not nothing.axes[0].lines and not panels(nothing).legends


def test_several_classifiers_are_numbered(figure_of):
    """The second joins late."""
    one, two = (1.0, [0.5]), (2.0, [0.25])
    trace = trace_of((None, False, 1, [one]), (None, False, 1, [one, two]))
    figure = figure_of(trace_plot.plot_trace, trace)
    assert names(panels(figure)) == [" classifier (1)", " classifier (2)"]
    assert [values(line) for line in figure.axes[0].lines] == [[1, 1], [0, 2]]
    assert [values(line) for line in figure.axes[2].lines] == [[0.5, 0.5], [math.nan, 0.25]]


def test_a_classifier_is_named_with_its_labels(figure_of):
    trace = trace_of((None, False, 1, []))
    animals = ("cat", "dog", "cow")
    add(trace, 1.0, torch.zeros(3, 3), TracedClassifier("a", "zoo", (1, 1, 2), animals))
    add(trace, 1.0, torch.zeros(3, 3), TracedClassifier("b", "x" * 50, (1,)))
    add(trace, 1.0, torch.zeros(3, 1), TracedClassifier("c", "beauty", (0,), is_score=True))
    figure = figure_of(trace_plot.plot_trace, trace)
    assert names(panels(figure)) == [" zoo: dog, cow", f" {'x' * 41}...", " beauty"]


def test_scores_have_an_axis_of_their_own(figure_of):
    """On the right of the probabilities; alone on the left."""
    score = TracedClassifier("s", is_score=True)
    for shares in ([(1.0, [0.5])], []):
        trace = trace_of((None, False, 1, shares))
        add(trace, 1.0, torch.tensor([[-700.0], [900.0]]), score)
        axes = figure_of(trace_plot.plot_trace, trace).axes
        (ax,) = [ax for ax in axes if ax.get_ylabel() == "score"]
        assert [values(line) for line in ax.lines] == [[-700], [900]]
        beside = [ax for ax in axes if ax.get_ylabel() == "p(label | x)"]
        assert [values(line) for one in beside for line in one.lines] == [[0.5]] * len(shares)
        assert (ax.yaxis.get_label_position() == "right") == bool(shares)


def pictured(*, evaluations=9, batch=1, keys="a", size=(8, 8, 3)):
    """A trace of classifiers that saw pictures, which are lighter from one to the next."""
    trace, (height, width, channels) = Trace(), size
    animals = ("cat", "dog", "cow", "a name with many letters")
    log_probs = torch.tensor([[0.2, 0.5, 0.003, 0.297]]).log().expand(batch, -1)
    for index in range(evaluations):
        sigma = torch.tensor([float(evaluations - index)])
        trace.evaluation(sigma, lambda s: RunPosition(percent=0.0, step=0.0, steps=1, sigma=s))
        seen = torch.full((batch, channels, height, width), index / 50 - 1)
        for key in keys:
            add(trace, 1.0, log_probs, TracedClassifier(key, key, (1,), animals), seen)
    return trace


def pictures(figure):
    """[(gray value, size, title, texts below)] of all pictures, row by row."""
    shown = [ax for ax in figure.axes if ax.images]
    data = [ax.images[0].get_array() for ax in shown]
    return [
        (int(one.flat[0]), one.shape, ax.get_title("left"), [text.get_text() for text in ax.texts])
        for ax, one in zip(shown, data, strict=True)
    ]


def test_the_strip_has_five_pictures_with_their_best_classes(figure_of):
    """From the first to the last, in the order of the run."""
    found = sorted(pictures(figure_of(trace_plot.plot_trace, pictured())))
    assert [one[2] for one in found] == [
        f"evaluation {index}, sigma {9 - index}" for index in (0, 2, 4, 6, 8)
    ]
    assert [one[0] for one in found] == [round(index / 50 * 127.5) for index in (0, 2, 4, 6, 8)]
    assert {one[1] for one in found} == {(8, 8, 3)}
    best = ["dog  50 %", "a name w...letters  30 %", "cat  20 %"]
    assert all(one[3] == best for one in found)


@pytest.mark.parametrize(("evaluations", "columns"), [(1, 1), (3, 3), (6, 5), (300, 5)])
def test_a_short_run_has_fewer_pictures(figure_of, evaluations, columns):
    found = pictures(figure_of(trace_plot.plot_trace, pictured(evaluations=evaluations)))
    assert len(found) == columns


@pytest.mark.parametrize(
    ("keys", "batch", "rows", "said"),
    [
        ("a", 1, [1], ""),
        ("a", 4, [4], ""),
        ("a", 16, [4], " (4 of 16 images)"),
        ("ab", 3, [2, 2], " (2 of 3 images)"),
        ("abcde", 2, [1] * 4, " (1 of 2 images)"),
    ],
)
def test_several_images_and_classifiers_share_the_rows(figure_of, keys, batch, rows, said):
    figure = figure_of(trace_plot.plot_trace, pictured(keys=keys, batch=batch, size=(8, 6, 1)))
    strips = figure.subfigs[1:]
    assert [len(strip.axes) for strip in strips] == [5 * count for count in rows]
    titles = [strip.texts[0].get_text() for strip in strips]
    shown = zip(keys, titles, strict=False)
    assert titles and all(t == f"Predicted images as seen by {key}: dog{said}" for key, t in shown)
    of_rows = [ax.get_ylabel() for ax in strips[0].axes if ax.get_ylabel()]
    assert of_rows == ([f"image {row + 1}" for row in range(rows[0])] if batch > 1 else [])


def test_texts_below_pictures_stay_inside_the_figure_and_apart(figure_of):
    figure = figure_of(trace_plot.plot_trace, pictured(keys="ab", batch=2))
    figure.canvas.draw()
    shown = [ax for ax in figure.axes if ax.images]
    boxes = [text.get_window_extent() for ax in shown for text in (*ax.texts, ax._left_title)]
    boxes += [text.get_window_extent() for strip in figure.subfigs for text in strip.texts]
    boxes = [box for box in boxes if box.width > 1]
    assert len(boxes) > 60
    assert all(box.y0 >= 0 and box.x0 >= 0 and box.x1 <= 900 for box in boxes)
    crossed = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert crossed == []


def test_without_pictures_there_is_no_strip(figure_of):
    assert len(figure_of(trace_plot.plot_trace, trace_of(*GUIDED)).subfigs) == 1


def test_a_trace_of_nothing_is_refused():
    with pytest.raises(ValueError, match="holds no evaluation; sample with .*Guidance Trace"):
        trace_plot.plot_trace(Trace())


# --- a training ------------------------------------------------------------------------------

VALIDATIONS = [
    {"step": step, "loss": step / 10, "accuracy": {"0": 0.9, "500": 0.5 + step / 100}}
    for step in (5, 10, 20, 30, 40, 50)
]


def test_losses_and_the_last_five_validations(figure_of):
    losses = [float(index) for index in range(60)]
    top, bottom = figure_of(training_plot.plot_training, losses, VALIDATIONS).axes
    each, smooth, held_out = top.lines
    assert legend(top) == ["each step", "mean of about 50", "held out"]
    assert each.get_xdata().tolist() == smooth.get_xdata().tolist() == list(range(1, 61))
    assert each.get_ydata().tolist() == losses
    # the mean of the last 50
    found = smooth.get_ydata()[[0, 1, 2, 49, 50, 59]].tolist()
    assert found == pytest.approx([0, 0.5, 1, 24.5, 25.5, 34.5])
    assert list(held_out.get_xdata()) == [5, 10, 20, 30, 40, 50]
    assert list(held_out.get_ydata()) == [0.5, 1, 2, 3, 4, 5]
    assert legend(bottom) == [f"after step {step}" for step in (10, 20, 30, 40, 50)]
    for line, step in zip(bottom.lines, (10, 20, 30, 40, 50), strict=True):
        assert list(line.get_xdata()) == [0, 500]
        assert list(line.get_ydata()) == [0.9, 0.5 + step / 100]
    strengths = [line.get_alpha() for line in bottom.lines]
    assert strengths == sorted(strengths) and strengths[-1] == 1, "the newest is the strongest"
    assert top.get_ylim()[0] == 0 and bottom.get_ylim() == (0, 1.03)


# --- an evaluation ---------------------------------------------------------------------------


def row(kind, name, scale, accuracy, diversity=2.0, compared=True):
    more = (10 * accuracy, accuracy + 0.1, accuracy + 0.2) if compared else ()
    return Row(kind, name, scale, Score(accuracy, diversity, *more), 9)


NONE = row("none", "no guidance", 0.0, 0.1)
ROWS = [
    NONE,
    row("classifier", "classifier", 1.5, 0.3),
    row("classifier", "classifier", 10.0, 0.5),
    row("CFG", "CFG", 2.0, 0.4),
]


def points(line):
    """(x, y) of a line, rounded."""
    return [(round(float(x), 6), round(float(y), 6)) for x, y in line.get_xydata()]


def names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_compared_rows_are_drawn_twice(figure_of):
    """Accuracy over the Frechet distance, and precision over recall; lines start at no guidance."""
    figure = figure_of(report_plot.plot_rows, ROWS)
    left, right = figure.axes
    assert left.get_xlabel().startswith("Frechet distance")
    assert left.get_ylabel() == "judge accuracy"
    assert (right.get_xlabel(), right.get_ylabel()) == ("recall", "precision")
    assert [points(line) for line in left.lines] == [
        [(1.0, 0.1)],
        [(1.0, 0.1), (3.0, 0.3), (5.0, 0.5)],
        [(1.0, 0.1), (4.0, 0.4)],
    ]
    assert points(right.lines[1]) == [(0.3, 0.2), (0.5, 0.4), (0.7, 0.6)]
    assert names(figure) == [" no guidance", " classifier", " CFG"]
    for ax in figure.axes:  # the scales beside their points
        assert [text.get_text() for text in ax.texts] == ["0", "1.5", "10", "2"]
    assert [text.xy for text in left.texts] == [
        pytest.approx(place) for place in ((1.0, 0.1), (3.0, 0.3), (5.0, 0.5), (4.0, 0.4))
    ]


def test_rows_without_real_images_are_drawn_once(figure_of):
    rows = [row("none", "none", 0.0, 0.1, 3.0, False), row("CFG", "CFG", 2.0, 0.4, 1.0, False)]
    (ax,) = figure_of(report_plot.plot_rows, rows).axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("diversity", "judge accuracy")
    assert points(ax.lines[1]) == [(3.0, 0.1), (1.0, 0.4)]
    # one row without a distance leaves no comparison
    (ax,) = figure_of(report_plot.plot_rows, [NONE, rows[1]]).axes
    assert ax.get_xlabel() == "diversity"


def test_schedules_and_files_are_single_points_with_marks_of_their_own(figure_of):
    rows = [NONE, row("CFG", "CFG, interval", None, 0.6)]
    rows += [row("file", f"{index}.npz", None, index / 20) for index in range(13)]
    ax = figure_of(report_plot.plot_rows, rows).axes[0]
    assert points(ax.lines[1]) == [(6.0, 0.6)] and points(ax.lines[3]) == [(0.5, 0.05)]
    assert len({(line.get_marker(), line.get_color()) for line in ax.lines}) == 15
    assert [text.get_text() for text in ax.texts] == ["0"], "a single point has no scale"


def test_names_in_the_legend(figure_of):
    """A name that starts with _ would be left out, and $ would begin a formula."""
    for name, shown in (("_a$b$", r"_a\$b\$"), ("x" * 70, "x" * 70), ("x" * 71, "x" * 67 + "...")):
        figure = figure_of(report_plot.plot_rows, [row("file", name, None, 0.5)])
        assert names(figure) == [f" {shown}"]


def test_pictures_in_pixels():
    for pixels, size in (
        (trace_plot.plot_trace(trace_of(*GUIDED)), (700, 900)),
        (training_plot.plot_training([1.0], VALIDATIONS[:1]), (700, 900)),
        (report_plot.plot_rows(ROWS), (586, 1200)),
    ):
        assert (pixels.shape, pixels.dtype) == ((*size, 3), np.uint8)
        assert pixels.std() > 1
