"""Folders of WFDB records and of plain arrays, their tables mapped by options; and the template for readers of one's
own."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.build.listing import write_listing
from cardialign.data_shards.errors import DataError, RecordRejected, UsageError
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import SOURCES, open_source
from cardialign.data_shards.sources.shared.patients import fold_of, patient_hash
from tests.support.wfdb_files import ecg_counts, write_record

TABLE = (
    "id,file,text,codes,person,years,gender,split\n"
    "r1,a/one.hea,Sinus rhythm; Normal ECG.,NORM|SR,7.0,54,1,3\n"
    "r2,b/two,,,8.0,16 mo,0,4\n"
)
COLUMNS = {
    "report_column": "text", "report_separator": ";", "labels_column": "codes", "label_set": "mine",
    "patient_column": "person",
    "age_column": "years", "sex_column": "gender", "sex_values": "0=male,1=female", "fold_column": "split",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    write_record(root / "a" / "one", ecg_counts(), comments=["Age: 40", "Sex: Male"])
    write_record(root / "b" / "two", ecg_counts(seed=1), comments=["Age: 41"])
    return root


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return path


def test_a_wfdb_folder_needs_no_table(folder: Path) -> None:
    source = open_source("wfdb", folder)
    records = [source.read(entry) for entry in source.entries()]
    assert [(r.key, r.age_years, r.sex, r.patient) for r in records] == [
        ("wfdb-one", 40.0, "male", patient_hash("one")), ("wfdb-two", 41.0, None, patient_hash("two"))
    ]  # fmt: skip
    assert records[0].fold == fold_of(patient_hash("one")) and records[0].statements == ()


def test_one_report_in_two_spellings_is_one_report(folder: Path, tmp_path: Path) -> None:
    """The same words as a Mac and as another machine write them, with a byte order mark and a zero-width space."""
    texts = {
        "one": "\ufeffVorhofflimmern; a\u0308ltere La\u0308sion\u200b",
        "two": "Vorhofflimmern; \u00e4ltere L\u00e4sion",
    }
    (tmp_path / "t.csv").write_text("id,text\n" + "".join(f"{it},{text}\n" for it, text in texts.items()), "utf-8")
    mapping = {"table": tmp_path / "t.csv", "key_column": "id", "report_column": "text", "report_separator": ";"}
    build_shards(open_source("wfdb", folder, **mapping), tmp_path / "shards", SetPlan(SignalSpec(500, 10)), workers=1)
    built = ShardSet.open(tmp_path / "shards")
    assert len(built.reports) == 1 and {built.read_record(row).statements for row in range(2)} == {
        ("Vorhofflimmern", "\u00e4ltere L\u00e4sion")
    }


def test_an_empty_cell_takes_nothing_from_what_the_header_says(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,age,sex\none,,\ntwo,,F\n")
    options = {"key_column": "id", "age_column": "age", "sex_column": "sex"}
    source = open_source("wfdb", folder, table=tmp_path / "t.csv", **options)
    records = [source.read(entry) for entry in source.entries()]
    assert [(each.age_years, each.sex) for each in records] == [(40.0, "male"), (41.0, "female")]


@pytest.mark.parametrize(
    ("cells", "person", "told"),
    [(",n/a", (40.0, "male"), ""), ("44,1", (44.0, None), "unknown sex source=wfdb values={'1': 1}"),
     ("old,M", (None, "male"), "unknown age source=wfdb rows=1 of=1, left out: 'old' x 1")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["key_column", "path_column"])
def test_a_cell_that_says_what_nobody_understands_leaves_open_what_the_header_says(
    folder: Path, tmp_path: Path, cells: str, person: tuple, told: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether 1 is a man, as the header of `one` says, or a woman of whom it is not the header, nobody can tell."""
    (tmp_path / "t.csv").write_text(f"id,age,sex\n{'a/' * (where == 'path_column')}one,{cells}\n")
    options = {where: "id", "age_column": "age", "sex_column": "sex", "min_matched": 0}
    source = open_source("wfdb", folder, table=tmp_path / "t.csv", **options)
    record = source.read(next(entry for entry in source.entries() if entry.path == "a/one"))
    list(source.entries())
    assert (record.age_years, record.sex) == person and told in caplog.text


