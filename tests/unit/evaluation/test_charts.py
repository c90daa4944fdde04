import xml.etree.ElementTree as ElementTree

import pytest

from regimen.evaluation.charts import IntervalRow, interval_plot, line_chart, nice_ticks
from regimen.evaluation.records import Curve, Series


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.3, 0.62, [0.3, 0.4, 0.5, 0.6, 0.7]),
        (-3, 4, [-4, -2, 0, 2, 4]),
        (2, 2, [1, 1.5, 2, 2.5, 3]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low, high, expected):
    found = nice_ticks(low, high)
    assert found == pytest.approx(expected)


def numbers_of(svg, tag, name):
    return [float(element.get(name)) for element in ElementTree.fromstring(str(svg)).iter(tag)]


def test_a_line_stands_where_its_numbers_say():
    curve = Curve(title="loss", series=[Series(name="train", points=[(0.0, 1.0), (10.0, 0.0)])])
    line = ElementTree.fromstring(str(line_chart(curve))).find("polyline")
    # Plot from x 52 to 448 and from y 206 (0) to 10 (1).
    assert line.get("points") == "52.0,10.0 448.0,206.0"


def test_a_single_point_is_a_dot_and_equal_values_are_drawn():
    dot = line_chart(Curve(title="loss", series=[Series(name="train", points=[(3.0, 2.0)])]))
    assert len(numbers_of(dot, "circle", "cx")) == 1
    flat = line_chart(Curve(title="loss", series=[Series(name="train", points=[(1.0, 0.0), (2.0, 0.0)])]))
    ElementTree.fromstring(str(flat))


def test_steps_are_whole_numbers():
    svg = line_chart(Curve(title="loss", series=[Series(name="train", points=[(1.0, 10.0), (2.0, 20.0)])]))
    labels = [element.text for element in ElementTree.fromstring(str(svg)).iter("text")]
    assert labels == ["10", "12", "14", "16", "18", "20", "1", "2", "step"]


def test_intervals_are_drawn_on_a_unit_axis_and_labels_are_escaped():
    rows = [IntervalRow("<b>", 0.5, 0.25, 1.0), IntervalRow("none", 0.0, None, None)]
    svg = interval_plot(rows, is_unit=True, title="a & b")
    left = 20 + 7 * 4
    assert numbers_of(svg, "circle", "cx") == pytest.approx([(left + 448) / 2, left], abs=0.1)
    assert len(list(ElementTree.fromstring(str(svg)).iter("path"))) == 1
    assert "<b>" not in svg
    assert "a &amp; b" in svg
