"""Files as they come from other people's software: each is read exactly, or rejected with a reason that says what is
wrong; never read as something else.

What is odd or corrupted stands in the name or in the parameters of each test.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import wfdb

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError, RecordRejected
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord, SignalSpec
from cardialign.data_shards.signal.conform import conform
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.vocabularies.snomed import parse_dx
from tests.support.wfdb_files import ecg_counts

COUNTS = ecg_counts(1000, gain=1000)
MILLIVOLTS = COUNTS / 1000
RECORD_LINE = "r 12 500 1000"
LEADS = ",".join(STANDARD_LEADS)


def lines(
    gain: str = "1000(0)/mV", storage: str = "16", leads: Sequence[str] = STANDARD_LEADS, checksums: Sequence[int] = ()
) -> list[str]:
    """Signal lines of a header."""
    sums = checksums or [0] * len(leads)
    return [f"r.dat {storage} {gain} 16 0 0 {number} 0 {lead}" for lead, number in zip(leads, sums, strict=True)]


def wfdb_record(root: Path, header: Sequence[str], counts: np.ndarray = COUNTS, raw: bytes | None = None) -> Path:
    """A header of these lines, and counts int16 (L, T), or other bytes, as its signal file."""
    (root / "r.hea").write_text("\n".join(header) + "\n", encoding="utf-8")
    (root / "r.dat").write_bytes(np.ascontiguousarray(counts.T).astype("<i2").tobytes() if raw is None else raw)
    return root


def stored(counts: np.ndarray, storage: str) -> bytes:
    """counts int16 (L, T) as the bytes of format 16 or 61."""
    return np.ascontiguousarray(counts.T).astype("<i2" if storage == "16" else ">i2").tobytes()


def only(name: str, root: Path, **options: object) -> EcgRecord:
    source = open_source(name, root, **options)
    (entry,) = source.entries()
    return source.read(entry)


def csv_record(root: Path, text: str, encoding: str = "utf-8") -> EcgRecord:
    (root / "a.csv").write_bytes(text.encode(encoding))
    return only("arrays", root, sampling_rate=500)


def csv_rows(separator: str = ",") -> str:
    return "\n".join(separator.join(f"{value:.3f}" for value in row) for row in MILLIVOLTS.T)


# WFDB: how numbers are stored


@pytest.mark.parametrize(
    ("storage", "counts_per_mv"), [("16", 1000), ("80", 60), ("212", 800), ("24", 1000), ("32", 1000)]
)
def test_storage_formats_are_read_to_the_count(tmp_path: Path, storage: str, counts_per_mv: int) -> None:
    counts = np.rint(MILLIVOLTS * counts_per_mv).astype(np.int64)
    wfdb.wrsamp(
        "r", fs=500, units=["mV"] * 12, sig_name=list(STANDARD_LEADS), d_signal=np.ascontiguousarray(counts.T),
        fmt=[storage] * 12,
        adc_gain=[float(counts_per_mv)] * 12, baseline=[0] * 12, write_dir=str(tmp_path),
    )  # fmt: skip
    record = only("wfdb", tmp_path)
    np.testing.assert_array_equal(record.counts, counts)
    np.testing.assert_array_equal(record.gain, counts_per_mv)


@pytest.mark.parametrize(("storage", "dtype", "zero"), [("61", ">i2", 0), ("160", "<u2", 32768)])
def test_big_endian_and_offset_binary_counts(tmp_path: Path, storage: str, dtype: str, zero: int) -> None:
    raw = (COUNTS.T.astype(np.int64) + zero).astype(dtype).tobytes()
    np.testing.assert_array_equal(
        only("wfdb", wfdb_record(tmp_path, [RECORD_LINE, *lines(storage=storage)], raw=raw)).counts, COUNTS
    )


@pytest.mark.parametrize(
    "gain", ["1000.0(0)/mV", "1000/mV", "1000", "1e3/mv", "1/uV", "1.0(0)/µV", "1/μV", "1000000/V"]
)
def test_a_gain_in_any_spelling_and_unit_is_the_same_gain(tmp_path: Path, gain: str) -> None:
    record = only("wfdb", wfdb_record(tmp_path, [RECORD_LINE, *lines(gain)]))
    np.testing.assert_array_equal(record.counts, COUNTS)
    np.testing.assert_allclose(record.gain, 1000, rtol=1e-6)


def test_leads_in_volts_and_in_microvolts_side_by_side(tmp_path: Path) -> None:
    mixed = [*lines("1000000/V")[:6], *lines("1/uV")[6:]]
    np.testing.assert_allclose(
        only("wfdb", wfdb_record(tmp_path, [RECORD_LINE, *mixed])).millivolts(), MILLIVOLTS, rtol=1e-6
    )


def test_the_lowest_count_is_no_value_and_is_flagged(tmp_path: Path) -> None:
    counts = COUNTS.copy()
    counts[3, 10:20], counts[5] = -32768, -32768
    record = only("wfdb", wfdb_record(tmp_path, [RECORD_LINE, *lines()], counts))
    assert record.quality["non-finite"] == ("aVR", "aVF") and record.quality["flat"] == ("aVF",)
    assert record.lead_mask.tolist() == [lead != "aVF" for lead in STANDARD_LEADS] and record.counts.min() > -32768


# WFDB: headers


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_a_header_with_other_line_ends(tmp_path: Path, newline: str) -> None:
    header = newline.join([RECORD_LINE, *lines(), "# Age: 63", "# Sex: F", ""])
    wfdb_record(tmp_path, [])
    (tmp_path / "r.hea").write_bytes(header.encode())
    record = only("wfdb", tmp_path)
    np.testing.assert_array_equal(record.counts, COUNTS)
    assert (record.age_years, record.sex, record.lead_mask.all()) == (63.0, "female", True)


def test_a_latin_1_header_keeps_its_micro_volts_and_its_comments(tmp_path: Path) -> None:
    header = "\n".join([RECORD_LINE, *lines("1/µV"), "# Diagnose: Vorhofflimmern für Jörg", "# Age: 44"])
    wfdb_record(tmp_path, [])
    (tmp_path / "r.hea").write_bytes(header.encode("latin-1"))
    record = only("wfdb", tmp_path)
    np.testing.assert_array_equal(record.counts, COUNTS)
    assert set(record.gain.tolist()) == {1000.0} and record.age_years == 44


def test_lead_names_with_a_word_or_a_letter_before_them(tmp_path: Path) -> None:
    names = ["DI", "DII", "DIII", "Lead aVR", "ECG_aVL", "ecg avf", "Lead-V1", *STANDARD_LEADS[7:]]
    np.testing.assert_array_equal(
        only("wfdb", wfdb_record(tmp_path, [RECORD_LINE, *lines(leads=names)])).counts, COUNTS
    )


def test_a_lead_name_that_occurs_twice_is_rejected_and_a_channel_that_does_is_named(tmp_path: Path) -> None:
    names = ["II", "V1", "resp", "resp"]
    record = only("wfdb", wfdb_record(tmp_path, ["r 4 500 1000", *lines(leads=names)], COUNTS[:4]))
    assert record.extra["other_channels"] == ["resp", "resp"] and record.lead_mask.sum() == 2
    with pytest.raises(RecordRejected, match=r"unknown-leads.*'II' occurs more than once"):
        only("wfdb", wfdb_record(tmp_path, ["r 4 500 1000", *lines(leads=["II", "V1", "V2", "II"])], COUNTS[:4]))


@pytest.mark.parametrize("rate", ["0", "-500", "nan", "inf", "1e9", "0.5", "fast"])
def test_a_sampling_rate_that_is_that_of_no_ecg_is_rejected(tmp_path: Path, rate: str) -> None:
    with pytest.raises(RecordRejected, match=r"unreadable-header.*invalid record line"):
        only("wfdb", wfdb_record(tmp_path, [f"r 12 {rate} 1000", *lines()]))


@pytest.mark.parametrize(("rate", "seconds"), [(1000, 10), (100, 5), (257, 60), (128.5, 10)])
def test_any_rate_and_length_becomes_ten_seconds_at_500_hz(tmp_path: Path, rate: float, seconds: int) -> None:
    counts = ecg_counts(int(rate * seconds), gain=1000, rate=rate)
    record = only("wfdb", wfdb_record(tmp_path, [f"r 12 {rate} {counts.shape[1]}", *lines()], counts))
    conformed = conform(record, SignalSpec())
    assert (record.sampling_rate, conformed.samples, conformed.valid_samples) == (rate, 5000, min(seconds, 10) * 500)
    assert conformed.extra == {"original_sampling_rate": rate, "original_samples": counts.shape[1]}


# WFDB: header and signal file that do not belong together


def test_a_zero_length_record_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RecordRejected, match=r"no-signal.*r\.dat: 0 bytes"):
        only("wfdb", wfdb_record(tmp_path, ["r 12 500 0", *lines()], raw=b""))


def test_a_header_that_announces_more_samples_than_the_file_holds_is_rejected_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(RecordRejected, match=r"truncated-signal.*24000 bytes, expected 24024"):
        only("wfdb", wfdb_record(tmp_path, ["r 12 500 1001", *lines()]))


@pytest.mark.parametrize(("announced", "storage"), [("8 500 1000", "16"), ("6 500 1000", "61")])
def test_a_file_of_more_leads_than_its_header_announces_is_not_scrambled(
    tmp_path: Path, announced: str, storage: str
) -> None:
    leads = STANDARD_LEADS[: int(announced.split()[0])]
    with pytest.raises(
        RecordRejected,
        match=r"bad-format.*24000 bytes, but its header announces .* no checksums, and would hold 12 leads",
    ):
        only("wfdb", wfdb_record(tmp_path, [f"r {announced}", *lines(storage=storage, leads=leads)]))


@pytest.mark.parametrize(("storage", "samples"), [("16", 900), ("16", 500), ("61", 900)])
def test_the_rest_of_a_long_file_is_left_and_flagged_unless_checksums_differ(
    tmp_path: Path, storage: str, samples: int
) -> None:
    record = only(
        "wfdb", wfdb_record(tmp_path, [f"r 12 500 {samples}", *lines(storage=storage)], raw=stored(COUNTS, storage))
    )
    np.testing.assert_array_equal(record.counts, COUNTS[:, :samples])
    assert record.quality["surplus"] == STANDARD_LEADS
    with pytest.raises(
        RecordRejected, match=r"bad-format.*the checksums of the first of them differ \(lead I, II, III\)"
    ):
        only(
            "wfdb",
            wfdb_record(
                tmp_path, ["r 12 500 900", *lines(storage=storage, checksums=[7] * 12)], raw=stored(COUNTS, storage)
            ),
        )


def test_checksums_say_that_an_excerpt_is_the_record(tmp_path: Path) -> None:
    sums = COUNTS[:, :900].astype(np.int64).sum(axis=1)
    signed = [int(number) for number in sums.astype(np.int16)]  # as most software writes them
    record = only("wfdb", wfdb_record(tmp_path, ["r 12 500 900", *lines(checksums=signed)]))
    np.testing.assert_array_equal(record.counts, COUNTS[:, :900])
    assert "surplus" not in record.quality


@pytest.mark.parametrize("storage", ["16", "61"])
def test_a_flipped_bit_in_a_signal_file_is_flagged_by_the_checksum_of_its_lead_and_counted_by_the_build(
    tmp_path: Path, storage: str
) -> None:
    sums = COUNTS.astype(np.int64).sum(axis=1).tolist()
    raw = bytearray(stored(COUNTS, storage))
    header = [RECORD_LINE, *lines(storage=storage, checksums=sums)]
    assert "checksum" not in only("wfdb", wfdb_record(tmp_path, header, raw=bytes(raw))).quality
    raw[2 * (12 * 500 + 7)] ^= 4
    record = only("wfdb", wfdb_record(tmp_path, header, raw=bytes(raw)))
    assert record.quality["checksum"] == ("V2",) and record.lead_mask.all()
    report = build_shards(open_source("wfdb", tmp_path), tmp_path / "out", SetPlan(SignalSpec(500, 2)), workers=1)
    assert report.quality["checksum"] == 1


def test_zeros_after_the_last_sample_are_padding(tmp_path: Path) -> None:
    raw = np.ascontiguousarray(COUNTS.T).tobytes() + bytes(512)
    np.testing.assert_array_equal(only("wfdb", wfdb_record(tmp_path, [RECORD_LINE, *lines()], raw=raw)).counts, COUNTS)


def test_a_challenge_mat_whose_header_forgot_the_byte_offset_is_not_shifted_by_a_sample(tmp_path: Path) -> None:
    raw = bytes(range(1, 25)) + np.ascontiguousarray(COUNTS.T).tobytes()
    with pytest.raises(RecordRejected, match=r"bad-format.*24024 bytes, but its header announces 24000"):
        only(
            "wfdb",
            wfdb_record(
                tmp_path, [RECORD_LINE, *lines(checksums=COUNTS.astype(np.int64).sum(axis=1).tolist())], raw=raw
            ),
        )


@pytest.mark.parametrize("storage", ["16", "212"])
@pytest.mark.parametrize("file", ["../r.dat", "/etc/hostname"])
def test_a_signal_file_outside_the_folder_is_not_read_in_any_format(tmp_path: Path, storage: str, file: str) -> None:
    header = [RECORD_LINE, *(line.replace("r.dat", file) for line in lines(storage=storage))]
    with pytest.raises(RecordRejected, match=r"unreadable-header.*not a file name in the header's folder"):
        only("wfdb", wfdb_record(tmp_path, header))


# demographics and codes


@pytest.mark.parametrize(
    ("age", "years"), [("NaN", None), ("-1", None), ("300", 90.0), ("150", None), ("63Y", 63.0), ("0", 0.0)]
)
def test_ages_that_nobody_has_are_unknown(tmp_path: Path, age: str, years: float | None) -> None:
    wfdb_record(tmp_path, [RECORD_LINE, *lines(), f"#Age: {age}", "#Sex: Unknown", "#Dx: 426783006"])
    record = only("challenge", tmp_path)
    assert (record.age_years, record.sex) == (years, None)


def test_a_snomed_code_that_is_not_in_the_table_stays_a_label_without_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wfdb_record(tmp_path, [RECORD_LINE, *lines(), "#Dx: 426783006,999999999"])
    record = only("challenge", tmp_path)
    assert record.labels == {"snomed": ("426783006", "999999999"), "challenge": ("NSR",)} and record.statements == (
        "Sinus rhythm",
    )
    assert "999999999=1" in caplog.text


@pytest.mark.parametrize(
    "dx",
    [
        "426783006, 164889003",
        "426783006;164889003",
        "426783006 164889003",
        "[426783006, 164889003]",
        '"426783006","164889003"',
        "426783006.0,164889003.0",
        "426783006/164889003",
        "426783006 + 164889003",
        "Sinus rhythm (NSR); atrial fibrillation (AF)",
    ],
)
def test_codes_in_any_list_form_are_the_same_codes(dx: str) -> None:
    assert parse_dx(dx) == ("426783006", "164889003")


# plain arrays


def test_an_npz_without_a_sampling_rate_asks_for_it_and_takes_one_written_as_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS)
    with pytest.raises(
        RecordRejected, match=r"bad-format.*does not say its sampling rate: set the option sampling_rate"
    ):
        only("arrays", tmp_path)
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, fs="500")
    assert only("arrays", tmp_path).sampling_rate == 500


@pytest.mark.parametrize("rate", [np.nan, np.inf, -500.0, 1e7])
def test_a_sampling_rate_in_an_npz_that_is_that_of_no_ecg_is_rejected(tmp_path: Path, rate: float) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, fs=rate)
    with pytest.raises(RecordRejected, match=r"bad-format.*a\.npz: a sampling rate of"):
        only("arrays", tmp_path)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("separator", [",", ";", "\t", " ", ", "])
def test_a_csv_with_and_without_names_whatever_separates_its_numbers(
    tmp_path: Path, separator: str, head: bool
) -> None:
    text = (LEADS.replace(",", separator) + "\n" if head else "") + csv_rows(separator)
    np.testing.assert_array_equal(csv_record(tmp_path, text).counts, COUNTS)


@pytest.mark.parametrize(
    "text",
    [
        LEADS.replace(",", ";") + "\n" + csv_rows(";").replace(".", ","),  # decimal commas
        "# exported by a viewer\n\n" + LEADS + "\n" + csv_rows(),
        "\ufeff" + LEADS + "\r\n" + csv_rows().replace("\n", "\r\n"),
        LEADS + ",\n" + csv_rows().replace("\n", ",\n") + ",",
        LEADS + "\n" + csv_rows().replace("\n", ",\n") + ",",
        ",".join(f'"{lead}"' for lead in STANDARD_LEADS) + "\n" + csv_rows(),
    ],
    ids=[
        "decimal-comma",
        "comment-lines",
        "byte-order-mark",
        "comma-at-every-end",
        "comma-at-the-end-of-numbers",
        "quoted-names",
    ],
)
def test_csv_dialects_are_the_same_numbers(tmp_path: Path, text: str) -> None:
    record = csv_record(tmp_path, text)
    np.testing.assert_array_equal(record.counts, COUNTS)
    assert not record.extra and not record.quality


def test_a_csv_in_latin_1_is_read(tmp_path: Path) -> None:
    text = "Zeit (µs)," + LEADS + "\n" + "\n".join(f"{k},{row}" for k, row in enumerate(csv_rows().split("\n")))
    np.testing.assert_array_equal(csv_record(tmp_path, text, "latin-1").counts, COUNTS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LEADS + "\n" + ",".join(["Pa"] * 12) + "\n" + csv_rows(), "row 1 of column I holds 'Pa', expected a number"),
        (LEADS + "\n" + csv_rows() + "\n" + "0," * 11 + "lost", "row 1001 of column V6 holds 'lost'"),
        (
            LEADS + "\n" + "\n".join(f"{k},{row}" for k, row in enumerate(csv_rows().split("\n"))),
            "rows of 13 values under 12 names",
        ),
        ("time," + LEADS + "\n" + csv_rows(), "rows of 12 values under 13 names"),
        (LEADS.replace("II,III", "I,III") + "\n" + csv_rows(), "lead 'I' occurs more than once"),
        ("\n", "an empty file"),
        (LEADS + "\n", "bad-format"),
    ],
    ids=[
        "row-of-no-voltages",
        "word-at-the-end",
        "number-column-without-a-name",
        "name-without-a-column",
        "name-twice",
        "empty",
        "names-only",
    ],
)
def test_a_csv_that_leaves_a_doubt_is_rejected_with_the_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecordRejected, match=says):
        csv_record(tmp_path, text)


# tables


def test_a_gzipped_table_is_the_same_table(tmp_path: Path) -> None:
    wfdb_record(tmp_path, [RECORD_LINE, *lines()])
    table = tmp_path / "t.csv.gz"
    table.write_bytes(gzip.compress(b"id,text,years\r\nr,Sinus rhythm,54\r\n"))
    options = {"table": table, "key_column": "id", "report_column": "text", "age_column": "years"}
    record = only("wfdb", tmp_path, **options)
    assert (record.statements, record.age_years) == (("Sinus rhythm",), 54.0)
    table.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"t\.csv\.gz is not a readable CSV table"):
        only("wfdb", tmp_path, **options)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"id;text\nr;Sinus rhythm\n", "is separated by ';', not by commas: its columns are id, text"),
        ("id,text\nr,Rhythmus über 100\n".encode("latin-1"), "is not a readable CSV table.*UTF"),
        (b"id,text\nr,Sinus, rhythm\n", "Expected 2 columns, got 3"),
        (b"", "Empty CSV file"),
    ],
    ids=["semicolons", "latin-1", "comma-without-quotes", "empty"],
)
def test_a_table_that_is_no_csv_in_utf_8_is_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    wfdb_record(tmp_path, [RECORD_LINE, *lines()])
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"t\.csv .*{says}"):
        only("wfdb", tmp_path, table=tmp_path / "t.csv", key_column="id", report_column="text")


def test_a_paediatric_table_with_a_rate_that_is_none_loses_that_record_only(tmp_path: Path) -> None:
    for name in "abc":
        np.savez(tmp_path / f"{name}.npz", signal=MILLIVOLTS)
    rows = "".join(
        f"{name},{name}.npz,p,7,female,{rate}\n" for name, rate in (("a", "500"), ("b", "fast"), ("c", "NaN"))
    )
    (tmp_path / "records.csv").write_text("record_id,path,patient_id,age_years,sex,fs\n" + rows)
    source = open_source("zzu-pecg", tmp_path)
    first, second, third = source.entries()
    assert (
        source.read(first).sampling_rate == 500 and source.read(third).sampling_rate == 500
    )  # the rate of the published set
    with pytest.raises(RecordRejected, match=r"bad-format.*a sampling rate of nan Hz"):
        source.read(second)
