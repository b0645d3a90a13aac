"""The pictures of matplotlib: what is drawn where, and how it is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from guidance.core.figures import new_figure, to_pixels
from guidance.evaluation import report_plot
from guidance.evaluation.judge import Score
from guidance.evaluation.report import Row
from guidance.sampling import trace_plot
from guidance.sampling.trace import Trace
from guidance.schedules.run_position import RunPosition
from guidance.training import plot as training_plot


@pytest.fixture
def figure_of(monkeypatch):
    """The figure that a function of a module draws, instead of its pixels."""

    def drawn(function, *arguments):
        module = {
            trace_plot.plot_trace: trace_plot,
            report_plot.plot_rows: report_plot,
            training_plot.plot_training: training_plot,
        }[function]
        monkeypatch.setattr(module, "to_pixels", lambda figure: figure)
        return function(*arguments)

    return drawn


def values(line):
    return [pytest.approx(value, nan_ok=True) for value in line.get_ydata()]


def legend(ax):
    """The names in its legend, in order; None without one."""
    found = ax.get_legend()
    return found and [text.get_text() for text in found.get_texts()]


def grid_alpha(ax):
    """How strong its grid is; None without one."""
    lines = ax.get_xgridlines() + ax.get_ygridlines()
    return lines[0].get_alpha() if all(line.get_visible() for line in lines) else None


# --- figures ---------------------------------------------------------------------------------


def test_a_figure_is_so_many_inches_of_100_pixels():
    pixels = to_pixels(new_figure(2.0, 1.5))
    assert (pixels.shape, pixels.dtype) == ((150, 200, 3), np.uint8)
    assert (pixels == 255).all()


def test_what_is_drawn_is_in_the_pixels():
    figure = new_figure(1.0, 1.0)
    figure.set_facecolor((1.0, 0.0, 0.0))
    assert (to_pixels(figure) == [255, 0, 0]).all()


def test_labels_have_room_in_a_figure():
    """Laid out anew when it is drawn: a long label moves the axes."""
    lefts = []
    for label in ("", "two\nlines"):
        figure = new_figure(3.0, 2.0)
        ax = figure.subplots()
        ax.set_ylabel(label)
        to_pixels(figure)
        lefts.append(ax.get_position().x0)
    assert lefts[1] > lefts[0]


# --- a trace ---------------------------------------------------------------------------------


def trace_of(evaluations):
    """(cfg, whether uncond was computed, passes, [(scale, log_probs)]) for each evaluation."""
    trace = Trace()
    for index, (cfg, uncond, passes, classifiers) in enumerate(evaluations):
        sigma = torch.tensor([10.0 / 2**index])
        trace.evaluation(sigma, lambda s: RunPosition(percent=0.0, step=0.0, steps=1, sigma=s))
        trace.passes(passes)
        if cfg is not None:
            trace.cfg(cfg, torch.ones(1, 1), torch.zeros(1, 1) if uncond else None)
        for scale, log_probs in classifiers:
            batch = len(log_probs)
            trace.classifier(
                torch.full((batch,), scale), torch.full((batch, 1), 2 * scale), log_probs
            )
    return trace


def probs(*shares):
    return torch.tensor(shares).log()


@pytest.fixture
def guided(figure_of):
    """CFG in the first two of three evaluations, a classifier in the last two, of two images."""
    return figure_of(
        trace_plot.plot_trace,
        trace_of(
            [
                (4.0, True, 2, []),
                (3.0, True, 2, [(5.0, probs(0.25, 0.5))]),
                (1.0, False, 1, [(6.0, probs(0.75, 1.0))]),
            ]
        ),
    )


def test_a_traces_picture_has_four_parts_of_one_width(guided):
    scales, norms, chances, passes = guided.axes
    assert guided.get_size_inches().tolist() == [9.0, 7.0]
    assert [ax.get_ylabel() for ax in guided.axes] == [
        "scale",
        "length of the term",
        "p(label | x)",
        "passes",
    ]
    assert [ax.get_xlabel() for ax in guided.axes] == ["", "", "", "evaluation of the model"]
    assert passes.get_gridspec().get_height_ratios() == (3, 3, 3, 2)
    assert all(ax.get_shared_x_axes().joined(ax, scales) for ax in guided.axes)
    assert [grid_alpha(ax) for ax in guided.axes] == [0.3] * 4
    assert [ax.margins() for ax in guided.axes] == [(0.01, 0.05)] * 4


def test_a_traces_scales_and_lengths(guided):
    for ax, cfg, classifier in (
        (guided.axes[0], [4.0, 3.0, 1.0], [0.0, 5.0, 6.0]),
        (guided.axes[1], [3.0, 2.0, math.nan], [0.0, 10.0, 12.0]),
    ):
        first, second = ax.lines
        assert values(first) == cfg and values(second) == classifier
        assert (first.get_color(), second.get_color()) == ("tab:blue", "tab:orange")
        for line in ax.lines:
            assert (line.get_marker(), line.get_linewidth()) == (".", 1.5)
        placed = ax.get_legend()
        assert placed._loc == 1 and placed.prop.get_size() == 8  # upper right
    assert legend(guided.axes[0]) == ["CFG", "classifier"]
    assert legend(guided.axes[1]) == ["(cfg - 1)(cond - uncond)", "classifier"]


def test_a_line_of_probabilities_for_each_image(guided):
    ax = guided.axes[2]
    assert [values(line) for line in ax.lines] == [[math.nan, 0.25, 0.75], [math.nan, 0.5, 1.0]]
    assert ax.get_ylim() == (-0.03, 1.03)
    assert legend(ax) is None and not ax.texts
    for line in ax.lines:
        assert (line.get_color(), line.get_linewidth()) == ("tab:orange", 1)
        assert line.get_alpha() == pytest.approx(0.8 / math.sqrt(2))


def test_lines_of_many_images_stay_visible(figure_of):
    many = [(None, False, 1, [(1.0, torch.zeros(64))])]
    lines = figure_of(trace_plot.plot_trace, trace_of(many)).axes[2].lines
    assert len(lines) == 64 and {line.get_alpha() for line in lines} == {0.15}


def test_bars_of_passes_and_what_they_are_a_share_of(guided):
    ax = guided.axes[3]
    assert [bar.get_height() for bar in ax.patches] == [2, 2, 1]
    assert [bar.get_x() + bar.get_width() / 2 for bar in ax.patches] == pytest.approx([0, 1, 2])
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.8] * 3)
    assert {to_hex(bar.get_facecolor()) for bar in ax.patches} == {to_hex("tab:gray")}
    assert ax.get_ylim() == (0, 2.5)
    assert ax.get_title("right") == "5 of 6 passes"
    assert ax.title.get_text() == "" and ax._right_title.get_fontsize() == 9


@pytest.mark.parametrize("passes, top", [(0, 2.5), (1, 2.5), (3, 3.5)])
def test_bars_have_room_for_two_passes_at_least(figure_of, passes, top):
    figure = figure_of(trace_plot.plot_trace, trace_of([(1.0, False, passes, [])]))
    assert figure.axes[3].get_ylim() == (0, top)
    assert figure.axes[3].get_title("right") == f"{passes} of {passes} passes"


def top_axis(figure):
    (top,) = figure.axes[0].child_axes
    return top, [text.get_text() for text in top.get_xticklabels()]


def test_sigmas_along_the_top(guided):
    top, told = top_axis(guided)
    assert top.get_xlabel() == "sigma"
    assert top.get_xticks().tolist() == [0, 1, 2] and told == ["10", "5", "2.5"]
    assert all(not ax.child_axes for ax in guided.axes[1:])


def test_nine_sigmas_of_a_long_run(figure_of):
    figure = figure_of(trace_plot.plot_trace, trace_of([(1.0, False, 1, [])] * 17))
    top, told = top_axis(figure)
    assert top.get_xticks().tolist() == list(range(0, 17, 2))
    assert told[:3] == ["10", "2.5", "0.625"] and told[4] == "0.0391"


def test_a_run_without_classifiers_says_so(figure_of):
    figure = figure_of(trace_plot.plot_trace, trace_of([(2.0, True, 2, [])]))
    (said,) = figure.axes[2].texts
    assert (said.get_text(), said.get_position()) == ("no classifier", (0.5, 0.5))
    assert (said.get_ha(), said.get_color()) == ("center", "gray")
    assert said.get_transform() == figure.axes[2].transAxes
    assert legend(figure.axes[0]) == ["CFG"] and not figure.axes[2].lines


def test_a_run_without_guidance_has_empty_parts(figure_of):
    """No line and no legend for what never was a number."""
    figure = figure_of(trace_plot.plot_trace, trace_of([(None, False, 1, [])] * 2))
    for ax in figure.axes[:2]:
        assert not ax.lines and legend(ax) is None


def test_several_classifiers_are_numbered_and_coloured_in_turn(figure_of):
    five = [(float(scale), probs(0.5)) for scale in range(1, 6)]
    figure = figure_of(trace_plot.plot_trace, trace_of([(None, False, 1, five)]))
    colours = ["tab:orange", "tab:green", "tab:red", "tab:purple", "tab:orange"]
    assert legend(figure.axes[0]) == [f"classifier {number}" for number in range(1, 6)]
    for ax in figure.axes[:3]:
        assert [line.get_color() for line in ax.lines] == colours
    assert [values(line) for line in figure.axes[0].lines] == [[1], [2], [3], [4], [5]]


def test_a_second_classifier_that_joins_late(figure_of):
    one, two = (1.0, probs(0.5)), (2.0, probs(0.25))
    told = [(None, False, 1, [one]), (None, False, 1, [one, two])]
    figure = figure_of(trace_plot.plot_trace, trace_of(told))
    assert legend(figure.axes[0]) == ["classifier 1", "classifier 2"]
    assert [values(line) for line in figure.axes[0].lines] == [[1, 1], [0, 2]]
    assert [values(line) for line in figure.axes[2].lines] == [[0.5, 0.5], [math.nan, 0.25]]


def test_a_trace_of_nothing_is_refused():
    with pytest.raises(ValueError) as error:
        trace_plot.plot_trace(Trace())
    assert str(error.value) == (
        "trace holds no evaluation; sample with the MODEL of Guidance Trace, and connect what was "
        "sampled to samples."
    )


def test_a_traces_picture_in_pixels():
    pixels = trace_plot.plot_trace(trace_of([(2.0, True, 2, [(1.0, probs(0.5))])]))
    assert (pixels.shape, pixels.dtype) == ((700, 900, 3), np.uint8)


# --- a training ------------------------------------------------------------------------------

LOSSES = [float(index) for index in range(60)]
VALIDATIONS = [
    {"step": step, "loss": step / 10, "accuracy": {"0": 0.9, "500": 0.5 + step / 100}}
    for step in (5, 10, 20, 30, 40, 50)
]


@pytest.fixture
def training(figure_of):
    return figure_of(training_plot.plot_training, LOSSES, VALIDATIONS)


def test_a_trainings_picture_has_two_parts(training):
    top, bottom = training.axes
    assert training.get_size_inches().tolist() == [9.0, 7.0]
    assert (top.get_xlabel(), top.get_ylabel()) == ("step", "cross-entropy")
    assert (bottom.get_xlabel(), bottom.get_ylabel()) == (
        "timestep: noise grows to the right",
        "held-out accuracy",
    )
    assert top.get_ylim()[0] == 0 and top.get_ylim()[1] > 59
    assert bottom.get_ylim() == (0, 1.03)
    assert [grid_alpha(ax) for ax in training.axes] == [0.3, 0.3]


def test_losses_of_a_training(training):
    each, smooth, held_out = training.axes[0].lines
    assert legend(training.axes[0]) == ["each step", "mean of about 50", "held out"]
    assert each.get_xdata().tolist() == smooth.get_xdata().tolist() == list(range(1, 61))
    assert each.get_ydata().tolist() == list(LOSSES)
    assert (each.get_color(), each.get_alpha(), each.get_linewidth()) == ("tab:blue", 0.3, 1)
    assert (smooth.get_color(), smooth.get_alpha(), smooth.get_linewidth()) == ("tab:blue", None, 2)
    assert list(held_out.get_xdata()) == [5, 10, 20, 30, 40, 50]
    assert list(held_out.get_ydata()) == [0.5, 1, 2, 3, 4, 5]
    assert (held_out.get_color(), held_out.get_marker()) == ("tab:red", "o")
    assert held_out.get_linestyle() == "-"


def test_the_smooth_loss_is_the_mean_of_the_last_50(training):
    smooth = training.axes[0].lines[1].get_ydata()
    assert smooth[0] == 0 and smooth[1] == 0.5 and smooth[2] == 1
    assert smooth[49] == pytest.approx(24.5)  # of 0 to 49
    assert smooth[50] == pytest.approx(25.5)  # of 1 to 50
    assert smooth[59] == pytest.approx(34.5)


def test_accuracies_of_the_last_five_validations_the_newest_strongest(training):
    lines = training.axes[1].lines
    assert legend(training.axes[1]) == [f"after step {step}" for step in (10, 20, 30, 40, 50)]
    assert [line.get_alpha() for line in lines] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for line, step in zip(lines, (10, 20, 30, 40, 50), strict=True):
        assert list(line.get_xdata()) == [0, 500]
        assert list(line.get_ydata()) == [0.9, 0.5 + step / 100]
        assert (line.get_color(), line.get_marker(), line.get_linestyle()) == (
            "tab:green",
            "o",
            "-",
        )


def test_a_training_before_its_first_validation(figure_of):
    top, bottom = figure_of(training_plot.plot_training, [2.0, 1.0], []).axes
    assert legend(top) == ["each step", "mean of about 50"]
    assert not bottom.lines and legend(bottom) is None
    assert bottom.get_ylabel() == "held-out accuracy"


def test_a_trainings_picture_in_pixels():
    pixels = training_plot.plot_training([1.0], VALIDATIONS[:1])
    assert (pixels.shape, pixels.dtype) == ((700, 900, 3), np.uint8)


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


def test_compared_rows_are_drawn_twice(figure_of):
    """Accuracy over the Frechet distance, and precision over recall."""
    figure = figure_of(report_plot.plot_rows, ROWS)
    left, right = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == (
        "Frechet distance to the real images",
        "judge accuracy",
    )
    assert (right.get_xlabel(), right.get_ylabel()) == ("recall", "precision")
    assert [points(line) for line in left.lines] == [
        [(1.0, 0.1)],
        [(1.0, 0.1), (3.0, 0.3), (5.0, 0.5)],
        [(1.0, 0.1), (4.0, 0.4)],
    ]
    assert points(right.lines[1]) == [(0.3, 0.2), (0.5, 0.4), (0.7, 0.6)]
    assert figure.get_size_inches().tolist() == pytest.approx([12.0, 5.5 + 3 * 0.12])
    assert [grid_alpha(ax) for ax in figure.axes] == [0.3, 0.3]
    assert [ax.margins() for ax in figure.axes] == [(0.08, 0.08)] * 2


def test_rows_without_real_images_are_drawn_once(figure_of):
    rows = [row("none", "none", 0.0, 0.1, 3.0, False), row("CFG", "CFG", 2.0, 0.4, 1.0, False)]
    figure = figure_of(report_plot.plot_rows, rows)
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("diversity", "judge accuracy")
    assert points(ax.lines[1]) == [(3.0, 0.1), (1.0, 0.4)]
    assert figure.get_size_inches().tolist() == pytest.approx([7.5, 5.5 + 2 * 0.12])
    assert figure.legends[0]._ncols == 1


def test_one_row_without_a_distance_leaves_no_comparison(figure_of):
    rows = [NONE, row("CFG", "CFG", 2.0, 0.4, 1.0, compared=False)]
    (ax,) = figure_of(report_plot.plot_rows, rows).axes
    assert ax.get_xlabel() == "diversity"


def test_each_guidance_has_its_look(figure_of):
    none, classifier, cfg = figure_of(report_plot.plot_rows, ROWS).axes[0].lines
    assert (none.get_color(), none.get_linestyle(), none.get_zorder()) == ("black", "None", 3)
    for line, colour in ((classifier, "tab:orange"), (cfg, "tab:blue")):
        assert line.get_color() == colour
        assert (line.get_linestyle(), line.get_linewidth()) == ("-", 1.2)
    assert {line.get_marker() for line in (none, classifier, cfg)} == {"o"}


def test_a_legend_for_both_parts_below_them(figure_of):
    figure = figure_of(report_plot.plot_rows, ROWS)
    (found,) = figure.legends
    told = [text.get_text() for text in found.get_texts()]
    assert told == [" no guidance", " classifier", " CFG"]
    assert found._ncols == 2 and found.prop.get_size() == 9
    assert found._outside_loc == "lower" and found._loc == 8  # below, in the centre
    assert all(ax.get_legend() is None for ax in figure.axes)


def test_scales_stand_beside_their_points(figure_of):
    figure = figure_of(report_plot.plot_rows, ROWS)
    for ax in figure.axes:
        assert [text.get_text() for text in ax.texts] == ["0", "1.5", "10", "2"]
        assert [text.get_color() for text in ax.texts] == [
            *("black", "tab:orange", "tab:orange", "tab:blue")
        ]
        assert [text.xyann for text in ax.texts] == [(-11, 5), (5, -12), (5, -12), (5, 5)]
        for text in ax.texts:
            assert (text.get_fontsize(), text.get_zorder()) == (9, 4)
            assert text.anncoords == "offset points"
            (effect,) = text.get_path_effects()
            assert effect._gc == {"linewidth": 2, "foreground": "white"}
    assert [text.xy for text in figure.axes[0].texts] == [
        pytest.approx(place) for place in ((1.0, 0.1), (3.0, 0.3), (5.0, 0.5), (4.0, 0.4))
    ]


def test_schedules_and_files_are_single_points(figure_of):
    """Each with a mark of its own; a file also with a colour of its own."""
    rows = [
        NONE,
        row("CFG", "CFG, interval", None, 0.6),
        row("file", "a.npz", None, 0.7),
        row("file", "b.npz", None, 0.8),
    ]
    ax = figure_of(report_plot.plot_rows, rows).axes[0]
    _, schedule, first, second = ax.lines
    assert [points(line) for line in (schedule, first, second)] == [
        [(6.0, 0.6)],
        [(7.0, 0.7)],
        [(8.0, 0.8)],
    ]
    assert [line.get_marker() for line in (schedule, first, second)] == ["s", "P", "*"]
    assert [line.get_color() for line in (schedule, first, second)] == [
        *("tab:blue", "tab:gray", "tab:green")
    ]
    for line in (schedule, first, second):
        assert (line.get_markersize(), line.get_linestyle(), line.get_alpha()) == (9, "None", 0.8)
    assert [text.get_text() for text in ax.texts] == ["0"], "a single point has no scale"


def test_marks_and_colours_of_many_files(figure_of):
    rows = [row("file", f"{index}.npz", None, index / 20) for index in range(13)]
    lines = figure_of(report_plot.plot_rows, rows).axes[0].lines
    assert "".join(line.get_marker() for line in lines) == "sP*X^vD<>dphs"
    colours = ["gray", "green", "red", "purple", "brown", "olive", "cyan"]
    assert [line.get_color() for line in lines] == [
        f"tab:{colour}" for colour in [*colours, *colours[:6]]
    ]


def test_a_scale_and_a_schedule_of_one_name_are_one_line_each(figure_of):
    """Two kinds of one name are two lines, and take one line of the legend's height."""
    rows = [row("classifier", "same", 1.0, 0.3), row("CFG", "same", 1.0, 0.5)]
    figure = figure_of(report_plot.plot_rows, rows)
    assert [points(line) for line in figure.axes[0].lines] == [[(3.0, 0.3)], [(5.0, 0.5)]]
    assert figure.get_size_inches()[1] == pytest.approx(5.62)


def name_in_legend(figure_of, name):
    figure = figure_of(report_plot.plot_rows, [row("file", name, None, 0.5)])
    return figure.legends[0].get_texts()[0].get_text()


def test_names_in_the_legend(figure_of):
    """A name that starts with _ would be left out, and $ would begin a formula."""
    assert name_in_legend(figure_of, "_a$b$.npz") == r" _a\$b\$.npz"
    assert name_in_legend(figure_of, "x" * 70) == " " + "x" * 70
    assert name_in_legend(figure_of, "x" * 71) == " " + "x" * 67 + "..."
