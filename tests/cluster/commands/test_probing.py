"""`cardialign evaluate linear-probe` and `fine-tune`: from an exported encoder to a table, and what they refuse."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities.model_registry import ModelVersion
from safetensors.numpy import load_file

from cardialign.cluster.commands.evaluate.fine_tune import SHIPPED
from cardialign.cluster.commands.evaluate.linear_probe import SHIPPED_FLOORS, SUPERVISED
from cardialign.cluster.commands.evaluate.select import SHIPPED_CRITERIA
from cardialign.cluster.registry.evidence import read_evidence
from cardialign.cluster.registry.registry import list_models, register
from cardialign.cluster.tracking.mlflow_store import open_client
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.layout import INDEX
from cardialign.data_shards.sources.base import Entry
from cardialign.pretrain.evaluation.probing.fine_tune import PRESETS
from cardialign.pretrain.evaluation.probing.systems import FLOORS
from cardialign.pretrain.evaluation.scoring import class_auroc
from cardialign.pretrain.evaluation.selection.select import CRITERIA
from cardialign.pretrain.run.integrity import verify_export
from tests.cluster.conftest import Answer
from tests.support.planted_source import PlantedSource, ThreeFolds
from tests.support.tiny_set import SPEC


class PtbXl(PlantedSource):
    """The planted records as a PTB-XL with super classes alone."""

    name = "ptb-xl"
    label_sets = ("super",)

    def read(self, entry: Entry) -> EcgRecord:
        record = super().read(entry)
        codes = {"super": tuple("MI" if code == "UP" else "CD" for code in record.labels.get("finding", ()))}
        return dataclasses.replace(record, fold=1 + (entry.meta["k"] // 2) % 10, labels=codes)

    def describe(self) -> dict:
        return {"name": self.name}


Call = Callable[..., Answer]
FOLDS = ("--labels", "finding", "--train-folds", "1", "--validation-folds", "2", "--test-folds", "3")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    return build_shards(ThreeFolds(folder, 180), folder / "shards", SetPlan(SPEC), workers=1).path


def test_a_probe_stands_beside_its_floors_and_stores_everything(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path
) -> None:
    words = ("evaluate", "linear-probe", "--encoder", exported, "--shards", shards, *FOLDS)
    answer = cardialign(*words, "--shares", "20,100", "--seeds", 2, "--bootstrap", 20, "--out", tmp_path / "probe.json")
    assert answer.code == 0, answer.err
    result = json.loads((tmp_path / "probe.json").read_text())
    assert {row["system"] for row in result["rows"]} == {"encoder", "untrained", "random-kernels", "hand-features"}
    best = {
        row["system"]: row["macro"] for row in result["rows"] if row["share"] == 1 and row["reader"] == "linear probe"
    }
    assert best["random-kernels"] > 0.9, "up, down and fast are what kernels see"
    assert result["task"]["trained_on"]["status"] == "unknown"
    assert len(result["task"]["systems"]["encoder"]["weights"]) == 64
    lines = {(line["figure"], line["against"]): line["line"] for line in result["task"]["ledger"]}
    assert "unknown (its export does not say" in lines["encoder", "pretraining"]
    assert "shared patients 0 of 30" in lines["hand-features", "pretraining"]
    assert "shared patients 0 of 30" in lines["every system", "the labelled training records"]
    assert result["task"]["test_opened"]["times"] == 1
    assert not list(shards.with_name("shards.features").glob(".work*")), "the files of the cells are gone"


def test_a_second_opening_of_the_test_records_is_counted_for_the_run_and_shown(
    cardialign: Call, exported: Path, shards: Path
) -> None:
    words = ("evaluate", "linear-probe", "--encoder", exported, "--shards", shards, "--labels", "finding")
    folds = ("--train-folds", "2", "--validation-folds", "3", "--test-folds", "1")
    quick = (*folds, "--floors", "none", "--bootstrap", 0)
    assert "opened once for this run" in cardialign(*words, *quick, plain=True).out
    assert "OPENED 2 TIMES for this run" in cardialign(*words, *quick, plain=True).out
    fine_tuned = ("evaluate", "fine-tune", "--encoder", exported, "--shards", shards, "--labels", "finding", *folds)
    third = cardialign(*fine_tuned, "--bootstrap", 0, "--set", "epochs=1", plain=True).out
    assert "OPENED 3 TIMES for this run" in third and "by evaluate linear-probe" in third
    assert "ledger fine-tuned encoder x finding test, pretraining: unknown" in third
    scratch = ("evaluate", "fine-tune", "--preset", "supervised-resnet1d", "--shards", shards, "--labels", "finding")
    other = cardialign(*scratch, *folds, "--bootstrap", 0, "--set", "epochs=1", plain=True).out
    assert "opened once for this run" in other, "another run"
    assert "ledger supervised-resnet1d x finding test, pretraining: shared patients 0 of 30" in other


def test_the_attention_pooled_probe_stands_beside_the_linear_one(
    cardialign: Call, exported: Path, shards: Path
) -> None:
    words = ("evaluate", "linear-probe", "--encoder", exported, "--shards", shards, *FOLDS)
    answer = cardialign(*words, "--attention", "--floors", "none", "--bootstrap", 0)
    assert answer.code == 0, answer.err
    assert {row["reader"] for row in answer.json["rows"]} == {"linear probe", "nearest neighbours", "attention probe"}


def test_the_grid_writes_figures_for_programs_tables_and_people_and_goes_on(
    cardialign: Call, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "ptb-xl"
    made = build_shards(PtbXl(folder, 120), folder / "shards", SetPlan(SPEC), workers=1).path
    words = ("evaluate", "grid", "--encoder", exported, "--sets", f"ptb-xl={made}", "--out", tmp_path / "grid")
    words = (*words, "--shares", "50,100", "--seeds", 2, "--bootstrap", 0, "--floors", "hand-features")
    answer = cardialign(*words, plain=True)
    assert answer.code == 0, answer.err
    result = json.loads((tmp_path / "grid/grid.json").read_text())
    assert list(result["tasks"]) == ["ptb-xl-super"] and len(result["missing"]) == 5
    with (tmp_path / "grid/grid.csv").open() as file:
        rows = list(csv.DictReader(file))
    held = [row for row in rows if row["macro"]]
    assert len(held) == 2 * 2 * 2 and {row["task"] for row in rows if row["missing"]} == {
        each["task"] for each in result["missing"]
    }
    whole = {(row["system"], row["reader"], row["share"]): row for row in result["tasks"]["ptb-xl-super"]["rows"]}
    for row in held:
        found = whole[row["system"], row["read_by"], float(row["share"])]
        assert float(row["macro"]) == found["macro"] and f"{found['macro']:.3f}" in answer.out
        assert row["ledger"].startswith("ledger ") and row["test_opened"] == "1"
    beside = cardialign("compare", tmp_path / "grid", "--out", tmp_path / "o", "--bootstrap", 5).json
    ours = {row["share"]: row["macro_auroc"] for row in beside["figures"] if row["method"] == beside["methods"][0]
            and row["kind"] == "linear probe"}  # fmt: skip
    assert ours == {
        share: pytest.approx(whole["encoder", "linear probe", share]["macro"], abs=1e-6) for share in (0.5, 1)
    }
    found = {(each["kind"], each["share"]): each for each in beside["differences"]}
    assert len(found) == len(beside["differences"]) == 2 * 2, "floors and neighbours are paired, too"
    for (kind, share), each in found.items():
        ahead = whole["hand-features", kind, share]["macro"] - whole["encoder", kind, share]["macro"]
        assert each["mine"] == "hand features" and each["difference"] == pytest.approx(ahead, abs=1e-9)
    scores = load_file(tmp_path / "grid/grid.scores.safetensors")
    told = {each["name"]: k for k, each in enumerate(result["scores"]["of"])}
    again = class_auroc(scores[f"{told['linear-probe:clean-v2:ptb-xl-super@100']}.scores"][0], scores["1.truth"]).mean()
    assert again == pytest.approx(ours[1.0], abs=1e-6), "the scores beside it give its figure again"
    before = (tmp_path / "grid/grid.json").read_text()
    assert cardialign(*words).code == 0 and (tmp_path / "grid/grid.json").read_text() == before


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.deployment
def test_probe_and_grid_on_ray_are_those_of_this_process_to_the_bit(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path
) -> None:
    probe = ("evaluate", "linear-probe", "--encoder", exported, "--shards", shards, *FOLDS, "--shares", "20,100")
    probe = (*probe, "--seeds", 2, "--bootstrap", 20, "--attention")
    here, there = cardialign(*probe), cardialign(*probe, "--workers", 2)
    assert there.code == 0 and there.json["rows"] == here.json["rows"], there.err
    tuned = ("evaluate", "fine-tune", "--encoder", exported, "--shards", shards, *FOLDS, "--seeds", 2)
    tuned = (*tuned, "--set", "epochs=1", "--bootstrap", 20)
    here, there = cardialign(*tuned), cardialign(*tuned, "--workers", 2)
    assert there.code == 0 and there.json["seeds"] == here.json["seeds"], there.err
    made = build_shards(PtbXl(tmp_path, 120), tmp_path / "shards", SetPlan(SPEC), workers=1).path
    grid = ("evaluate", "grid", "--encoder", exported, "--sets", f"ptb-xl={made}", "--shares", "50,100", "--seeds", 2)
    grid = (*grid, "--bootstrap", 20, "--floors", "hand-features")
    here, there = cardialign(*grid, "--out", tmp_path / "a"), cardialign(*grid, "--out", tmp_path / "b", "--workers", 2)
    assert there.code == 0, there.err
    assert there.json["tasks"]["ptb-xl-super"]["rows"] == here.json["tasks"]["ptb-xl-super"]["rows"]


@pytest.mark.slow
def test_tracked_figures_carry_their_ledger_as_a_tag_of_the_version(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path, uri: str
) -> None:
    register(exported, "probed", uri)
    words = ("--encoder", "models:/probed@candidate", "--tracking-uri", uri, "--track", "--shards", shards, *FOLDS)
    answer = cardialign("evaluate", "linear-probe", *words, "--floors", "none", "--bootstrap", 0)
    assert answer.code == 0, answer.err
    tuned = cardialign("evaluate", "fine-tune", *words, "--preset", "partial", "--bootstrap", 0, "--set", "epochs=1")
    assert tuned.code == 0, tuned.err
    (row,) = list_models(uri)
    (probed,) = (each for each in answer.json["rows"] if each["reader"] == "linear probe")
    assert row["metrics"]["linear-probe/finding/100/macro"] == pytest.approx(probed["macro"], abs=1e-5)
    assert set(row["ledger"]) == {"linear-probe/finding/100", "fine-tune-partial/finding"}
    said = row["ledger"]["linear-probe/finding/100"]
    assert "ledger encoder x finding test, pretraining: unknown" in said
    assert "the labelled training records: shared patients 0 of 30" in said
    found, damaged = read_evidence(open_client(uri), probed_version(uri), verify_export(exported), tmp_path, uri)
    assert damaged == [] and {each.name for each in found} == {"linear-probe:finding@100", "fine-tune:finding"}
    kept, start = sorted(found, key=lambda each: each.name, reverse=True)
    auroc = class_auroc(start.scored.scores[0], start.scored.truth).mean()
    assert auroc == pytest.approx(tuned.json["macro"], abs=1e-12) == start.facts["macro"]
    assert kept.facts["low"] is None
    auroc = class_auroc(kept.scored.scores[0], kept.scored.truth).mean()
    assert auroc == pytest.approx(probed["macro"], abs=1e-12), "its scores give its figure again"
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("evidence/*/*"))
    assert b'"finding"' in content and not re.search(rb"planted-|patient-|deflections", content), "and name nobody"


def test_a_tracked_grid_is_the_evidence_that_its_probes_alone_would_be(
    cardialign: Call, exported: Path, tmp_path: Path, uri: str
) -> None:
    register(exported, "probed", uri)
    made = build_shards(PtbXl(tmp_path, 120), tmp_path / "shards", SetPlan(SPEC), workers=1).path
    tracked = ("--encoder", "models:/probed@candidate", "--tracking-uri", uri, "--track", "--bootstrap", 0)
    shares = ("--shares", "50,100", "--seeds", 2, "--floors", "none")
    grid = cardialign("evaluate", "grid", *tracked, *shares, "--sets", f"ptb-xl={made}", "--out", tmp_path / "grid")
    assert grid.code == 0, grid.err
    there = evidence_tags_of(uri)
    assert len(there) == 2
    task = ("--protocol", "clean-v2:ptb-xl-super", "--shards", made)
    alone = cardialign("evaluate", "linear-probe", *tracked, *shares, *task)
    assert alone.code == 0, alone.err
    assert evidence_tags_of(uri) == there, "the same scores, to the bit, of the same records and the same measure"


def evidence_tags_of(uri: str) -> dict[str, str]:
    return {key: value for key, value in probed_version(uri).tags.items() if key.startswith("evidence.")}


def probed_version(uri: str) -> ModelVersion:
    return open_client(uri).get_model_version("probed", "1")


def test_an_encoder_is_chosen_by_validation_records(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path
) -> None:
    words = ("evaluate", "select", exported, "--shards", shards, "--validation-folds", "2")
    answer = cardialign(*words, "--out", tmp_path / "choice.json", plain=True)
    assert answer.code == 0 and "chosen by retrieval (no labels) on folds 2" in answer.out, answer.err
    assert json.loads((tmp_path / "choice.json").read_text())["best"] == str(exported)
    probed = cardialign(*words, "--criterion", "probe", "--labels", "finding", "--train-folds", "1")
    assert probed.code == 0 and not probed.json["label_free"] and probed.json["test_opened"] == 0, probed.err
    for more, said in (
        (("--criterion", "probe"), "--criterion probe needs labels"),
        (("--labels", "finding"), "belong together"),
    ):
        refused = cardialign(*words, *more)
        assert refused.code == 2 and said in refused.json["problem"]
    missing = cardialign("evaluate", "select", tmp_path / "nothing", "--shards", shards, "--validation-folds", "2")
    assert missing.code == 1 and "nothing" in missing.json["problem"]


@pytest.mark.slow
def test_training_from_scratch_and_from_an_encoder(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path
) -> None:
    words = ("evaluate", "fine-tune", "--shards", shards, *FOLDS, "--bootstrap", 0, "--set", "epochs=1")
    out = ("--out", tmp_path / "scratch.json")
    scratch = cardialign(*words, "--preset", "supervised-resnet1d", "--seeds", 2, *out)
    assert scratch.code == 0, scratch.err
    assert len(scratch.json["seeds"]) == 2 and scratch.json["start"] == "from random weights: resnet1d"
    partial = cardialign(*words, "--encoder", exported, "--preset", "partial", "--out", tmp_path / "partial.json")
    assert partial.code == 0, partial.err
    places = (tmp_path / "partial.json", tmp_path / "scratch.json")
    (found,) = cardialign("compare", *places, "--out", tmp_path / "o", "--bootstrap", 5).json["differences"]
    ahead = {found["mine"]: found["difference"], found["theirs"]: -found["difference"]}
    assert ahead["partial"] == pytest.approx(partial.json["macro"] - scratch.json["macro"], abs=1e-9)
    assert partial.json["options"]["train_blocks"] == 1 and partial.json["options"]["epochs"] == 1


def test_a_share_of_too_few_records_is_named_and_the_others_stand(
    cardialign: Call, exported: Path, shards: Path
) -> None:
    words = ("evaluate", "linear-probe", "--encoder", exported, "--shards", shards, *FOLDS, "--floors", "none")
    answer = cardialign(*words, "--shares", "1,100", "--bootstrap", 0, plain=True)
    assert answer.code == 0 and "no figure at 1 %: finding, encoder at 1 % of" in answer.out, answer.err
    alone = cardialign(*words, "--shares", "1", "--bootstrap", 0)
    assert alone.code == 1 and "no class has positives and negatives both" in alone.json["problem"]


@pytest.mark.parametrize("command", ["linear-probe", "fine-tune"])
def test_a_set_of_another_rate_than_the_encoders_is_refused_and_nothing_is_opened(
    cardialign: Call, exported: Path, tmp_path: Path, command: str
) -> None:
    made = build_shards(ThreeFolds(tmp_path, 30), tmp_path / "set", SetPlan(SignalSpec(200, 2)), workers=1).path
    words = ("evaluate", command, "--encoder", exported, "--shards", made, *FOLDS)
    answer = cardialign(*words)
    assert answer.code == 1 and "the encoder was trained on 2.5 s at 100 Hz" in answer.json["problem"]
    assert not list(tmp_path.rglob("test-openings.jsonl"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*FOLDS, "--label-files", "."), "--label-files belongs to a protocol"),
        (("--labels", "finding", "--train-folds", "1"), "--labels needs folds for all three parts"),
        (("--protocol", "clean-v1:csn", "--train-folds", "1"), "folds with --protocol"),
        ((*FOLDS[:-1], "2"), "fold 2 is in two of train, validation and test"),
        ((*FOLDS, "--shares", "0"), "not a share in percent"),
        ((*FOLDS, "--floors", "ceiling"), "is none of untrained, random-kernels, hand-features"),
        (("--labels", "nobody", *FOLDS[2:]), "no label set 'nobody'"),
    ],
)
def test_what_a_probe_cannot_do_is_told(
    cardialign: Call, exported: Path, shards: Path, words: tuple[str, ...], said: str
) -> None:
    answer = cardialign("evaluate", "linear-probe", "--encoder", exported, "--shards", shards, *words)
    assert answer.code != 0 and said in answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--preset", "full"), "--preset full starts from an encoder"),
        (("--preset", "supervised-s4", "--encoder", "x"), "--preset supervised-s4 starts from random weights"),
        (("--preset", "supervised-s4", "--set", "lr=-1", "--set", "epoch=3"), "lr: input should be greater than 0"),
    ],
)
def test_what_fine_tuning_cannot_do_is_told(cardialign: Call, shards: Path, words: tuple[str, ...], said: str) -> None:
    answer = cardialign("evaluate", "fine-tune", "--shards", shards, *FOLDS, *words)
    assert answer.code != 0 and said in answer.err


@pytest.mark.parametrize("command", ["linear-probe", "fine-tune"])
def test_a_result_that_cannot_be_written_is_told_before_the_work(cardialign: Call, shards: Path, command: str) -> None:
    words = ("evaluate", command, "--encoder", "absent", "--shards", shards, *FOLDS, "--out", shards / INDEX / "x.json")
    answer = cardialign(*words)
    assert answer.code == 1 and "--out" in answer.err and "cannot be written" in answer.err
    assert (shards / INDEX).is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sets", "ptb-xl"), "is not NAME=SHARDS"),
        (("--sets", "mitbih={shards}"), "clean-v2 has no tasks on a set 'mitbih'"),
        (("--sets", "ptb-xl={shards}", "--protocol", "mine"), "unknown evaluation protocol 'mine'"),
        (("--sets", "ptb-xl={shards}", "--sets", "ptb-xl={shards}"), "names ptb-xl twice"),
        (("--sets", "ptb-xl={shards}", "--track"), "is a folder, not a registered encoder"),
    ],
)
def test_what_a_grid_cannot_do_is_told(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    given = [word.format(shards=shards) for word in words]
    answer = cardialign("evaluate", "grid", "--encoder", exported, "--out", tmp_path / "grid", *given)
    assert answer.code == 2 and said in answer.err and not (tmp_path / "grid").exists()


def test_the_words_of_the_options_are_those_of_the_tables() -> None:
    assert SHIPPED_FLOORS == FLOORS and SHIPPED_CRITERIA == CRITERIA
    assert tuple(PRESETS) == SHIPPED
    assert tuple(name for name, (start, _) in PRESETS.items() if start is not None) == SUPERVISED
