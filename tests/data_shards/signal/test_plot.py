"""The drawing is true to scale, shows every lead, the report and the flags, and leaves no global state behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.signal.plot import LeadWeight, draw_ecg
from tests.support.wfdb_files import ecg_counts


def record_of(samples: int = 5000, **fields) -> EcgRecord:
    return EcgRecord("ptbxl-1", ecg_counts(samples), np.full(12, 200.0, dtype=np.float32), 500.0, **fields)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in (*figure.texts, *figure.axes[0].texts)]


def curves(figure: Figure, least: int = 500) -> list[np.ndarray]:
    return [line.get_xydata() for line in figure.axes[0].lines if len(line.get_xydata()) >= least]


def test_a_png_is_written_and_its_path_returned(tmp_path):
    path = draw_ecg(record_of(), tmp_path / "a.png")
    pixels = image.imread(path)
    assert path == tmp_path / "a.png"
    assert pixels.shape[1] > 1000
    assert pixels[..., :3].std() > 0.02


def test_millimetres_on_paper_are_25_per_second_and_10_per_millivolt():
    figure = draw_ecg(record_of())
    axes = figure.axes[0]
    width, height = figure.get_size_inches() * 25.4 * np.array([axes.get_position().width, axes.get_position().height])
    assert np.ptp(axes.get_xlim()) == pytest.approx(width)
    assert np.ptp(axes.get_ylim()) == pytest.approx(height)
    strip = curves(figure, 5000)[0]
    assert strip[-1, 0] - strip[0, 0] == pytest.approx(25 * (10 - 1 / 500))
    assert np.ptp(strip[:, 1]) == pytest.approx(10 * np.ptp(ecg_counts(5000)[1]) / 200, rel=1e-5)


@pytest.mark.parametrize("ending", ["svg", "SVG", "pdf", "png"])
def test_a_picture_is_what_its_ending_says_and_equal_pictures_are_equal_files(tmp_path: Path, ending: str) -> None:
    first, again = (draw_ecg(record_of(), tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
    start = {"svg": b"<?xml", "pdf": b"%PDF-", "png": b"\x89PNG"}[ending.lower()]
    assert first == again and first.startswith(start) and (b"<svg" in first) is (start == b"<?xml")


def test_another_ending_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.jpg ends in \.jpg"):
        draw_ecg(record_of(), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_rows_stand_at_one_distance_whatever_their_waves() -> None:
    """The lower ends of the four calibration pulses; a tall V2 would move its row alone."""
    tall = record_of()
    tall.counts[7, 100:130] = 600
    bases = [line.get_ydata()[0] for line in draw_ecg(tall).axes[0].lines if len(line.get_xdata()) == 6]
    assert len(bases) == 4 and len(set(np.diff(bases).round(6))) == 1
    assert {base % 5 for base in bases} == {0}, "on the grid"


def test_what_was_measured_is_named_as_such() -> None:
    shown = texts(draw_ecg(record_of()))
    assert any(text.startswith("rate ") for text in shown) and "Measured by software" in shown
    assert any("not for diagnosis" in text for text in shown)
    silent = EcgRecord("r", np.zeros((12, 5000), dtype=np.int16), np.full(12, 200.0, dtype=np.float32), 500.0)
    assert "Measured by software" not in texts(draw_ecg(silent))


def test_all_twelve_leads_and_the_rhythm_strip_are_named_and_drawn():
    figure = draw_ecg(record_of())
    assert sorted(name for name in texts(figure) if name in STANDARD_LEADS) == sorted([*STANDARD_LEADS, "II"])
    assert [len(curve) for curve in curves(figure)].count(1250) == 12
    assert [len(curve) for curve in curves(figure)].count(5000) == 1


def test_report_patient_labels_and_flags_stand_beside_it():
    record = record_of(
        statements=("Sinus rhythm", "Costs $5 and $6"),
        labels={"super": ("NORM",)},
        quality={"clipped": ("V1",)},
        age_years=0.019,
        sex="female",
    )
    words = "\n".join(texts(draw_ecg(record)))
    for expected in (
        "ptbxl-1",
        "Sinus rhythm",
        "Costs $5 and $6",
        "super: NORM",
        "clipped: V1",
        "7 days, female",
        "25 mm/s",
        "10 mm/mV",
    ):
        assert expected in words


def test_masked_leads_are_grey_and_say_why():
    mask = np.ones(12, dtype=bool)
    mask[[7, 8, 9]] = False
    figure = draw_ecg(record_of(lead_mask=mask, quality={"missing-lead": ("V2",), "flat": ("V3",)}))
    assert {"V2  (not recorded)", "V3  (flat)", "V4  (masked)"} <= set(texts(figure))
    black = [line for line in figure.axes[0].lines if len(line.get_xydata()) >= 500 and line.get_color() == "#1a1a1a"]
    assert len(black) == 9 + 1


@pytest.mark.parametrize("samples", [0, 1, 700, 1205, 30000])
def test_records_of_any_length_can_be_drawn(samples):
    record = record_of(samples)
    figure = draw_ecg(record)
    assert max((len(curve) for curve in curves(figure, 1)), default=0) >= min(samples, 5000)


def test_a_long_report_is_shortened_with_a_count():
    words = "\n".join(texts(draw_ecg(record_of(statements=tuple(f"Statement {k}" for k in range(30))))))
    assert "more lines" in words
    assert "Statement 29" not in words


def test_drawing_leaves_no_figure_open():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    draw_ecg(record_of())
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("where", ["missing/a.png", "file/a.png", "."])
def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write") as caught:
        draw_ecg(record_of(), tmp_path / where)
    assert str(tmp_path / where) in caught.value.problem and "folder exists" in caught.value.remedy


@pytest.mark.parametrize("dpi", [0, -1, float("nan"), float("inf"), "130", None, 10_000])
def test_a_resolution_that_is_none_is_named(dpi):
    with pytest.raises(UsageError, match="dpi is"):
        draw_ecg(record_of(), dpi=dpi)


def test_what_is_marked_stands_on_a_coloured_ground_at_its_place() -> None:
    """Lead II from 1 s to 2 s: on paper 25 to 50 mm from its start, in its own strip and on the rhythm strip."""
    marked = np.zeros((12, 5000), dtype=bool)
    marked[1, 500:1000] = True
    plain, figure = draw_ecg(record_of()), draw_ecg(record_of(), marked=marked)
    boxes = [[each for each in f.axes[0].patches if each.get_width() < 30] for f in (plain, figure)]
    assert [len(each) for each in boxes] == [0, 2]
    assert [(box.get_x(), box.get_width()) for box in boxes[1]] == [pytest.approx((15 + 25, 25))] * 2


def test_the_weight_of_a_lead_group_is_the_ground_of_its_leads_and_stands_beside_their_names():
    weights = {"V1": LeadWeight("septal", 0.75), "V2": LeadWeight("septal", 0.75), "II": LeadWeight("inferior", 0.25)}
    plain, figure = draw_ecg(record_of()), draw_ecg(record_of(), weights=weights)
    assert {"V1   septal 0.75", "V2   septal 0.75", "II   inferior 0.25", "aVR"} <= set(texts(figure))
    assert texts(figure).count("II") == 1, "the rhythm strip repeats a lead, and is not weighed twice"
    assert len(figure.axes[0].patches) - len(plain.axes[0].patches) == 3
    grounds = sorted(patch.get_facecolor()[3] for patch in figure.axes[0].patches[-3:])
    assert grounds[2] == pytest.approx(3 * grounds[0]) and grounds[1] == grounds[2]
    assert any("not why" in text for text in texts(figure)) and not any("not why" in text for text in texts(plain))


def test_all_that_stands_below_the_picture_stands_on_the_paper():
    """Even at its longest: another rate of recording, and what the ground means."""
    record = record_of(extra={"original_sampling_rate": 257.5})
    figure = draw_ecg(record, weights={"V1": LeadWeight("septal", 0.75)})
    assert any("recorded at 257.5 Hz" in text for text in texts(figure))
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in figure.texts]
    paper = figure.bbox
    assert all(paper.x0 <= box.x0 and box.x1 <= paper.x1 and paper.y0 <= box.y0 and box.y1 <= paper.y1 for box in boxes)
    low = sorted(boxes, key=lambda box: box.y0)[:2]
    assert low[0].y1 <= low[1].y0, "two lines, not one over the other"


def test_the_name_and_weight_of_a_masked_lead_keep_out_of_its_neighbour():
    record = record_of(quality={"missing-lead": ("V1",)}, lead_mask=np.array([lead != "V1" for lead in STANDARD_LEADS]))
    figure = draw_ecg(record, weights={"V1": LeadWeight("septal", 0.0)})
    renderer = figure.canvas.get_renderer()
    box = {text.get_text(): text.get_window_extent(renderer) for text in figure.axes[0].texts}
    assert box["V1  (not recorded)   septal 0.00"].x1 < box["V4"].x0