def test_outside_labels_in_a_label_set_that_the_table_has_are_told_where_they_differ(
    folder: Path, table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for labels, told in (("AF", "table count for 1 records, 1 of which it labels otherwise, and 0 keep"), ("NORM", "")):
        rows = "one,mine,SR\n" * (labels == "NORM")
        (tmp_path / "labels.csv").write_text(f"record,label_set,label\none,mine,{labels}\n{rows}")
        named = TABLE.replace("r1,a/one.hea", "one,a/one.hea").replace("r2,b/two", "two,b/two")
        table.write_text(named)
        caplog.clear()
        options = {"key_column": "id", "path_column": "file", **COLUMNS}
        source = open_source("wfdb", folder, table=table, labels=tmp_path / "labels.csv", **options)
        first = source.read(next(iter(source.entries())))
        list(source.entries())
        assert first.labels["mine"] == (("AF",) if labels == "AF" else ("NORM", "SR"))
        assert ("the set has the label set 'mine' itself" in caplog.text) == bool(told) and told in caplog.text


@pytest.mark.parametrize(("where", "names"), [("key_column", ("one", "two")), ("path_column", ("a/one", "b/two"))])
def test_rows_of_other_persons_than_their_headers_are_counted(
    folder: Path, tmp_path: Path, where: str, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    for ages, sexes, says in ((("40", "42"), "mf", ""), (("62", "41"), "ff", "of 1 (age) and 1 (sex) of 2 records")):
        rows = "".join(f"{name},{age},{sex}\n" for name, age, sex in zip(names, ages, sexes, strict=True))
        (tmp_path / "t.csv").write_text(f"id,age,sex\n{rows}")
        caplog.clear()
        options = {where: "id", "age_column": "age", "sex_column": "sex"}
        list(open_source("wfdb", folder, table=tmp_path / "t.csv", **options).entries())
        assert ("says otherwise than the headers" in caplog.text) == bool(says) and says in caplog.text


@pytest.mark.parametrize("found", ["path", "name"])
def test_columns_mean_what_the_options_say(folder: Path, table: Path, found: str) -> None:
    if found == "name":
        table.write_text(TABLE.replace("r1,", "one,").replace("r2,", "two,"))
    where = {"path_column": "file", "key_column": "id"} if found == "path" else {"key_column": "id"}
    source = open_source("wfdb", folder, table=table, **where, **COLUMNS)
    first, second = (source.read(entry) for entry in source.entries())
    assert (first.key, second.key) == (("wfdb-r1", "wfdb-r2") if found == "path" else ("wfdb-one", "wfdb-two"))
    assert first.statements == ("Sinus rhythm", "Normal ECG") and second.statements == ()
    assert first.labels == {"mine": ("NORM", "SR")} and second.labels == {}
    assert (first.patient, first.age_years, first.sex, first.fold) == (patient_hash("7"), 54.0, "female", 3)
    assert (second.patient, second.age_years, second.sex, second.fold) == (
        patient_hash("8"),
        pytest.approx(16 / 12),
        "male",
        4,
    )
    assert source.label_sets == ("mine",) and str(table.parent) not in str(source.describe())


def test_a_record_without_a_patient_is_nobody_elses(folder: Path, table: Path) -> None:
    table.write_text("id,person\none,two\ntwo,\n")
    first, second = open_source("wfdb", folder, table=table, key_column="id", patient_column="person").entries()
    assert first.meta["patient"] == patient_hash("two") != second.meta["patient"]


def test_rows_and_files_without_each_other_are_told_and_numbers_are_no_sexes(
    folder: Path, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table.write_text("id,gender\none,1\nnobody,0\n")
    source = open_source("wfdb", folder, table=table, key_column="id", sex_column="gender")
    assert [entry.meta.get("sex") for entry in source.entries()] == [None, None]
    assert (
        "1 of 2 records have a row in table.csv" in caplog.text
        and "rows without a file=1 of=2: 'nobody'" in caplog.text
    )
    assert "sex_values" in caplog.text
    table.write_text("id\nnobody\n")
    with pytest.raises(
        DataError, match=r"0 of 2 records have a row in table\.csv.*'a/one', 'b/two'.*named like 'nobody'"
    ):
        list(open_source("wfdb", folder, table=table, key_column="id").entries())


def test_a_column_that_is_not_there_is_told_by_its_option_and_the_nearest_one(folder: Path, table: Path) -> None:
    for columns, told in (
        ({"path_column": "fiel"}, "path_column is 'fiel': .*table.csv has no column 'fiel'.*did you mean 'file'"),
        ({"path_column": "file", "labels_column": "codes,tex"}, "labels_column is 'codes,tex'.*'tex'.*mean 'text'"),
    ):
        with pytest.raises(UsageError, match=told) as caught:
            list(open_source("wfdb", folder, table=table, **columns).entries())
        assert "its columns are id, file, text" in caught.value.remedy


def test_a_table_that_lies_there_and_is_not_named_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "mine.csv").write_text("id\none\n")
    assert len(list(open_source("wfdb", folder).entries())) == 2 and "holds 'mine.csv': --table" in caplog.text
    caplog.clear()
    list(open_source("wfdb", folder, table=folder / "mine.csv", key_column="id").entries())
    assert "--table" not in caplog.text


@pytest.mark.parametrize(
    ("options", "says"),
    [({"report_column": "text"}, "no key"), ({"key_column": "id", "sex_values": "0:male"}, "0=male,1=female"),
     ({"key_column": "id", "age_unit": "moons"}, "age_unit is 'moons'"), ({"key_column": "id", "label_set": "a:b"},
     "label_set is 'a:b'")],
)  # fmt: skip
def test_a_mapping_that_cannot_work_is_refused_at_once(
    folder: Path, table: Path, options: dict[str, str], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        open_source("wfdb", folder, table=table, **options)
    with pytest.raises(UsageError, match="without a table"):
        open_source("wfdb", folder, key_column="id")


@pytest.mark.parametrize(
    ("text", "says"),
    [("id,file\nr1,../x\n", "does not lie under"), ("id,file\nr1,/etc/x\n", "does not lie under"), ("id,file\nr1,\n",
    "row 1 has nothing in 'file'"),
     ("id,file\nr1,a/one\nr1,b/two\n", "'wfdb-r1' occurs more than once: a/one .* and b/two"), ("id\nr1\n",
     "lacks the columns file")],
)  # fmt: skip
def test_rows_that_point_outside_nowhere_or_twice_are_named(
    folder: Path, table: Path, tmp_path: Path, text: str, says: str
) -> None:
    table.write_text(text)
    with pytest.raises(DataError, match=says):
        write_listing(
            open_source("wfdb", folder, table=table, key_column="id", path_column="file"), tmp_path / "listing", 10
        )


def test_segments_are_part_of_their_record(folder: Path) -> None:
    (folder / "a" / "long.hea").write_text("long/2 12 500 2000\none 1000\nother 1000\n")
    write_record(folder / "a" / "other", ecg_counts(seed=2))
    source = open_source("wfdb", folder)
    entries = list(source.entries())
    assert [entry.path for entry in entries] == ["a/long", "b/two"]
    assert source.read(entries[0]).samples == 2000


@pytest.mark.parametrize(
    "broken",
    ["long/3 12 500 2000\nlong_0001 1000\nlong_0002 1000\n", "long/2 12 500 2000\nlong_0001 1000\nlong_0002 ten\n",
     "long/2 12 500 20", "", "\0\0", "long/2 twelve 500 2000\nfirst 1000\nsecond 1000\n"],
    ids=["fewer", "no length", "cut", "empty", "zeros", "other names"],
)  # fmt: skip
def test_segments_of_a_record_whose_header_is_broken_are_no_records_of_their_own(
    folder: Path, tmp_path: Path, broken: str
) -> None:
    names = ("first", "second") if "first" in broken else ("long_0001", "long_0002", "long_layout")
    for name in names:
        write_record(folder / "a" / name, ecg_counts(seed=3))
    (folder / "a" / "long.hea").write_text(broken)
    write_record(folder / "b" / "visit_2021", ecg_counts(seed=4))
    write_record(folder / "b" / "visit", ecg_counts(seed=5))
    made = build_shards(open_source("wfdb", folder), tmp_path / "out", SetPlan(), workers=1)
    assert made.rejected == {"unreadable-header": 1}
    assert made.records == 4, "the others, and two whose names only look like record and segment"


def test_arrays_of_every_kind_give_the_same_counts(tmp_path: Path) -> None:
    counts = ecg_counts(gain=1000)
    millivolts = counts / 1000
    np.save(tmp_path / "npy.npy", millivolts.T)
    np.savez(tmp_path / "npz.npz", ecg=millivolts.astype(np.float32), fs=500)
    np.savetxt(tmp_path / "csv.csv", millivolts.T, delimiter=",", fmt="%.6f")
    names = "time," + ",".join(reversed(STANDARD_LEADS))
    timed = np.column_stack((np.arange(1000) / 500, millivolts.T[:, ::-1]))
    np.savetxt(tmp_path / "named.csv", timed, delimiter=",", fmt="%.6f", header=names, comments="")
    source = open_source("npz", tmp_path, sampling_rate="500")  # another word for arrays
    records = {entry.key: source.read(entry) for entry in source.entries()}
    assert list(records) == ["arrays-csv", "arrays-named", "arrays-npy", "arrays-npz"]
    for record in records.values():
        np.testing.assert_array_equal(record.counts, counts)
        assert record.sampling_rate == 500.0 and set(record.gain.tolist()) == {1000.0}
    assert records["arrays-named"].extra["other_channels"] == ["time"]


@pytest.mark.parametrize(
    ("unit", "gain", "factor"), [("uV", None, 1000.0), ("V", None, 0.001), ("counts", "200", 200.0)]
)
def test_units_are_brought_to_millivolts_and_counts_are_kept(
    tmp_path: Path, unit: str, gain: str | None, factor: float
) -> None:
    counts = ecg_counts(gain=200)
    stored = counts if unit == "counts" else counts / 200 * factor
    np.save(tmp_path / "a.npy", stored)
    source = open_source("arrays", tmp_path, sampling_rate=500, unit=unit, gain=gain)
    record = source.read(next(iter(source.entries())))
    np.testing.assert_allclose(record.millivolts(), counts / 200, atol=6e-4)
    if unit == "counts":
        np.testing.assert_array_equal(record.counts, counts)


def test_fewer_leads_in_another_order_are_masked_and_sorted(tmp_path: Path) -> None:
    counts = ecg_counts(gain=1000, leads=2)
    np.save(tmp_path / "a.npy", counts / 1000)
    source = open_source("arrays", tmp_path, sampling_rate=500, leads="v5, ii")
    record = source.read(next(iter(source.entries())))
    np.testing.assert_array_equal(record.counts[[10, 1]], counts)
    assert record.lead_mask.sum() == 2


@pytest.mark.parametrize(
    ("array", "options", "says"),
    [(np.zeros((12, 12)), {"sampling_rate": 500}, "set the option orientation"), (np.zeros((3, 50)),
    {"sampling_rate": 500}, "of 12 leads"),
     (np.zeros((12, 50)), {}, "set the option sampling_rate"), (np.zeros(50), {"sampling_rate": 500},
     "expected numbers"),
     (np.array([[None]]), {"sampling_rate": 500}, "bad-format"), (np.full((12, 50), 1e300), {"sampling_rate": 500},
     "no voltages"),
     (ecg_counts() / 2e9, {"sampling_rate": 500}, "less than one of 1000 counts per mV; is the unit mV"),
     (np.full((12, 50), np.nan), {"sampling_rate": 500}, "no-signal")],
)  # fmt: skip
def test_arrays_that_leave_a_doubt_are_rejected_with_the_way_out(
    tmp_path: Path, array: np.ndarray, options: dict, says: str
) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    source = open_source("arrays", tmp_path, **options)
    with pytest.raises(RecordRejected, match=says):
        source.read(next(iter(source.entries())))


def test_an_npz_with_two_signals_asks_which(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", raw=ecg_counts() / 200, filtered=ecg_counts(seed=1) / 200)
    source = open_source("arrays", tmp_path, sampling_rate=500)
    with pytest.raises(RecordRejected, match=r"name the array.*option member"):
        source.read(next(iter(source.entries())))
    chosen = open_source("arrays", tmp_path, sampling_rate=500, member="filtered")
    assert chosen.read(next(iter(chosen.entries()))).samples == 1000


@pytest.mark.parametrize("options", [{"unit": "furlong"}, {"orientation": "sideways"}])
def test_options_of_arrays_that_cannot_work_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        open_source("arrays", tmp_path, **options)


def test_the_template_is_a_reader_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for name in ("a", "b"):
        np.save(root / f"{name}.npy", ecg_counts(gain=1000) / 1000)
    (root / "records.csv").write_text(
        "record,patient,age,sex,report\na,1,54,F,Sinus rhythm.|Normal ECG\nb,2,,M,\nc,2,60,M,\n"
    )
    monkeypatch.setitem(SOURCES.own, "template", "cardialign.data_shards.sources.template:Template")
    report = build_shards(
        open_source("template", root, salt="s"), tmp_path / "out", SetPlan(SignalSpec(500, 2)), workers=1
    )
    assert (report.records, report.patients, report.rejected) == (2, 2, {"missing-file": 1})
    record = ShardSet.open(tmp_path / "out").read_record(0)
    np.testing.assert_array_equal(record.counts, ecg_counts(gain=1000))
    assert (record.key, record.age_years, record.sex, record.statements) == (
        "template-a",
        54.0,
        "female",
        ("Sinus rhythm", "Normal ECG"),
    )


def test_a_mapped_real_ptb_xl_agrees_with_its_own_reader(real_data: Path) -> None:
    root = real_data / "ptb-xl"
    mapped = open_source(
        "wfdb", root, table=root / "ptbxl_database.csv", key_column="ecg_id", path_column="filename_hr",
        patient_column="patient_id",
        age_column="age", sex_column="sex", sex_values="0=male,1=female", fold_column="strat_fold",
        report_column="report", time_column="recording_date",
    )  # fmt: skip
    own = open_source("ptb-xl", root, report="original")
    entries = {entry.path: entry for entry in own.entries() if (root / f"{entry.path}.hea").is_file()}
    pairs = [
        (mapped.read(entry), own.read(entries[entry.path])) for entry in mapped.entries() if entry.path in entries
    ][:40]
    assert len(pairs) == 40
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours.counts, theirs.counts)
        for name in ("patient", "age_years", "sex", "fold", "statements", "acquired", "sampling_rate"):
            assert getattr(ours, name) == getattr(theirs, name), (theirs.key, name)


def mapped(root: Path, header: str, cells: list[str], **options: str) -> list[EcgRecord]:
    """Arrays with a table of two columns, read."""
    root.mkdir(exist_ok=True)
    with (root.parent / "own.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["name", header], *([f"r{k}", cell] for k, cell in enumerate(cells))])
    for k in range(len(cells)):
        np.save(root / f"r{k}.npy", ecg_counts(1000, gain=1000) / 1000)
    source = open_source("arrays", root, sampling_rate=500, table=root.parent / "own.csv", key_column="name", **options)
    return [source.read(entry) for entry in source.entries()]


@pytest.mark.parametrize("blank", ["", "nan", "NaN", "NULL", "None", "<NA>", "N/A", "NA", "null"])
def test_a_word_for_an_empty_field_is_one_in_every_column(
    tmp_path: Path, blank: str, caplog: pytest.LogCaptureFixture
) -> None:
    (_, silent) = mapped(tmp_path / "a", "it", ["AF", blank], report_column="it", labels_column="it")
    assert silent.statements == () and silent.labels == {}
    caplog.clear()
    (_, one, other) = mapped(tmp_path / "b", "it", ["p", blank, blank], patient_column="it")
    assert one.patient != other.patient, "two patients without an id are not one"
    assert "the table names no patient for 2 of 3 records" in caplog.text


@pytest.mark.parametrize(
    ("cells", "given", "seen"),
    [(["A;B", "A", "B;C"], "|", "';' in 2, as in 'A;B'"), (["A, B", "A"], "|", "',' in 1"),
     (["['A', 'B']", "['A']"], "|", "',' in 1"), (["A|B", "A"], ";", r"'\|' in 1"), (["A/B"], "|", "'/' in 1"),
     (["A\tB"], "\\t", r"'\\t' in 1"), (["A\nB"], "|", r"'\\n' in 1")],
)  # fmt: skip
def test_labels_that_another_mark_separates_are_told(
    tmp_path: Path, cells: list[str], given: str, seen: str, caplog: pytest.LogCaptureFixture
) -> None:
    mapped(tmp_path / "a", "it", cells, labels_column="it", label_separator=given)
    assert re.search(f"separator source=arrays of=labels: .* in none of {len(cells)} cells, {seen}", caplog.text)
    assert "set label_separator" in caplog.text


def test_cells_with_other_marks_than_the_rest_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mapped(tmp_path / "a", "it", ["AF|SR", "MI;AF", "NORM,AF", "infarction, old"], labels_column="it")
    assert "'|' parts the labels of 1 cells; 2 others without it look like several labels" in caplog.text
    assert "'MI;AF' x 1, 'NORM,AF' x 1" in caplog.text and "infarction" not in caplog.text


def test_a_separator_that_fits_somewhere_and_plain_text_need_no_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mapped(tmp_path / "a", "it", ["A|B, left", "A; old", "C"], labels_column="it")
    mapped(tmp_path / "b", "it", ["Sinus rhythm; normal, old", "AF"], report_column="it")
    assert "separator" not in caplog.text
    mapped(tmp_path / "c", "it", ["Sinus rhythm|Normal ECG"], report_column="it")
    assert "of=reports: a separator stands in none of 1 cells, '|' in 1" in caplog.text
    mapped(tmp_path / "d", "it", ["Sinus rhythm\nNormal ECG", "AF"], report_column="it")
    assert r"of=reports: a separator stands in none of 2 cells, '\n' in 1" in caplog.text, "a cell with lines in it"


def test_ages_and_times_that_are_not_understood_are_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = mapped(tmp_path / "a", "it", ["18250", "54", "abc", ""], age_column="it")
    assert [record.age_years for record in records] == [None, 54, None, None]
    assert "unknown age source=arrays rows=2 of=4, left out: '18250' x 1, 'abc' x 1" in caplog.text
    records = mapped(tmp_path / "b", "it", ["6 May 2020", "2020-05-06 07:08:09", "13/06/2020"], time_column="it")
    assert [record.acquired for record in records] == [None, "2020-05-06T07:08:09", None]
    assert "unknown time source=arrays rows=2 of=3" in caplog.text
    assert "read are times that begin with the year" in caplog.text and "16 mo" in caplog.text


def test_one_value_of_the_sex_column_has_one_meaning(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gives '0' two meanings"):
        mapped(tmp_path / "a", "it", ["0"], sex_column="it", sex_values="0=male,0=female")


def test_a_record_that_is_its_own_segment_is_rejected_and_not_lost(folder: Path, tmp_path: Path) -> None:
    (folder / "loop.hea").write_text("loop/1 12 500 2500\nloop 2500\n")
    summary = build_shards(open_source("wfdb", folder), tmp_path / "out", SetPlan(), workers=1)
    assert summary.records == 2 and sum(summary.rejected.values()) == 1


def test_signals_that_differ_from_their_headers_checksums_are_told_at_the_end_of_a_build(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_shards(open_source("wfdb", folder), tmp_path / "fine", SetPlan(), workers=1)
    assert "checksum" not in caplog.text
    signal = folder / "b" / "two.dat"
    signal.write_bytes(np.fromfile(signal, "<i2").astype(">i2").tobytes())
    build_shards(open_source("wfdb", folder), tmp_path / "swapped", SetPlan(), workers=1)
    assert "checksum records=1 of=2: not the numbers" in caplog.text


def test_labels_of_another_patient_reject_the_record_and_those_of_its_own_are_read(
    folder: Path, table: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    both = ["wfdb-one", "wfdb-two"]
    for people, rejected in ((("7", "008"), []), (("7", "9"), both[1:]), (("", ""), []), (("8", "7"), both)):
        rows = [f"{name},{person},x,AF\n" for name, person in zip(("one", "two"), people, strict=True)]
        labels.write_text("record,Patient_ID,label_set,label\n" + "".join(rows))
        source = open_source("wfdb", folder, table=table, path_column="file", labels=labels, **COLUMNS)
        refused = []
        for entry in source.entries():
            try:
                assert source.read(entry).labels["x"] == ("AF",)
            except RecordRejected as error:
                refused.append((entry.key, error.reason, "the table of labels to" in error.detail))
        assert refused == [(key, "bad-metadata", True) for key in rejected]
