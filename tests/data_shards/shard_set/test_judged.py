"""What a manifest and a bank's description say is data: judged when it is read, from a folder and a URL alike, before a
name is opened, a digest is believed or memory is taken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.data_shards.checks.verify import verify
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.locations import INDIRECT, url_of
from cardialign.data_shards.shard_set.cache import ShardCache
from cardialign.data_shards.shard_set.index import IndexFile
from cardialign.data_shards.shard_set.layout import INDEX, MANIFEST, REPORTS, content_fingerprint, spec_of
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.signal.codec import MAX_SAMPLES
from cardialign.data_shards.text.bank import TextBank, build_text_bank
from tests.support.hashing_encoder import HashingEncoder

DEEP = b"[" * 100_000 + b"]" * 100_000


def opened_both_ways(folder: Path, tmp_path: Path) -> list[str]:
    """What opening the folder, and the same behind a URL, say."""
    said = []
    for place in (folder, f"file://{folder}"):
        with pytest.raises(DataError) as caught:
            ShardSet.open(place, ShardCache(tmp_path / "cache", 10**9))
        said.append(caught.value.problem.partition(MANIFEST)[2])
    return said


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, and make its fingerprint follow: only what it says can give it away."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    with suppress(KeyError, TypeError, AttributeError, ValueError):  # what has none is judged before it is asked for
        manifest["fingerprint"] = content_fingerprint(spec_of(manifest), manifest["codec"], manifest["shards"])
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "name",
    ["../outside.tar", "/etc/passwd", "a/shard-000000.tar", "..", ".", "", "shard-\0.tar", "shard-\n.tar",
     "..\\shard-000000.tar", "manifest.json", ".shard-000000.tar.lock", 7, None, ["shard-000000.tar"],
     "shard-" + "0" * 300 + ".tar", "shard-000001.tar"],
)  # fmt: skip
def test_the_name_of_a_shard_is_that_of_a_file_in_the_folder(set_copy: Path, tmp_path: Path, name: object) -> None:
    changed(set_copy, lambda manifest: manifest["shards"][0].update(name=name))
    folder, url = opened_both_ways(set_copy, tmp_path)
    assert folder == url and ("'name' is" in folder or "shard-000001.tar is listed twice" in folder)
    with pytest.raises(DataError, match="is damaged"):
        verify(set_copy)


@pytest.mark.parametrize("digest", ["/tmp/elsewhere", "../x", "d" * 63, "D" * 64, "", None, 5, "g" * 64, ["d" * 64]])
@pytest.mark.parametrize("where", ["shard", INDEX, REPORTS, "rejects.csv", "fingerprint"])
def test_a_digest_is_64_hexadecimal_digits_and_never_a_path(
    set_copy: Path, tmp_path: Path, where: str, digest: object
) -> None:
    manifest = json.loads((set_copy / MANIFEST).read_text())
    if where == "shard":
        manifest["shards"][1]["sha256"] = digest
    elif where == "fingerprint":
        manifest[where] = digest
    else:
        manifest["tables"][where] = digest
    (set_copy / MANIFEST).write_text(json.dumps(manifest))
    folder, url = opened_both_ways(set_copy, tmp_path)
    assert folder == url and "a sha256 in 64 hexadecimal digits" in folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["counts"].update(records=-1), "'records' is -1"),
        (lambda m: m["counts"].update(records="88"), "'records' is '88'"),
        (lambda m: m["counts"].update(records=88.0), "'records' is 88.0"),
        (lambda m: m["counts"].update(records=True), "'records' is True"),
        (lambda m: m["counts"].update(records=10**30), "more than 64 bits"),
        (lambda m: m["counts"].update(reports=None), "'reports' is None"),
        (lambda m: m["counts"].update(rejected={"bad-format": "many"}), "'bad-format' is 'many'"),
        (lambda m: m["counts"].update(quality=[1]), "'quality' is a list"),
        (lambda m: m["shards"][0].update(bytes=-5), "'bytes' is -5"),
        (lambda m: m["shards"][0].update(records=1.5), "'records' is 1.5"),
        (lambda m: m["shards"].append("shard-000009.tar"), "should stand there is 'shard-000009.tar'"),
        (lambda m: m.update(shards={}), "'shards' is an object"),
        (lambda m: m["spec"].update(sampling_rate=float("nan")), "'sampling_rate' is nan"),
        (lambda m: m["spec"].update(sampling_rate=float("inf")), "'sampling_rate' is inf"),
        (lambda m: m["spec"].update(seconds=-1), "'seconds' is -1"),
        (lambda m: m["spec"].update(seconds=MAX_SAMPLES, samples=500 * MAX_SAMPLES), "'samples' is 8388608000"),
        (lambda m: m["spec"].update(samples=499), "rate and seconds give another number"),
        (lambda m: m["spec"].update(leads=m["spec"]["leads"][::-1]), "'leads' is "),
        (lambda m: m["spec"].update(unit="uV"), "'unit' is 'uV'"),
        (lambda m: m["codec"].update(version="1"), "'version' is '1'"),
        (lambda m: m.update(source="here"), "'source' is 'here'"),
        (lambda m: m.update(schema_version=True), "'schema_version' is True"),
        (lambda m: m.update(schema_version=1.0), "'schema_version' is 1.0"),
    ],
)
def test_counts_and_sizes_are_numbers_that_can_be_one(
    set_copy: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    changed(set_copy, change)
    folder, url = opened_both_ways(set_copy, tmp_path)
    assert folder == url and words in folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (
            "leads",
            ["I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6"],
        ),  # of MIMIC-IV-ECG
        ("leads", ["I", "II", "V1"]),
        ("leads", None),
        ("unit", "uV"),
        ("unit", 5),
    ],
)
def test_a_set_whose_manifest_declares_other_leads_or_another_unit_is_not_read_as_ours(
    set_copy: Path, tmp_path: Path, name: str, value: object
) -> None:
    changed(set_copy, lambda manifest: manifest["spec"].update({name: value}))
    folder, url = opened_both_ways(set_copy, tmp_path)
    assert folder == url and f"'{name}' is" in folder and "this software reads" in folder


@pytest.mark.parametrize("text", [DEEP, b"[]", b"null", b"\xff\xfe{}", b'{"a": ' + b"9" * 5000 + b"}", b""])
def test_a_manifest_that_is_no_manifest_is_a_sentence(set_copy: Path, tmp_path: Path, text: bytes) -> None:
    (set_copy / MANIFEST).write_bytes(text)
    folder, url = opened_both_ways(set_copy, tmp_path)
    assert folder == url and folder.startswith(" is damaged: ")


def test_a_fingerprint_that_does_not_follow_from_the_shards_opens_no_set(set_copy: Path) -> None:
    manifest = json.loads((set_copy / MANIFEST).read_text())
    (set_copy / MANIFEST).write_text(json.dumps(manifest | {"fingerprint": "0" * 64}))
    with pytest.raises(DataError, match="was changed by hand: its fingerprint does not follow"):
        ShardSet.open(set_copy)


@pytest.mark.parametrize("name", [MANIFEST, INDEX, REPORTS, "text_bank/x/bank.json"])
def test_a_pipe_in_the_place_of_a_file_holds_up_nobody(set_copy: Path, name: str) -> None:
    (set_copy / name).parent.mkdir(parents=True, exist_ok=True)
    (set_copy / name).unlink(missing_ok=True)
    os.mkfifo(set_copy / name)

    def use() -> None:
        TextBank.open(set_copy) if "bank" in name else ShardSet.open(set_copy).reports

    with pytest.raises(DataError, match="no regular file"):
        use()
    if name != MANIFEST:
        assert any("regular file" in problem for problem in verify(set_copy, quick=True).problems)


def test_an_index_is_kept_under_what_it_holds_not_under_what_a_manifest_says(
    small_set: ShardSet, set_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that names the digest of another one's index changes nothing that the other one reads."""
    import pyarrow.parquet as pq

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    honest = small_set.manifest["tables"][INDEX]
    table = pq.read_table(set_copy / INDEX)
    place = table.schema.get_field_index("offset")
    pq.write_table(table.set_column(place, table.schema.field(place), [[999] * len(table)]), set_copy / INDEX)
    with pytest.raises(DataError, match="is not the one that this set was built with"):
        IndexFile(set_copy / INDEX, honest, 0).column("offset", np.int64)
    column = IndexFile(small_set.path / INDEX, honest, 0).column("offset", np.int64)
    assert column.tolist() == small_set.offset.tolist()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("cardialign-index")] == [
        f"cardialign-index-{os.getuid()}"
    ]


