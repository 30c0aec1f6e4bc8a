"""A surface by arithmetic: an encoder that reads one lead, masks that are nested, time that is missing in one piece."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.missingness.surface.hidden import among, drawn, leads_left, time_left
from cardialign.pretrain.evaluation.missingness.surface.measure import (
    SurfacePlan,
    check_evidence,
    check_leads,
    having_leads,
    score_surface,
)
from cardialign.pretrain.evaluation.missingness.surface.picture import draw_surface
from cardialign.pretrain.evaluation.missingness.surface.presets import presets_of
from cardialign.pretrain.evaluation.missingness.surface.result import (
    ALIKE,
    EVIDENCE,
    paired,
    paired_lines,
    surface_result,
)
from cardialign.pretrain.evaluation.missingness.surface.scorers import Ranked
from cardialign.pretrain.export.opening import open_encoder
from tests.support.outside_models import write_torchscript

V2 = STANDARD_LEADS.index("V2")
CODES = ("RBBB", "OIMI", "AFIB")
"""Evidence in V1 and V2; in II, III and aVF; in no lead of its own."""


def reads_v2(ages: np.ndarray, signal: np.ndarray, lead_mask: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The same score for every class: the root mean square of V2, 0 where it is missing."""
    power = np.square(signal[:, V2].astype(np.float64)).sum(axis=1) / valid
    return np.repeat(np.where(lead_mask[:, V2], np.sqrt(power), 0.0)[:, None], len(CODES), axis=1)


@pytest.fixture(scope="module")
def ranked(shards: ShardSet) -> Ranked:
    """Whoever has more in V2 has all classes: V2 alone ranks without a fault."""
    rows = np.arange(len(shards.patients))
    asked = Ranked("v2", CODES, rows, np.zeros((len(rows), 3), bool), shards.patients)
    scores = score_surface(reads_v2, shards, asked, SurfacePlan((0,), (0.0,), (), draws=1)).whole
    return Ranked("v2", CODES, rows, scores > np.median(scores, axis=0), shards.patients)


