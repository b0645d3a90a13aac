"""The interpolation "smooth": SciPy's PCHIP, within the range of its points."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from guidance.schedules.curves import Points
from guidance.schedules.monotone import monotone_slopes
from guidance.schedules.run_position import RunPosition

# positions and scales as people draw them
drawn = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(-300, 300)),
    min_size=3,
    max_size=9,
    unique_by=lambda point: point[0],
).map(lambda points: tuple((x / 1000, y / 10) for x, y in sorted(points)))


def scale_at(curve, position):
    """The scale there; the other axes say nothing."""
    places = {"percent": 0.0, "sigma": 0.0} | {curve.axis: position}
    return curve.at(RunPosition(step=0.0, steps=20, **places))


@settings(suppress_health_check=[HealthCheck.too_slow])  # SciPy, on a busy machine
@given(drawn, st.floats(0, 1))
def test_it_is_scipys_and_never_overshoots(points, share):
    curve = Points("percent", points, "smooth")
    for (low, a), (high, b) in zip(points, points[1:], strict=False):
        position = low + share * (high - low)
        found = scale_at(curve, position)
        expected = PchipInterpolator(*zip(*points, strict=True))(position)
        assert found == pytest.approx(float(expected), abs=1e-9)
        assert min(a, b) <= found <= max(a, b)
    assert [scale_at(curve, x) for x, _ in points] == [y for _, y in points]


def test_between_two_equal_scales_it_is_exactly_that_scale():
    """CFG of exactly 1 skips a pass of the model."""
    curve = Points("percent", ((0.0, 7.0), (0.3, 1.0), (0.9, 1.0), (1.0, 4.0)), "smooth")
    assert {scale_at(curve, 0.3 + index * 0.6 / 97) for index in range(98)} == {1.0}


def test_two_points_one_point_and_the_axis_of_sigma():
    assert scale_at(Points("percent", ((0.2, 1.0), (0.8, 4.0)), "smooth"), 0.4) == pytest.approx(2)
    assert scale_at(Points("percent", ((0.2, 3.0),), "smooth"), 0.5) == 3
    falling = ((10.0, 1.0), (4.0, 5.0), (1.0, 2.0))
    expected = PchipInterpolator(*zip(*reversed(falling), strict=True))
    found = [scale_at(Points("sigma", falling, "smooth"), sigma) for sigma in (8.0, 5.0, 2.0)]
    assert found == pytest.approx([float(expected(sigma)) for sigma in (8.0, 5.0, 2.0)])


def test_slopes_near_the_largest_number_are_finite():
    """What cannot be computed is flat, not an error."""
    for scales in ((0.0, 1e308, -1e308, 1e-320, 2e-320), (-1.7e308, 0.0, 1.7e308, 1.7e308, 0.0)):
        slopes = monotone_slopes([0.0, 1e-9, 2e-9, 0.5, 1.0], scales)
        assert len(slopes) == 5 and all(map(math.isfinite, slopes))