@pytest.mark.parametrize("at", [-1, 200])
def test_a_laid_down_column_with_a_flipped_bit_is_laid_down_again(
    small_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    digest = small_set.manifest["tables"][INDEX]
    path = Path(IndexFile(small_set.path / INDEX, digest, 0).column("offset", np.int64).filename)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    again = IndexFile(small_set.path / INDEX, digest, 0).column("offset", np.int64)
    assert again.tolist() == small_set.offset.tolist()


@pytest.mark.parametrize("name", [INDEX, REPORTS])
def test_a_table_with_a_flipped_bit_opens_no_set_though_it_can_be_read(set_copy: Path, name: str) -> None:
    """A byte that no page checksum covers: a letter of the table's own metadata."""
    content = bytearray((set_copy / name).read_bytes())
    content[-60] ^= 1
    (set_copy / name).write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{name} is not the one that this set was built with: its sha256 is"
    ) as caught:
        ShardSet.open(set_copy).reports  # noqa: B018
    assert "shards verify" in caught.value.remedy


@pytest.mark.parametrize(
    "url",
    ["pipe:touch x", "PIPE:touch x", " pipe:touch x", "pipe://touch x", "simplecache::pipe://x", "zip://::pipe:touch x",
     "zip://::file:///a/set.zip", "reference://::file:///a/refs.json", "filecache::s3://bucket/set", "zip://a::b::s3://c",
     "s3://bucket/set::zip://x", "zip:/::file:/a/set.zip", "ZIP://a", *(f"{each}://a" for each in sorted(INDIRECT))],
)  # fmt: skip
def test_what_names_no_place_of_its_own_is_refused_by_name(url: str) -> None:
    with pytest.raises(DataError) as caught:
        url_of(url)
    assert repr(url) in caught.value.problem and "s3://bucket/set" in caught.value.remedy


