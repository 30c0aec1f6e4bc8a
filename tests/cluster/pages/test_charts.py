"""Charts are well-formed, to scale and legible, and text in them stays text."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

from cardialign.cluster.pages.charts import (
    CHARACTER,
    LONGEST_LABEL,
    IntervalScale,
    column_chart,
    frequency_bars,
    histogram,
    line_chart,
    nice_ticks,
    smoothed,
    tick_labels,
    weight_bars,
)


def points(svg):
    return [tuple(map(float, p.split(","))) for p in re.search(r'class="curve" points="([^"]*)"', svg).group(1).split()]


def test_a_falling_loss_falls_on_the_chart_and_stays_inside_it():
    drawn = points(line_chart([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0], title="loss"))
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)  # SVG's y grows downwards
    assert all(0 <= x <= 460 and 0 <= y <= 210 for x, y in drawn)


@pytest.mark.parametrize(
    "values", [[1.0], [2.0, 2.0], [float("nan"), 1.0, 2.0], [float("nan")], [1e-9, 2e-9], [1e9, 2e9]]
)
def test_odd_traces_still_give_well_formed_charts(values):
    svg = line_chart(range(len(values)), values, title="a & b < c")
    if svg:
        ElementTree.fromstring(svg)
        assert "nan" not in svg


def test_ticks_are_round_and_inside():
    assert nice_ticks(0.0, 1.0, 6) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(1.3, 6.4, 5) == pytest.approx([2, 4, 6])


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0, 0.2, 0.4, 1.0], ["0", "0.2", "0.4", "1.0"]),
        ([0, 0.025, 0.05], ["0", "0.025", "0.050"]),
        ([0.0995, 0.1, 0.1005], ["0.0995", "0.1000", "0.1005"]),
        ([0, 5e-4, 1e-3], ["0", "5e-4", "1e-3"]),
        ([0, 100, 200], ["0", "100", "200"]),
        ([0, 12500, 25000], ["0", "12.5k", "25k"]),
        ([2.0], ["2"]),
        ([], []),
    ],
)
def test_tick_labels_share_one_notation_and_tell_neighbours_apart(ticks, labels):
    assert tick_labels(ticks) == labels


def test_smoothing_keeps_a_straight_line_straight_in_its_middle():
    out = smoothed([float(k) for k in range(100)])
    assert out[10:90] == pytest.approx(list(range(10, 90)))


def test_all_rows_share_one_scale_that_holds_every_interval():
    scale = IntervalScale([0.33, 0.99, 0.27])
    row = ElementTree.fromstring(scale.row((0.99, 0.97, 1.0), (0.33, 0.27, 0.4)))
    assert scale.low == pytest.approx(0.2)
    dots = {c.get("class"): float(c.get("cx")) for c in row.iter("circle")}
    assert 0 < dots["untrained"] < scale.x(0.5) < dots["trained"] < 300


def test_weight_bars_are_as_long_as_the_weights_say():
    bars = ElementTree.fromstring(weight_bars({"lateral": 0.5, "septal": 0.25}))
    lengths = [float(r.get("width")) for r in bars.iter("rect") if r.get("class") == "bar"]
    assert lengths[0] == pytest.approx(2 * lengths[1])


@pytest.mark.parametrize("name", ["limb", "inferolateral and posterior", "W" * 100])
def test_names_of_weights_have_room_and_long_ones_are_cut(name: str) -> None:
    figure = ElementTree.fromstring(weight_bars({name: 0.5}))
    label = next(each for each in figure.iter("text") if each.attrib["text-anchor"] == "end")
    shown = (label.text or "").strip()
    assert float(label.attrib["x"]) >= CHARACTER * len(shown) and len(shown) <= LONGEST_LABEL
    assert shown == name if len(name) <= LONGEST_LABEL else shown.endswith("W…")
    right = max(float(bar.attrib["x"]) + float(bar.attrib["width"]) for bar in figure.iter("rect"))
    assert right + 40 <= float(figure.attrib["width"]), "the figure fits at the end of its bar"


@pytest.mark.parametrize("edges", [[9.5, 10.0, 10.5, 11.0], [0, 5, 10], [0, 10_000, 20_000]])
def test_no_label_of_an_axis_is_cut_off_at_the_edge(edges: list[float]) -> None:
    figure = ElementTree.fromstring(histogram(edges, [1] * (len(edges) - 1), title="x", axis="seconds"))
    width = float(next(iter(figure.iter("svg"))).attrib["viewBox"].split()[2])
    for each in figure.iter("text"):
        label, x = (each.text or "").strip(), float(each.attrib["x"])
        half = {"middle": 0.5, "end": 0.0}[each.attrib["text-anchor"]]
        assert x + half * 7.2 * len(label) <= width + 0.1, label


LONG_NAME = "Consider left ventricular hypertrophy by voltage criteria, or a normal variant of the young"


@pytest.mark.parametrize(
    "name",
    [
        "MI",
        "Acute anterior myocardial infarction",
        "Nonspecific ST and T wave abnormality",
        LONG_NAME[:70],
        LONG_NAME * 3,
    ],
)
def test_no_name_of_a_bar_is_cropped_and_none_lies_over_another_or_over_a_bar(name: str) -> None:
    figure = ElementTree.fromstring(frequency_bars({name: 7, "NORM": 3, name.upper() + " 2": 1}, 10, title="x"))
    svg = next(iter(figure.iter("svg")))
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    rows = list(figure.iter("g"))
    for row, whole in zip(rows, (name, "NORM", name.upper() + " 2"), strict=True):
        labels = [each for each in row.iter("text") if each.attrib["class"] == "bar-label"]
        assert " ".join((each.text or "").strip() for each in labels) == whole
        bar = next(iter(row.iter("rect")))
        for each in labels:
            room = CHARACTER * sum(1.2 if letter.isupper() else 1.0 for letter in (each.text or "").strip())
            end = each.attrib["text-anchor"] == "end"
            left = float(each.attrib["x"]) - (room if end else 0)
            assert left >= 0 and left + room <= (float(bar.attrib["x"]) if end else width)
            assert end or float(each.attrib["y"]) < float(bar.attrib["y"]), "a name above its bar"
    heights = [float(each.attrib["y"]) for row in rows for each in row.iter("text") if each.get("class") == "bar-label"]
    assert all(after - before >= 15 for before, after in itertools.pairwise(heights)), "lines stand apart"
    assert max(heights) < height and all(
        float(bar.attrib["y"]) + float(bar.attrib["height"]) <= height for bar in figure.iter("rect")
    )


def heights(svg: str) -> list[float]:
    figure = ElementTree.fromstring(svg)
    return [float(bar.attrib["height"]) for bar in figure.iter("rect")]


def test_columns_are_as_high_as_their_counts() -> None:
    first, second, empty = heights(histogram([0, 5, 10, 15], [10, 20, 0], title="Age"))
    assert second == pytest.approx(2 * first, rel=0.01) and empty == 0
    first, second = heights(column_chart({"female": 30, "male": 10}, title="Sex"))
    assert first == pytest.approx(3 * second, rel=0.01)
    widths = [
        float(bar.attrib["width"])
        for bar in ElementTree.fromstring(frequency_bars({"NORM": 40, "MI": 10}, 50, title="x")).iter("rect")
    ]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    assert (
        histogram([], [], title="none") == column_chart({}, title="none") == frequency_bars({}, 0, title="none") == ""
    )


@pytest.mark.parametrize(
    "svg",
    [
        lambda text: line_chart([1, 2], [1.0, 2.0], title=text, unit=text),
        lambda text: histogram([0, 1], [3], title=text, unit=text, axis=text),
        lambda text: column_chart({text: 3}, title=text, unit=text, axis=text),
        lambda text: frequency_bars({text: 3}, 3, title=text, unit=text),
        lambda text: weight_bars({text: 0.5}),
    ],
    ids=["line", "histogram", "columns", "frequencies", "weights"],
)
def test_hostile_text_in_a_drawing_stays_text_in_elements_and_attributes(svg):
    attack = """"><script>'&"""
    plain, attacked = (ElementTree.fromstring(svg(text)) for text in ("plain", attack))
    assert [each.tag for each in attacked.iter()] == [each.tag for each in plain.iter()]
    for before, after in zip(plain.iter(), attacked.iter(), strict=True):
        assert after.attrib.keys() == before.attrib.keys()
        assert after.attrib.get("aria-label", "") == before.attrib.get("aria-label", "").replace("plain", attack)
        assert (after.text or "").strip() == (before.text or "").strip().replace("plain", attack)
