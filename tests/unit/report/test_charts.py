"""Charts draw every figure once, at its place, and nothing that is not there."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.report import charts
from peftkit.report.charts import Chart, Drawing, Line


def drawn(*lines: Line) -> Drawing:
    drawing = charts.draw(Chart("loss", "Loss by step", "It fell.", lines))
    assert drawing is not None
    return drawing


def line(*values: float | None, **more: object) -> Line:
    return Line("Training", tuple(range(1, len(values) + 1)), values, **more)  # type: ignore[arg-type]


def linear(drawing: Drawing) -> str:
    return dict(drawing.scales)["linear"]


def test_nothing_to_draw_is_no_chart() -> None:
    assert charts.draw(Chart("loss", "Loss", "", ())) is None
    assert charts.draw(Chart("loss", "Loss", "", (line(None, None),))) is None


def test_each_point_has_a_mark_and_each_interval_a_whisker() -> None:
    points = line(3.0, 2.0, 1.0, look="points", intervals=((2.9, 3.1), None, (0.9, 1.1)))
    svg = linear(drawn(points))
    assert svg.count('class="mark') == 3
    assert svg.count('class="whisker') == 2


def test_a_missing_figure_breaks_the_line() -> None:
    (path,) = re.findall(r' d="([^"]*)"', linear(drawn(line(3.0, 2.0, None, 1.0))))
    assert path.count("M") == 2
    assert path.count("L") == 1


def test_the_lowest_and_highest_stand_at_their_heights() -> None:
    drawing = drawn(line(1.0, 3.0))
    (series,) = drawing.cursor["series"]  # type: ignore[misc]
    low, high = series["heights"]["linear"]
    assert 0 < low < high < 1
    assert low / high == pytest.approx(1 / 3, abs=1e-3)  # the axis starts at zero


def test_equal_steps_up_in_ratio_are_equal_on_the_log_scale() -> None:
    drawing = drawn(line(1.0, 10.0, 100.0))
    (series,) = drawing.cursor["series"]  # type: ignore[misc]
    low, middle, high = series["heights"]["log"]
    assert middle - low == pytest.approx(high - middle, abs=2e-4)


@pytest.mark.parametrize("values", [(0.0, 1.0), (-1.0, 2.0)])
def test_what_is_not_positive_has_no_log_scale(values: tuple[float, ...]) -> None:
    assert [scale for scale, _ in drawn(line(*values)).scales] == ["linear"]


@pytest.mark.parametrize("values", [(2.0,), (2.0, 2.0), (0.0, 0.0), (-3.0,), (1e-90, 1e90)])
def test_odd_ranges_are_drawn_inside_the_plot(values: tuple[float, ...]) -> None:
    for _, svg in drawn(line(*values)).scales:
        for path in re.findall(r' d="([^"]*)"', svg):
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
            assert numbers
            assert all(0 <= number <= 1000 for number in numbers)


def test_ten_thousand_steps_stay_small() -> None:
    values = tuple(2 + math.sin(step) for step in range(10_000))
    drawing = drawn(line(*values))
    (path,) = re.findall(r' d="([^"]*)"', linear(drawing))
    assert path.count("L") < 800
    assert len(drawing.cursor["steps"]) <= 1600  # type: ignore[arg-type]


def test_thousands_of_points_are_thinned_too() -> None:
    values = tuple(2 + math.sin(step) for step in range(5_000))
    assert linear(drawn(line(*values, look="points"))).count('class="mark') <= 200


def test_names_cannot_break_out() -> None:
    chart = Chart("loss", '"><script>', "<b>", (line(1.0, 2.0),))
    drawing = charts.draw(chart)
    assert drawing is not None
    assert "<script>" not in linear(drawing)
    assert "<b>" not in linear(drawing)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 12))
def test_ticks_are_few_round_and_inside(low: float, span: float, most: int) -> None:
    high = low + span
    found = charts.ticks(low, high, most)
    assert len(found) <= most + 2
    room = 1e-6 * (high - low) + 1e-15 * abs(low)
    assert all(low - room <= tick <= high + room for tick in found)


@given(st.floats(-90, 90), st.floats(0.01, 9))
def test_log_ticks_are_few_and_inside(power: float, span: float) -> None:
    low, high = 10.0**power, 10.0 ** (power + span)
    found = charts.log_ticks(low, high, 6)
    assert len(found) <= 8
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in found)


def test_a_strip_shows_the_change_beside_no_change() -> None:
    svg = charts.strip(0.1, 0.2, 0.3)
    places = [float(place) for place in re.findall(r'x[12]?="([\d.]+)%"', svg)]
    assert all(0 <= place <= 100 for place in places)
    assert 'class="zero"' in svg


def test_bars_share_their_ends() -> None:
    ends = charts.bar_ends([4.0, 1.0])
    whole, quarter = (charts.bar(value, None, ends, ours=True) for value in (4.0, 1.0))
    assert 'width="100.00%"' in whole
    assert 'width="25.00%"' in quarter