def by_pairs(scores: np.ndarray, truth: np.ndarray) -> float:
    """AUROC as it is defined: the share of pairs that are in order, ties one half."""
    difference = scores[truth][:, None] - scores[~truth][None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def test_an_encoder_of_v2_is_at_chance_without_v2_and_unchanged_with_it(shards: ShardSet, ranked: Ranked) -> None:
    plan = SurfacePlan((0, 2, 3, 11), (0.0,), presets_of(("leads-i-ii-v2", "leads-i-ii", "limb")), True, draws=2)
    scores = score_surface(reads_v2, shards, ranked, plan)
    found = surface_result([scores], ranked, plan, "by V2", resamples=20, seed=0)
    assert {each.name: each.auroc.value for each in found.presets} == {
        "leads-i-ii-v2": 1.0, "leads-i-ii": 0.5, "limb": 0.5,
    }  # fmt: skip
    assert found.presets[0].lost.value == found.presets[0].lost.low == found.presets[0].lost.high == 0
    assert found.presets[1].lost.value == 0.5
    # at random: as the masks say, by counting pairs
    whole = reads_v2(np.empty(0), *everything(shards))[:, 0]
    truth = ranked.truth[:, 0]
    random, alike, evidence = found.surfaces
    for number in (2, 3, 11):
        expected = []
        for draw in range(2):
            rank, _ = drawn(ranked.rows, 0, draw)
            expected.append(by_pairs(np.where(rank[:, V2] < number, 0.0, whole), truth))
        assert random.cells[number, 0.0].auroc.value == pytest.approx(np.mean(expected), abs=1e-12)
    # where the evidence goes first: RBBB loses V1 and V2 at once; OIMI keeps V2 while one of its own three is left
    assert (alike.chosen, evidence.chosen, evidence.codes) == (ALIKE, EVIDENCE, ("RBBB", "OIMI"))
    assert evidence.cells[2, 0.0].table.sample.point.tolist() == [0.5, 1.0]
    assert evidence.cells[3, 0.0].table.sample.point.tolist() == [0.5, 1.0]
    assert np.isnan(scores.evidence[..., 2]).all()  # type: ignore[index]


def everything(shards: ShardSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from cardialign.data_shards.stream.stream import iterate_rows

    parts = [
        (b.signal, b.lead_mask, b.valid_samples) for b in iterate_rows(shards, np.arange(len(shards.patients)), 64)
    ]
    signal, lead_mask, valid = (np.concatenate(each) for each in zip(*parts, strict=True))
    return signal, lead_mask, valid


def test_masks_have_their_number_are_nested_and_are_the_same_for_whoever_asks() -> None:
    rows = np.array([7, 3, 900])
    rank, place = drawn(rows, 5, 1)
    assert np.array_equal(drawn(rows[1:2], 5, 1)[0][0], rank[1]) and drawn(rows[1:2], 5, 1)[1][0] == place[1]
    assert not np.array_equal(drawn(rows, 5, 2)[0], rank) and not np.array_equal(drawn(rows, 6, 1)[0], rank)
    mask = np.ones((3, 12), bool)
    mask[1, [0, 4]] = False  # two that were never there count
    mask[2] = among(["aVR"])
    before = mask
    for number in range(12):
        left = leads_left(mask, rank, number)
        assert left.sum(axis=1).tolist() == [12 - number, 12 - max(number, 2), 1]
        assert (left <= before).all()
        before = left
    first = among(["II", "III", "aVF"])
    assert (leads_left(mask[:1], rank[:1], 3, first)[0] == ~first).all()
    assert leads_left(mask[:1], rank[:1], 2, first)[0, ~first].all()


def test_what_is_left_of_the_time_is_one_piece_of_its_length_and_lies_within_the_longer_one() -> None:
    signal = np.tile(np.arange(1.0, 101.0, dtype=np.float32), (2, 12, 1))
    signal[1, :, 60:] = 0
    valid = np.array([100, 60], dtype=np.int32)
    pieces = []
    for share, lengths in ((0.25, [75, 45]), (0.5, [50, 30]), (0.75, [25, 15])):
        left, kept = time_left(signal, valid, share, np.array([0.999, 0.4]))
        assert kept.tolist() == lengths
        for row, count in enumerate(lengths):
            assert (np.diff(left[row, 0, :count]) == 1).all() and not left[row, :, count:].any()
            assert left[row, 0, count - 1] <= valid[row]
        pieces.append([set(left[row, 0, :count].tolist()) for row, count in enumerate(lengths)])
    for longer, shorter in itertools.pairwise(pieces):
        assert all(shorter[row] < longer[row] for row in (0, 1))
    assert time_left(signal, valid, 0.0, np.zeros(2))[0] is signal


def test_two_encoders_meet_the_same_masks_and_their_difference_is_paired(
    shards: ShardSet, ranked: Ranked, tmp_path: Path
) -> None:
    plan = SurfacePlan((0, 6), (0.0, 0.5), presets_of(("lead-i",)), draws=1)
    scores = score_surface(reads_v2, shards, ranked, plan)
    again = score_surface(reads_v2, shards, ranked, plan)
    assert np.array_equal(scores.random, again.random)
    a, b = (surface_result([each], ranked, plan, "by V2", resamples=20, seed=0) for each in (scores, again))
    for each in paired(a, b):
        assert each["auroc"] == {"value": 0.0, "low": 0.0, "high": 0.0} and each["spared"] == 0
    told = "\n".join(a.lines())
    assert "0.500 -50.0" in told and "time missing 50 %" in told
    bare, other = (surface_result([each], ranked, plan, "by V2", resamples=0, seed=0) for each in (scores, again))
    said = "\n".join([*bare.lines(), *paired_lines(paired(bare, other))])
    assert "0.500 -50.0" in said and "(n/a)" in said and "nan" not in said, "no interval is not two of no number"
    drawn_bare, drawn_full = (
        draw_surface(each, tmp_path / f"{name}.svg").read_text() for name, each in (("bare", bare), ("full", a))
    )
    assert "0.500   -50.0" in drawn_bare and " to " not in drawn_bare and " to " in drawn_full
    drawn_at = draw_surface(a, tmp_path / "surface.png")
    pixels = image.imread(drawn_at)
    assert pixels.shape[1] > 900 and len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20
    with pytest.raises(UsageError, match="is no name of a picture"):
        draw_surface(a, tmp_path / "surface.txt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("smartwatch",), "'smartwatch' is no preset, and 'smartwatch' no lead"),
        (("I,V7",), "and 'V7' no lead"),
        (("",), "no lead"),
        ((",".join(STANDARD_LEADS),), "all twelve leads: nothing would be missing"),
        (("lead-i", "i"), "i and lead-i are the same leads"),
    ],
)
def test_what_is_no_preset_is_named(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        presets_of(words)


def test_a_plan_that_leaves_nothing_is_refused_and_the_whole_record_is_always_in_it() -> None:
    for wrong in ({"leads": (12,)}, {"leads": (-1,)}, {"time": (1.0,)}, {"time": (-0.1,)}, {"time": (float("nan"),)}):
        with pytest.raises(UsageError, match="cannot be missing"):
            SurfacePlan(**wrong)  # type: ignore[arg-type]
    plan = SurfacePlan((9, 3), (0.5,))
    assert (plan.leads, plan.time) == ((0, 3, 9), (0.0, 0.5))
    assert presets_of(("v5,i",))[0].leads == ("I", "V5")


def test_records_without_a_lead_of_a_preset_are_left_out_and_evidence_must_be_known(
    shards: ShardSet, ranked: Ranked, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = np.ones((len(ranked.rows), 12), bool)
    masks[4, 0] = False
    monkeypatch.setattr(ShardSet, "lead_masks", lambda self, rows: masks[rows])
    assert having_leads(ranked, shards, presets_of(("lead-i", "limb"))).rows.tolist() == [
        row for row in ranked.rows.tolist() if row != 4
    ]
    masks[:, 0] = False
    with pytest.raises(UserError, match=r"no record of .* have none of lead-i"):
        having_leads(ranked, shards, presets_of(("lead-i",)))
    check_evidence(ranked)
    with pytest.raises(UserError, match="in which leads its primary evidence stands: AFIB"):
        check_evidence(Ranked("v2", ("AFIB",), ranked.rows, ranked.truth[:, :1], ranked.patients))


class OfTwoLeads(nn.Module):
    """(B, 50, 2) -> (B, 6): three samples of each lead."""

    def forward(self, signal: Tensor) -> Tensor:
        return signal[:, 10:40:10].flatten(1) / 1000


def test_an_encoder_that_lacks_leads_is_refused_where_nothing_would_be_left_of_a_record(tmp_path: Path) -> None:
    limb, grid = SurfacePlan((0,), (0.0, 0.5), presets_of(("lead-i", "limb"))), SurfacePlan((0, 3), (0.0,), ())
    ours, chest = open_encoder(write_torchscript(tmp_path / "ours.pt")), ["V2", "V1"]
    for plan in (limb, grid):
        check_leads(ours, plan)
    theirs = open_encoder(write_torchscript(tmp_path / "chest.pt", OfTwoLeads(), leads=chest))
    with pytest.raises(UserError, match=r"reads V2, V1: none of these is in preset lead-i"):
        check_leads(theirs, limb)
    with pytest.raises(UserError, match=r"reads 2 of 12 leads \(V2, V1\): with leads missing at random"):
        check_leads(theirs, grid)
    check_leads(theirs, SurfacePlan((0,), (0.0, 0.5), presets_of(("leads-i-ii-v2",))))
    whole = open_encoder(write_torchscript(tmp_path / "whole.pt", missing_leads="refuse"))
    with pytest.raises(UserError, match="refuses records with missing leads: its contract says missing_leads: refuse"):
        check_leads(whole, limb)
    check_leads(whole, SurfacePlan((0,), (0.0, 0.5), ()))
