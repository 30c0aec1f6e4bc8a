"""A protocol chooses the records, labels and words it says, joined by record name.

Whatever is missing or different is said, never guessed.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.index import IndexFile
from cardialign.data_shards.shard_set.layout import INDEX
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from cardialign.pretrain.evaluation.label_files import record_name, rows_by_name
from cardialign.pretrain.evaluation.protocols import PROTOCOLS, load_task, open_task, protocol_names, tasks_of
from tests.support.small_source import SmallSource

SUPER = ("HYP", "NORM", "MI", "CD", "STTC")
SPEC = SignalSpec(500, 0.04)


class LikePtbXl(SmallSource):
    """Records with PTB-XL's keys (ptbxl-1 ...), folds 1 to 10 and super-classes of the reader's own.

    Every sixth is not labelled.
    """

    name = "ptb-xl"
    label_sets = ("super",)

    def entries(self) -> list[Entry]:
        return [Entry(f"ptbxl-{i + 1}", f"files/{i:05d}", {"number": i}) for i in range(self.records)]

    def read(self, entry):
        record = super().read(entry)
        number = entry.meta["number"]
        record.labels = {} if number % 6 == 5 else {"super": (SUPER[number % 5],)}
        record.fold = 1 + number % 10
        return record


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("ptb") / "set"
    build_shards(LikePtbXl(60, samples=20), folder, SetPlan(SPEC), workers=1)
    return ShardSet.open(folder)


def write_published(folder: Path, ids: list[str], split: str = "test", columns: tuple[str, ...] = SUPER) -> Path:
    """Label and prompt files in the published form; record i has class number i modulo 3 of `SUPER`."""
    file = folder / f"ptbxl/super_class/ptbxl_super_class_{split}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "super_class", *columns])
        for name in ids:
            held = SUPER[int(name.removesuffix(".0")) % 3]
            writer.writerow(
                [
                    name,
                    "15709.0",
                    3,
                    "records100/a",
                    "records500/a",
                    [held],
                    *(int(held == column) for column in columns),
                ]
            )
    (folder / "zeroshot").mkdir(exist_ok=True)
    (folder / "zeroshot/CKEPE_prompt.json").write_text(
        json.dumps({code: f"  Words for {code}, and More. " for code in SUPER})
    )
    return folder


def test_published_labels_are_joined_by_id_and_what_is_absent_is_counted(shards: ShardSet, tmp_path: Path) -> None:
    ids = ["58", "7", "999", "12.0", "1000"]
    folder = write_published(
        tmp_path, ids, columns=("MI", "STTC", "HYP", "CD", "NORM")
    )  # the published files differ in their column order
    task = open_task("merl-v1:ptb-xl-super", shards, label_files=folder)
    assert [shards.key(row) for row in task.rows] == ["ptbxl-7", "ptbxl-12", "ptbxl-58"]
    assert task.prompts.codes == list(SUPER)
    assert [SUPER[row.argmax()] for row in task.truth] == [SUPER[n % 3] for n in (7, 12, 58)] and task.truth.sum() == 3
    np.testing.assert_array_equal(task.patients, shards.patients[task.rows])
    assert task.prompts.classes[0].prompts == ("words for hyp, and more.",)
    assert (
        task.protocol is not None
        and task.protocol["note"] == "3 of 5 test records are in this shard set; 2 are not, such as 999, 1000"
    )
    assert "2 of 5 records are missing" in task.protocol["deviations"]
    assert task.protocol["published"] == 5 and len(task.protocol["label_file"]["sha256"]) == 64
    assert any("0.04 s at 500 Hz, the protocol says 10 s" in each for each in task.protocol["deviations"])
    assert task.first_seconds is None and load_task("merl-v1:cpsc2018").values["first_seconds"] == 5
    write_published(tmp_path, ["3"], split="val")
    assert shards.key(open_task("merl-v1:ptb-xl-super", shards, split="val", label_files=folder).rows[0]) == "ptbxl-3"


def test_labels_of_a_published_file_that_are_no_class_of_the_protocol_are_named(
    shards: ShardSet, tmp_path: Path
) -> None:
    folder = write_published(tmp_path, ["7", "8"])
    file = folder / "ptbxl/super_class/ptbxl_super_class_test.csv"
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([f"{head},BRUGADA", *(f"{row},{k}" for k, row in enumerate(rows))]) + "\n")
    task = open_task("merl-v1:ptb-xl-super", shards, label_files=folder)
    assert task.protocol is not None and task.protocol["unknown_labels"] == {"BRUGADA": 1}
    assert "labels there that are no class of the protocol: BRUGADA (1)" in task.protocol["note"]
    assert task.truth.shape[1] == len(SUPER)


def test_the_clean_protocol_takes_published_folds_and_labelled_records_only(shards: ShardSet) -> None:
    parts = {split: open_task("clean-v1:ptb-xl-super", shards, split=split) for split in ("train", "val", "test")}
    assert {name: sorted(set(shards.fold[task.rows].tolist())) for name, task in parts.items()} == {
        "train": list(range(1, 9)),
        "val": [9],
        "test": [10],
    }
    assert sum(len(task.rows) for task in parts.values()) == 50
    test = parts["test"]
    for row, truth in zip(test.rows, test.truth, strict=True):
        held = [code for code, yes in zip(test.prompts.codes, truth, strict=True) if yes]
        assert tuple(held) == shards.read_record(row).labels["super"]


def test_what_is_missing_is_named_with_what_is_expected(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"unknown evaluation protocol .merl.(.|\n)*benchmark-v1, challenge-v1, clean-v1, clean-v2, dev",
    ):
        open_task("merl:ptb-xl-super", shards)
    with pytest.raises(UsageError, match=r"has no task 'super'(.|\n)*clean-v1:ptb-xl-super"):
        open_task("clean-v1:super", shards)
    with pytest.raises(UsageError, match=r"has several tasks(.|\n)*clean-v1:ptb-xl-form"):
        open_task("clean-v1", shards)
    with pytest.raises(UsageError, match=r"is about cpsc2018; .* was built from ptb-xl"):
        open_task("clean-v1:cpsc2018", shards)
    with pytest.raises(
        UsageError,
        match=r"no folder was given(.|\n)*ptbxl_super_class_test.csv and zeroshot/CKEPE_prompt.json(.|\n)*ecg_id",
    ):
        open_task("merl-v1:ptb-xl-super", shards)
    folder = write_published(tmp_path, ["1"])
    with pytest.raises(UsageError, match=r"lacks ptbxl/super_class/ptbxl_super_class_train.csv"):
        open_task("merl-v1:ptb-xl-super", shards, split="train", label_files=folder)
    write_published(tmp_path, ["900", "901"])
    with pytest.raises(DataError, match="0 of 2 test records are in this shard set"):
        open_task("merl-v1:ptb-xl-super", shards, label_files=folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("HYP,NORM", "HYP,NORMAL", "lacks the columns NORM"),
        ("7,15709.0", "8,15709.0", r"line 3: record 8 occurs in line 2 too"),
        ("7,15709.0", ",15709.0", "line 3: no ecg_id"),
        ("0,1,0,0,0", "0,maybe,0,0,0", "NORM is 'maybe', not 0 or 1"),
    ],
)
def test_a_damaged_label_file_is_named_with_line_and_column(
    shards: ShardSet, tmp_path: Path, old: str, new: str, message: str
) -> None:
    folder = write_published(tmp_path, ["8", "7"])
    file = folder / "ptbxl/super_class/ptbxl_super_class_test.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        open_task("merl-v1:ptb-xl-super", shards, label_files=folder)


def test_a_prompt_file_without_a_class_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    folder = write_published(tmp_path, ["8"])
    (folder / "zeroshot/CKEPE_prompt.json").write_text('{"HYP": "x", "NORM": "y", "MI": " "}')
    with pytest.raises(DataError, match="has no text for MI, CD, STTC"):
        open_task("merl-v1:ptb-xl-super", shards, label_files=folder)


def test_names_come_in_the_forms_that_are_published() -> None:
    forms = ("9", "9.0", "9.00", " 9 ", "A2600", "/chapman/WFDBRecords/18/186/JS18048.mat", "4.0689238e+07", "x/9.dat")
    names = [record_name(form) for form in forms]
    assert names == ["9", "9", "9", "9", "A2600", "JS18048", "40689238", "9"]


def test_two_records_of_one_name_are_refused(shards: ShardSet, tmp_path: Path) -> None:
    column = shards.index.column("key").to_pylist()
    column[3] = "other-1"
    table = shards.index.set_column(shards.index.schema.get_field_index("key"), "key", [column])
    pq.write_table(table, tmp_path / INDEX)
    doubled = ShardSet(shards.path, shards.manifest, IndexFile(tmp_path / INDEX, sha256_of(tmp_path / INDEX)))
    with pytest.raises(DataError, match=r"ptbxl-1 and other-1 both answer to the published name 1"):
        rows_by_name(doubled, ["1"])


def test_every_protocol_states_data_labels_split_preprocessing_and_prompts() -> None:
    six_tasks = ["benchmark-v1", "clean-v1", "clean-v2", "development-v1", "fgclep-ens-v1", "fgclep-v1", "merl-v1"]
    assert protocol_names() == sorted([*six_tasks, "challenge-v1"])
    import yaml

    digests = set()
    for name in protocol_names():
        for each in yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text())["tasks"]:
            task = load_task(f"{name}:{each}")
            digests.add(task.digest)
            assert task.values["sources"] and {"sampling_rate", "seconds", "normalisation"} <= task.preprocessing.keys()
            if "labels" in task.values:
                assert {"id", "train", "val", "test", "classes"} == task.values["labels"].keys() and task.values[
                    "prompts"
                ]["file"]
            else:
                assert task.words.label_set == task.values["label_set"]
                assert task.values["split"]["by"] in ("folds", "patient-hash")
    assert len(digests) == 6 * len(six_tasks) + 1


def test_the_protocol_of_decisions_leaves_the_published_test_fold_closed() -> None:
    published = load_task("clean-v2:ptb-xl-super").values["split"]
    for name in tasks_of("development-v1"):
        own, last = (load_task(f"{protocol}:{name}").values for protocol in ("development-v1", "clean-v2"))
        assert {key: own[key] for key in own if key != "split"} == {key: last[key] for key in last if key != "split"}
        if own["split"]["by"] == "folds":
            parts = [set(own["split"][part]) for part in ("train", "val", "test")]
            assert not set.union(*parts) & set(published["test"]) and sum(map(len, parts)) == len(set.union(*parts))


def test_the_published_label_files_open_and_say_how_many_records_are_here(real_data: Path, tmp_path: Path) -> None:
    from cardialign.data_shards.sources import open_source

    source = open_source("ptb-xl", real_data / "ptb-xl", sampling_rate=100)
    build_shards(source, tmp_path / "set", SetPlan(SignalSpec(100, 10), limit=60), workers=1)
    shards = ShardSet.open(tmp_path / "set")
    for task, published in (
        ("super", (17084, 2146)),
        ("sub", (17084, 2146)),
        ("form", (7197, 901)),
        ("rhythm", (16832, 2100)),
    ):
        for split, count in zip(("train", "val"), published, strict=True):
            found = open_task(f"merl-v1:ptb-xl-{task}", shards, split=split, label_files=real_data / "protocols/merl")
            assert (
                found.protocol is not None
                and found.protocol["published"] == count
                and 0 < found.protocol["present"] <= 60
            )
            if task == "form":
                continue
            codes, ours, labelled = shards.labels(found.rows, task)
            column = [codes.index(code) for code in found.prompts.codes if code in codes]
            theirs = found.truth[:, [k for k, code in enumerate(found.prompts.codes) if code in codes]]
            assert labelled.all()
            np.testing.assert_array_equal(ours[:, column], theirs)


def test_a_released_protocol_means_what_it_meant() -> None:
    """The digest of a task is part of every figure that was made by it."""
    assert load_task("clean-v2:ptb-xl-super").digest.startswith("4b59fe078cbc")
    assert load_task("merl-v1:cpsc2018").digest.startswith("2b45d3cf65ff")
    assert load_task("merl-v1:csn").crop is None and load_task("merl-v1:csn").normalisation == "minmax"


def test_the_benchmark_cuts_records_and_counts_unlabelled_ones_as_negatives(shards: ShardSet) -> None:
    clean, cut = (open_task(f"{name}:ptb-xl-super", shards) for name in ("clean-v2", "benchmark-v1"))
    assert clean.crop is None and cut.crop is not None
    assert (cut.crop.seconds, cut.crop.average) == (2.5, "probabilities")
    new = np.setdiff1d(cut.rows, clean.rows)
    assert new.size == np.sum(shards.fold == 10) - len(clean.rows) > 0 and set(clean.rows) < set(cut.rows)
    assert not cut.truth[np.isin(cut.rows, new)].any()
    np.testing.assert_array_equal(cut.truth[np.isin(cut.rows, clean.rows)], clean.truth)
    assert cut.protocol is not None and "those without a label as negatives" in cut.protocol["note"]


def test_fg_clep_asks_by_the_plain_names_of_the_classes(shards: ShardSet) -> None:
    task = open_task("fgclep-v1:ptb-xl-super", shards)
    full = open_task("clean-v2:ptb-xl-super", shards).prompts
    assert task.prompts.codes == full.codes and task.prompts.digest != full.digest
    assert all(each.prompts == (each.name,) and not each.against for each in task.prompts.classes)
    assert task.protocol is not None and any(
        "does not say how signals are normalised" in each for each in task.protocol["deviations"]
    )


def test_the_ensemble_of_fg_clep_asks_by_each_name_alone_and_in_every_lead() -> None:
    plain, ensemble = (load_task(f"{name}:cpsc2018") for name in ("fgclep-v1", "fgclep-ens-v1"))
    assert plain.values["split"] == ensemble.values["split"], "the same records"
    assert (plain.words.combine, ensemble.words.combine) == ("mean", "max")
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    for each in ensemble.words.classes:
        assert each.prompts == (each.name, *(f"{each.name} in lead {lead}" for lead in leads)) and not each.against
    assert ensemble.words.codes == plain.words.codes and ensemble.words.digest != plain.words.digest


def test_the_benchmark_has_the_six_tasks_and_says_what_of_csn_is_another_thing() -> None:
    assert tasks_of("benchmark-v1") == tasks_of("clean-v2")
    csn = load_task("benchmark-v1:csn")
    assert csn.crop is not None and csn.crop.seconds == 2.5 and csn.values["unlabelled"] == "negative"
    told = " ".join(csn.deviations)
    assert "Chapman (42 classes) and Ningbo (68 classes) apart" in told and "which these are is unknown" in told
