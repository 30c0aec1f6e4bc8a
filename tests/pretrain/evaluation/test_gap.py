"""Settings of protocols switched one at a time: each figure is that of an evaluation which has just this setting."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.gap import Gap, GapOptions, explain_gap, open_side, shared_tasks
from cardialign.pretrain.evaluation.intervals import difference_interval, unlike_difference_interval
from cardialign.pretrain.evaluation.probing.linear_probe import Parts, probe
from cardialign.pretrain.evaluation.protocols import open_task
from cardialign.pretrain.evaluation.scoring import score_classes
from cardialign.pretrain.evaluation.zero_shot import class_embeddings, evaluate_zero_shot
from cardialign.pretrain.export.opening import open_encoder
from cardialign.pretrain.export.outside.plug_in import OUTSIDE_ENCODERS
from cardialign.pretrain.export.usable import UsableEncoder
from tests.support.like_ptb_xl import SPEC, SUPER, LikePtbXl
from tests.support.open_codes import OpenCodes, by_hand
from tests.support.outside_models import STANDARD, write_contract
from tests.support.plug_ins import install, see

CODE = '''
from pathlib import Path
import numpy as np

SIGNS = ("hypertrophy", "normal", "infarct", "block", "st")


class Peaks:
    """The largest value of five leads; a text points to the lead of the first word it has."""

    contract = Path(__file__).with_name("peaks.contract.yaml")
    digest = "peaks"

    def __call__(self, signal):
        return signal[:, :, :5].max(axis=1)

    def embed_text(self, texts):
        out = np.full((len(texts), 5), 0.01)
        for row, text in zip(out, texts):
            found = [k for k, sign in enumerate(SIGNS) if sign in text.lower()]
            row[found[0] if found else 0] = 1
        return out
'''


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("ptb")
    build_shards(LikePtbXl(folder, 600), folder / "set", SetPlan(SPEC), workers=1)
    return ShardSet.open(folder / "set")


@pytest.fixture(scope="module")
def csn(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("csn")
    build_shards(OpenCodes(folder, 240), folder / "set", SetPlan(SPEC), workers=1)
    return ShardSet.open(folder / "set")


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UsableEncoder:
    install(tmp_path / "site", "peak_models", CODE, {"peaks": "peak_models:Peaks"}, OUTSIDE_ENCODERS.group)
    stated = {"sampling_rate": 100, "seconds": 5, "leads": STANDARD, "units": "mV", "embedding_dim": 5}
    write_contract(tmp_path / "site/peaks", **stated)
    see(tmp_path / "site", OUTSIDE_ENCODERS, monkeypatch)
    monkeypatch.delitem(__import__("sys").modules, "peak_models", raising=False)
    return open_encoder("outside:peaks")


def gap_of(
    encoder: UsableEncoder, shards: ShardSet, to: str, mode: str = "zero-shot", folder: Path | None = None
) -> Gap:
    sides = [open_side(f"{name}:ptb-xl-super", shards, mode, folder) for name in ("clean-v2", to)]
    return explain_gap(encoder, shards, *sides, GapOptions(mode, bootstrap=100))


def test_start_and_all_together_are_the_evaluations_of_either_protocol(encoder, shards: ShardSet) -> None:
    gap = gap_of(encoder, shards, "benchmark-v1")
    assert [each.name for each in gap.switches] == ["labels", "pieces"]
    for name, figure in (("clean-v2", gap.start), ("benchmark-v1", gap.together.figure)):
        alone = evaluate_zero_shot(encoder, shards, task=open_task(f"{name}:ptb-xl-super", shards), bootstrap=100)
        assert figure.macro == pytest.approx(alone.macro, abs=1e-12) and figure.records == alone.n
    labels, pieces = gap.switches
    assert labels.figure.records == 60 > gap.start.records == pieces.figure.records == 50
    assert not labels.figure.wordless
    assert gap.together.worth.value == pytest.approx(gap.together.figure.macro - gap.start.macro)
    assert gap.rest == pytest.approx(gap.together.worth.value - labels.worth.value - pieces.worth.value)
    assert labels.worth.low < labels.worth.value < labels.worth.high
    lines = gap.table().splitlines()
    assert lines[-1].startswith("joint effect of the switches") and "2.5 s, probabilities averaged" in gap.table()
    assert json.loads(json.dumps(gap.to_dict()))["rest"] == pytest.approx(gap.rest)


def test_words_alone_are_switched_against_fg_clep(encoder, shards: ShardSet) -> None:
    gap = gap_of(encoder, shards, "fgclep-v1")
    assert [each.name for each in gap.switches] == ["prompts"]
    assert gap.together.figure == gap.switches[0].figure and gap.rest == 0
    alone = evaluate_zero_shot(encoder, shards, task=open_task("fgclep-v1:ptb-xl-super", shards), bootstrap=10)
    assert gap.together.figure.macro == pytest.approx(alone.macro, abs=1e-12)


def published(folder: Path, ids: dict[str, list[int]]) -> Path:
    """Published label and prompt files: record n has class n // 7 modulo 5."""
    for part, numbers in ids.items():
        file = folder / f"ptbxl/super_class/ptbxl_super_class_{part}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="") as opened:
            rows = csv.writer(opened)
            rows.writerow(["ecg_id", *SUPER])
            rows.writerows([number, *(int(k == number // 7 % 5) for k in range(5))] for number in numbers)
    (folder / "zeroshot").mkdir(exist_ok=True)
    words = {"HYP": "st", "NORM": "normal", "MI": "infarct", "CD": "block", "STTC": "st"}
    (folder / "zeroshot/CKEPE_prompt.json").write_text(json.dumps(words))
    return folder


def test_every_setting_of_a_published_protocol_is_switched_alone(encoder, shards: ShardSet, tmp_path: Path) -> None:
    numbers = [int(shards.key(row).partition("-")[2]) for row in np.flatnonzero(np.isin(shards.fold, [9, 10]))]
    gap = gap_of(encoder, shards, "merl-v1", folder=published(tmp_path, {"test": numbers}))
    found = {each.name: each for each in gap.switches}
    assert list(found) == ["records", "labels", "prompts", "normalisation"]
    merl = open_task("merl-v1:ptb-xl-super", shards, label_files=tmp_path)
    assert found["records"].figure.records == sum(number % 6 != 0 for number in numbers), (
        "labelled records of both folds, by the labels of the shards"
    )
    assert found["labels"].figure.records == 60 and found["prompts"].figure.records == 50

    rows = open_task("clean-v2:ptb-xl-super", shards).rows
    ours = np.stack([shards.read_record(row).millivolts()[:5].max(axis=1) for row in rows])
    codes, truth, _ = shards.labels(rows, "super")
    unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    point = np.full((5, 5), 0.01)
    for c, lead in enumerate((4, 1, 2, 3, 4)):  # the words of the file: HYP and STTC point to the lead of "st"
        point[c, lead] = 1
    scores = unit @ (point / np.linalg.norm(point, axis=1, keepdims=True)).T
    by_hand = np.mean([roc_auc_score(truth[:, codes.index(code)], scores[:, c]) for c, code in enumerate(SUPER)])
    assert found["prompts"].figure.macro == pytest.approx(by_hand, abs=1e-6)

    assert gap.together.figure.records == len(merl.rows) == 120
    scaled = np.stack([_minmax(shards.read_record(row).millivolts())[:5].max(axis=1) for row in merl.rows])
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    scores = unit @ (point / np.linalg.norm(point, axis=1, keepdims=True)).T
    by_hand = np.mean([roc_auc_score(merl.truth[:, c], scores[:, c]) for c in range(5)])
    assert gap.together.figure.macro == pytest.approx(by_hand, abs=1e-6)


def test_classes_that_the_other_protocol_has_no_words_for_are_named(encoder, shards: ShardSet) -> None:
    start, end = (open_side(f"{name}:ptb-xl-super", shards, "zero-shot") for name in ("clean-v2", "fgclep-v1"))
    fewer = dataclasses.replace(end, words=end.words.only(["NORM", "MI", "CD"]))
    gap = explain_gap(encoder, shards, start, fewer, GapOptions(bootstrap=5))
    figure = gap.switches[0].figure
    assert (figure.codes, figure.wordless) == (("NORM", "MI", "CD"), ("STTC", "HYP"))
    assert "prompts: no words for STTC, HYP" in gap.table()


def _minmax(signal: np.ndarray) -> np.ndarray:
    return (signal - signal.min()) / (signal.max() - signal.min())


def test_a_probe_is_switched_too_and_words_have_no_say(encoder, shards: ShardSet) -> None:
    gap = gap_of(encoder, shards, "benchmark-v1", "linear-probe")
    assert [each.name for each in gap.switches] == ["labels", "pieces"] and gap.start.macro > 0.8
    with pytest.raises(UsageError, match="agree in everything that can be switched for linear-probe"):
        gap_of(encoder, shards, "fgclep-v1", "linear-probe")


@pytest.mark.parametrize("mode", ["zero-shot", "linear-probe"])
def test_records_whose_codes_leave_a_class_open_are_neither_learnt_nor_scored_for_it(
    encoder, csn: ShardSet, mode: str
) -> None:
    """The start by hand: of the records that say something of a class, the macro of its AUROCs by scikit-learn."""
    shards = csn
    sides = [open_side(f"{name}:csn", shards, mode) for name in ("clean-v2", "fgclep-v1")]
    found = explain_gap(encoder, shards, *sides, GapOptions(mode, bootstrap=5))

    parts = {part: open_task("clean-v2:csn", shards, split=part).rows for part in ("train", "val", "test")}
    rows = np.unique(np.concatenate(list(parts.values())))
    said = [shards.read_record(int(row)).labels for row in rows]
    truth = {code: [by_hand(each["snomed"], code) for each in said] for code in ("STDD", "STTU")}
    truth["SB"] = ["SB" in each["chapman"] for each in said]
    is_true, decided = (
        np.stack([[of(each) for each in truth[code]] for code in truth], axis=1)
        for of in (lambda each: each is True, lambda each: each is not None)
    )
    peaks = np.stack([shards.read_record(int(row)).millivolts()[:5].max(axis=1) for row in rows])
    places = Parts(*(np.searchsorted(rows, part) for part in parts.values()))
    if mode == "zero-shot":
        words = open_task("clean-v2:csn", shards).prompts.only(list(truth))
        scores = (peaks / np.linalg.norm(peaks, axis=1, keepdims=True))[places.test] @ class_embeddings(
            encoder, words
        ).T
        order = [words.codes.index(code) for code in truth]
        scores = scores[:, order]
    else:
        scores = probe(peaks.astype(np.float32), is_true, places, decided=decided).scores
    is_true, decided = is_true[places.test], decided[places.test]
    alone = [roc_auc_score(is_true[decided[:, c], c], scores[decided[:, c], c]) for c in range(3)]
    assert found.start.classes == 3 and found.start.macro == pytest.approx(np.mean(alone), abs=1e-6)
    as_negatives = np.mean([roc_auc_score(is_true[:, c], scores[:, c]) for c in range(3)])
    assert abs(as_negatives - found.start.macro) > 1e-3


def test_the_validation_part_can_be_scored_but_not_by_a_probe_that_is_chosen_on_it(encoder, shards: ShardSet) -> None:
    sides = [open_side(f"{name}:ptb-xl-super", shards, "zero-shot", scored="val") for name in ("clean-v2", "fgclep-v1")]
    gap = explain_gap(encoder, shards, *sides, GapOptions(bootstrap=5))
    alone = evaluate_zero_shot(
        encoder, shards, task=open_task("clean-v2:ptb-xl-super", shards, split="val"), bootstrap=5
    )
    assert gap.start.macro == pytest.approx(alone.macro, abs=1e-12) and gap.start.records == alone.n
    with pytest.raises(UsageError, match="--split val with --mode linear-probe"):
        open_side("clean-v2:ptb-xl-super", shards, "linear-probe", scored="val")


def test_what_two_protocols_do_not_share_is_told(encoder, shards: ShardSet) -> None:
    assert shared_tasks("clean-v2", "merl-v1", shards) == ["ptb-xl-super", "ptb-xl-sub", "ptb-xl-form", "ptb-xl-rhythm"]
    with pytest.raises(UsageError, match="unknown evaluation protocol 'merl'"):
        shared_tasks("clean-v2", "merl", shards)
    manifest = {**shards.manifest, "source": {"name": "code15"}}
    with pytest.raises(UsageError, match=r"no task in common that is about code15(.|\n)*both: ptb-xl-super"):
        shared_tasks("clean-v1", "clean-v2", ShardSet(shards.path, manifest, shards._index))
    with pytest.raises(UserError, match="no folder was given"):
        gap_of(encoder, shards, "merl-v1")


def test_intervals_of_unlike_evaluations_are_those_of_like_ones_where_they_are_alike() -> None:
    draw = np.random.default_rng(0)
    truth, patients = draw.random((300, 4)) < 0.3, np.repeat(np.arange(150), 2)
    scores = [truth + draw.normal(0, spread, truth.shape) for spread in (1.0, 1.3)]
    names = [("a", "a")] * 4
    first, other = score_classes(scores, truth, patients, names, resamples=400, seed=0)
    like, unlike = (of(first.sample, other.sample) for of in (difference_interval, unlike_difference_interval))
    np.testing.assert_allclose(like, unlike, atol=2e-3)
    assert unlike_difference_interval(first.sample, first.sample) == (0, 0)
    # of the same patients, but other records: paired by weights that are drawn for everybody
    half = np.arange(0, 300, 2)
    (part,) = score_classes(
        [scores[0][half]], truth[half], patients[half], names, resamples=400, seed=0, among=np.arange(150)
    )
    same = np.corrcoef(part.sample.resampled.mean(axis=1), first.sample.resampled.mean(axis=1))[0, 1]
    (apart,) = score_classes([scores[0][half]], truth[half], patients[half], names, resamples=400, seed=9)
    unpaired = np.corrcoef(apart.sample.resampled.mean(axis=1), first.sample.resampled.mean(axis=1))[0, 1]
    assert same > 0.5 > 0.2 > abs(unpaired)