def test_places_that_look_odd_are_still_places(tmp_path: Path) -> None:
    assert url_of("http://[::1]:8080/set") == "http://[::1]:8080/set"
    assert url_of(Path("http://[2001:db8::7]/set")) == "http://[2001:db8::7]/set"
    assert url_of("S3://bucket/set") == "s3://bucket/set"
    (tmp_path / "a::b").mkdir()
    assert url_of(tmp_path / "a::b") is None
    with pytest.raises(UserError, match="xyz://bucket/set: protocol xyz:// is not known"):
        url_of("xyz://bucket/set")


def test_a_password_in_a_url_is_shown_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ShardCache(tmp_path / "cache", 10**9)
    secret = "somebody:s3cret@"
    for url in (f"memory://{secret}bucket/set", f"xyz://{secret}host/set", f"zip://a::http://{secret}host/set",
                f"tar://{secret}host/set"):  # fmt: skip
        with pytest.raises(UserError) as caught:
            ShardSet.open(url, cache)
        assert "s3cret" not in str(caught.value) + caplog.text and "somebody" not in caught.value.problem


def test_a_bank_behind_a_url_is_fetched_by_its_own_list_and_compared_with_it(
    set_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = build_text_bank(ShardSet.open(set_copy), HashingEncoder()).path
    monkeypatch.setenv("CARDIALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cardialign.data_shards.shard_set.transfers.FIRST_PAUSE_SECONDS", 0.0)
    (bank / "evil.py").write_text("what a server shows beside the bank")
    url = f"file://{set_copy}"
    fetched = TextBank.open(url)
    assert sorted(path.name for path in fetched.path.iterdir()) == sorted(
        path.name for path in bank.iterdir() if path.name != "evil.py"
    )
    for number, change in enumerate((flip_mean, list_elsewhere)):
        monkeypatch.setenv("CARDIALIGN_CACHE", str(tmp_path / f"cache{number}"))
        change(bank)
        with pytest.raises(DataError, match=r"mean\.npy cannot be fetched|lists '\.\./\.\./mean\.npy'"):
            TextBank.open(url)


def flip_mean(bank: Path) -> None:
    content = bytearray((bank / "mean.npy").read_bytes())
    content[-1] ^= 1
    (bank / "mean.npy").write_bytes(content)


def list_elsewhere(bank: Path) -> None:
    description = json.loads((bank / "bank.json").read_text())
    description["files"]["../../mean.npy"] = description["files"].pop("mean.npy")
    (bank / "bank.json").write_text(json.dumps(description))


@pytest.mark.parametrize("name", ["embeddings", "mean", "token_ids", "lengths", "statement_ids", "axes", "statements"])
def test_one_flipped_bit_in_any_file_of_a_bank_is_found_when_it_is_opened(set_copy: Path, name: str) -> None:
    bank = build_text_bank(ShardSet.open(set_copy), HashingEncoder()).path
    (file,) = bank.glob(f"{name}.*")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    for use in (lambda: TextBank.open(set_copy), lambda: TextBank.open(set_copy, digests=False).check_contents()):
        with pytest.raises(DataError, match=rf"{file.name} is not the one the bank was built with") as caught:
            use()
        assert "delete the folder of the bank and run `cardialign text-bank build`" in caught.value.remedy
    with pytest.raises(DataError, match=file.name):  # nor is it taken for a bank that need not be built
        build_text_bank(ShardSet.open(set_copy), HashingEncoder())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(files=[]), "'files' is a list"),
        (lambda d: d["files"].update({"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}), "no name of a file"),
        (lambda d: d["files"]["mean.npy"].update(sha256="../x"), "no size or no sha256 of mean.npy"),
        (lambda d: d["files"]["mean.npy"].update(bytes=-1), "no size or no sha256 of mean.npy"),
        (lambda d: d["files"].update({"mean.npy": 5}), "no size or no sha256 of mean.npy"),
        (lambda d: d["files"].pop("axes.npy"), "lists no axes.npy"),
        (lambda d: d.update(reports="6"), "'reports' is '6'"),
        (lambda d: d.update(shards="here"), "'shards' is 'here'"),
        (lambda d: d.pop("files"), "it lacks files"),
    ],
)
def test_a_description_of_a_bank_is_judged_before_it_is_used(
    set_copy: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    bank = build_text_bank(ShardSet.open(set_copy), HashingEncoder()).path
    description = json.loads((bank / "bank.json").read_text())
    change(description)
    (bank / "bank.json").write_text(json.dumps(description))
    with pytest.raises(DataError) as caught:
        TextBank.open(set_copy)
    assert words in caught.value.problem


def test_a_bank_nested_too_deeply_is_a_sentence_for_its_reader_and_for_verify(set_copy: Path) -> None:
    (set_copy / "text_bank" / "x").mkdir(parents=True)
    (set_copy / "text_bank" / "x" / "bank.json").write_bytes(DEEP)
    with pytest.raises(DataError, match=r"bank\.json is damaged: it is nested too deeply"):
        TextBank.open(set_copy)
    assert any("nested too deeply" in problem for problem in verify(set_copy, quick=True).problems)


def test_rows_of_an_index_that_point_out_of_the_set_are_refused(set_copy: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(set_copy / INDEX)
    for name, value in (("shard", -1), ("shard", 3), ("report", 6), ("report", -2)):
        column = table.column(name).to_pylist()
        column[7] = value
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        pq.write_table(table.set_column(place, field, pa.array(column, field.type)), set_copy / INDEX)
        changed(set_copy, lambda manifest: manifest["tables"].update({INDEX: sha256_of(set_copy / INDEX)}))
        with pytest.raises(DataError, match=rf"record small-\d+ names {name} {value}, the manifest has \d"):
            getattr(ShardSet.open(set_copy), name)
