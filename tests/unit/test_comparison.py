"""One picture of several runs: where the images are, and what is said of counts that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from guidance.core.comparison import EDGE, GAP, comparison

SIZE = 20


def batch(*values, height=10, width=20):
    """Images of one gray each."""
    return np.stack([np.full((height, width, 3), value, np.uint8) for value in values])


def test_each_run_is_a_column_and_each_image_a_row():
    sheet = comparison([batch(10, 20), batch(30, 40), batch(50)], [], [], SIZE)
    assert sheet.shape == (2 * EDGE + 20 + GAP, 2 * EDGE + 60 + 2 * GAP, 3)
    for column, values in enumerate([(10, 20), (30, 40), (50,)]):
        for row, value in enumerate(values):
            y, x = EDGE + row * (10 + GAP), EDGE + column * (20 + GAP)
            assert (sheet[y : y + 10, x : x + 20] == value).all()


def test_titles_are_at_the_edges():
    plain = comparison([batch(0), batch(0)], [], [], 100)
    titled = comparison([batch(0), batch(0)], ["scale 1", "$2$"], ["seven"], 100)
    top, left = (titled.shape[k] - plain.shape[k] for k in (0, 1))
    assert top > 20 and left > 20
    assert titled[:top, left:].max() > 200 and titled[top:, :left].max() > 200  # ink
    assert (titled[top + EDGE : -EDGE, left + EDGE : -EDGE] == plain[EDGE:-EDGE, EDGE:-EDGE]).all()


@pytest.mark.parametrize(
    "titles, rows, size, said",
    [
        (["a"], [], SIZE, "titles has 1 lines for 2 runs"),
        ([], ["a", "b"], SIZE, "rows has 2 lines for 1 images"),
        ([], [], 20000, "size is 20000"),
    ],
)
def test_what_does_not_fit_is_said(titles, rows, size, said):
    with pytest.raises(ValueError, match=said):
        comparison([batch(0), batch(0)], titles, rows, size)
