"""Who holds an encoder's certificate, and its salt, learns whether a record or a patient was in training; who holds its
root alone can be shown it; who holds neither learns nothing of a name."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.benchmarks.exposure import made_up
from cardialign.pretrain.export.exposure import hashes
from cardialign.pretrain.export.exposure.certificate import Certificate
from cardialign.pretrain.export.exposure.hashes import PATIENT, RECORD, Group
from cardialign.pretrain.export.exposure.merkle import Tree, root_over
from cardialign.pretrain.export.exposure.proof import check, prove
from cardialign.pretrain.export.exposure.salt import CertificateSalt, salt_of_run
from cardialign.pretrain.export.trained_on import Records, TrainedOn, chosen, trained_set
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.integrity import write_digests
from tests.support.exposed import SALT, exposed
from tests.support.small_encoder import SPEC, small_model
from tests.support.tiny_shards import RECORDS, make_shards

RECORDS_OF = Group(RECORD)
PATIENTS_OF = Group(PATIENT, "tiny", "")
KEYS = [f"tiny-{i:03d}" for i in range(RECORDS)]
TRAINED = KEYS[:40]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`set`, of 60 records of 30 patients; `export`, trained on the first 40."""
    folder = tmp_path_factory.mktemp("exposure")
    exposed(ShardSet.open(make_shards(folder / "set")), folder / "export", list(range(40)))
    return folder


@pytest.fixture(scope="module")
def certificate(place: Path) -> Certificate:
    return Certificate.read(place / "export")


def siphash(key: bytes, text: bytes) -> int:
    """SipHash-2-4 as its authors write it down."""
    mask = 2**64 - 1

    def rounds(v: list[int], times: int) -> None:
        for _ in range(times):
            for a, b, turn in ((0, 1, 13), (2, 3, 16), (0, 3, 21), (2, 1, 17)):
                v[a] = (v[a] + v[b]) & mask
                v[b] = ((v[b] << turn) | (v[b] >> (64 - turn))) & mask
                v[b] ^= v[a]
                if turn in (13, 17):
                    v[a] = ((v[a] << 32) | (v[a] >> 32)) & mask

    one, two = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [one ^ 0x736F6D6570736575, two ^ 0x646F72616E646F6D, one ^ 0x6C7967656E657261, two ^ 0x7465646279746573]
    whole = text + bytes(7 - len(text) % 8) + bytes([len(text) % 256])
    for at in range(0, len(whole), 8):
        word = int.from_bytes(whole[at : at + 8], "little")
        v[3] ^= word
        rounds(v, 2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(v, 4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def stirred(word: int) -> int:
    """SplitMix64's last steps."""
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) % 2**64
    return word ^ word >> 31


def test_a_tag_is_siphash_with_a_key_that_follows_from_the_salt() -> None:
    assert siphash(bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5, "the vector of the paper"
    given = hashlib.blake2b(SALT.encode(), digest_size=64, person=b"exposure").digest()
    made = hashlib.blake2b(b"tag 1\nrecord\n\n", key=given, digest_size=12, person=b"exposure").digest()
    found = hashes.first_tags(["tiny-000", "ä"], RECORDS_OF, Secret(SALT))
    assert found.tolist() == [
        stirred(siphash(base64.urlsafe_b64encode(made), each.encode())) for each in ("tiny-000", "ä")
    ]


def test_the_root_of_three_blocks_is_that_on_paper() -> None:
    rows = np.arange(70 * 32, dtype=np.uint64).astype(np.uint8).reshape(70, 32)

    def sha(*parts: bytes) -> bytes:
        return hashlib.sha256(b"".join(parts)).digest()

    a, b, c = (sha(b"\0", rows[at : at + 32].tobytes()) for at in (0, 32, 64))
    tree = Tree(rows)
    assert tree.root == sha(b"\1", sha(b"\1", a, b), c).hex()
    assert tree.way(0) == [b.hex(), c.hex()] and tree.way(2) == [sha(b"\1", a, b).hex()]
    assert root_over(rows[64:].tobytes(), 2, 70, tree.way(2)) == tree.root
    assert Tree(rows[:0]).root == hashlib.sha256(b"\2").hexdigest()


def test_a_record_or_a_patient_is_in_it_exactly_where_it_was_trained_on(certificate: Certificate) -> None:
    salt = certificate.salt(Secret(SALT))
    assert (certificate.find(KEYS, RECORDS_OF, salt) >= 0).tolist() == [key in TRAINED for key in KEYS]
    patients = [f"p{i}" for i in range(30)]
    assert (certificate.find(patients, PATIENTS_OF, salt) >= 0).tolist() == [i < 20 for i in range(30)]
    assert (certificate.find(KEYS, PATIENTS_OF, salt) < 0).all(), "the name of a record is no patient's"
    assert certificate.facts["records_are"] == "selected" and certificate.complete
    assert certificate.facts["lists"]["record"]["rows"] == 40 and certificate.facts["lists"]["patient"]["rows"] == 20


def test_nothing_of_a_name_or_of_the_salt_is_in_the_export(place: Path) -> None:
    content = b"".join((place / "export" / name).read_bytes() for name in ("exposure.json", "exposure.safetensors"))
    assert b"tiny-0" not in content and SALT.encode() not in content
    tag = hashlib.blake2b(b"tiny-000", digest_size=16).digest()
    assert tag not in content


def test_without_the_salt_or_with_another_one_nobody_asks(certificate: Certificate) -> None:
    with pytest.raises(UsageError, match="not in the export"):
        certificate.salt(None)
    with pytest.raises(UsageError, match="not the one"):
        certificate.salt(Secret(f"{SALT}x"))


def test_who_has_the_root_alone_can_be_shown_every_answer(certificate: Certificate) -> None:
    salt = certificate.salt(Secret(SALT))
    asked = [*((RECORDS_OF, key) for key in KEYS), (PATIENTS_OF, "p0"), (PATIENTS_OF, "p29")]
    proof = json.loads(json.dumps(prove(certificate, asked, salt)))
    wanted = [*(key in TRAINED for key in KEYS), True, False]
    alone, with_salt = check(proof, certificate.root), check(proof, certificate.root, salt)
    assert [each.present for each in alone] == [each.present for each in with_salt] == wanted
    assert [each.named for each in alone] == wanted, "without the salt an absent tag may be anybody's"
    assert all(each.named for each in with_salt)
    assert SALT not in json.dumps(proof)


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "another name": lambda proof: proof["names"][0].update(name="tiny-059"),
    "another nonce": lambda proof: proof["names"][0].update(nonce="00" * 16),
    "present told as absent": lambda proof: proof["names"][0].pop("nonce"),
    "absent told as present": lambda proof: proof["names"][1].update(nonce="00" * 16),
    "a row left out": lambda proof: proof["blocks"]["record 0"].update(rows=proof["blocks"]["record 0"]["rows"][64:]),
    "a row changed": lambda proof: proof["blocks"]["record 0"].update(
        rows="00" + proof["blocks"]["record 0"]["rows"][2:]
    ),
    "fewer records": lambda proof: proof["facts"]["lists"]["record"].update(rows=39),
    "more steps": lambda proof: proof["facts"]["training"].update(steps=7),
    "a longer way": lambda proof: proof["blocks"]["record 0"]["way"].append("00" * 32),
    "a block of its own": lambda proof: proof["names"][1].update(blocks=[7]),
    "no block": lambda proof: proof["names"][1].update(blocks=[]),
    "a group that is not there": lambda proof: proof["names"][0].update(kind="patient"),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_proof_that_was_changed_shows_nothing(certificate: Certificate, forged: str) -> None:
    salt = Secret(SALT)
    proof = json.loads(json.dumps(prove(certificate, [(RECORDS_OF, TRAINED[0]), (RECORDS_OF, KEYS[-1])], salt)))
    both = {f"record {block}" for each in proof["names"] for block in each["blocks"]}
    for block in {"record 0", "record 1"} - both:
        other = prove(certificate, [(RECORDS_OF, key) for key in KEYS], salt)
        proof["blocks"][block] = copy.deepcopy(other["blocks"][block])
    assert len(check(proof, certificate.root)) == 2
    FORGED[forged](proof)
    with pytest.raises(DataError, match="does not hold"):
        check(proof, certificate.root)


def test_absence_is_shown_for_every_gap_of_a_list(tmp_path: Path, place: Path) -> None:
    """The first row, the last one, and the seam of two blocks, with 33 rows; and a list of no patients."""
    opened = ShardSet.open(place / "set")
    exposed(opened, tmp_path / "export", list(range(33)))
    certificate, salt = Certificate.read(tmp_path / "export"), Secret(SALT)
    names = [f"other-{k}" for k in range(200)]
    places = {certificate.position(name, RECORDS_OF, salt) for name in names}
    assert {0, 32, 33} <= places
    shown = check(prove(certificate, [(RECORDS_OF, name) for name in names], salt), certificate.root, salt)
    assert not any(each.present for each in shown)


def test_what_an_earlier_encoder_was_trained_on_leaves_absence_open(tmp_path: Path, place: Path) -> None:
    opened = ShardSet.open(place / "set")
    own = trained_set(opened, np.arange(10), chosen(None, None))
    exposed(opened, tmp_path / "export", list(range(40)), TrainedOn((own,), ("it started from w, which are unknown",)))
    certificate = Certificate.read(tmp_path / "export")
    assert not certificate.complete and len(certificate.facts["unknown"]) == 2


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "exposure.json").read_text())
    change(values)
    (folder / "exposure.json").write_text(json.dumps(values))
    write_digests(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda values: values["facts"]["training"].update(steps=1000), "root is not that of its facts"),
        (lambda values: values["facts"].update(encoder="0" * 64), "root is not that of its facts"),
        (lambda values: values["facts"]["lists"]["record"].update(rows=2**60), "a list of an object"),
        (lambda values: values["facts"].update(version=2), "no cardialign-exposure of version 1"),
        (lambda values: values.pop("facts"), "no cardialign-exposure of version 1"),
    ],
)
def test_a_certificate_that_was_changed_and_sealed_again_is_refused(
    tmp_path: Path, place: Path, change: Callable, complaint: str
) -> None:
    folder = Path(shutil.copytree(place / "export", tmp_path / "export"))
    changed(folder, change)
    with pytest.raises(UserError, match=complaint):
        Certificate.read(folder)


def test_a_certificate_of_another_encoder_is_refused(tmp_path: Path, place: Path) -> None:
    config, model = small_model(seed=1)
    other = export_encoder(config, model.state_dict(), tmp_path / "other", training={}, spec=SPEC, program=False)
    for name in ("exposure.json", "exposure.safetensors"):
        (other / name).write_bytes((place / "export" / name).read_bytes())
    write_digests(other)
    with pytest.raises(UserError, match="of another encoder"):
        Certificate.read(other)


def test_the_salt_of_a_run_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    first = salt_of_run(tmp_path)
    assert first is not None and len(first) >= 32 and salt_of_run(tmp_path) == first
    assert (tmp_path / "exposure.salt").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "short\n", "two\nlines of a salt that is long enough\n"])
def test_a_salt_beside_the_run_that_is_none_is_named_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    (tmp_path / "exposure.salt").write_text(content)
    with pytest.raises(UserError, match="salt of the exposure certificates of run") as caught:
        salt_of_run(tmp_path)
    assert "--salt-file" not in caught.value.problem, "nobody typed that"
    assert "remove the file" in caught.value.remedy and (tmp_path / "exposure.salt").read_text() == content


def test_a_public_salt_lets_everybody_ask(tmp_path: Path, place: Path) -> None:
    opened = ShardSet.open(place / "set")
    config, model = small_model()
    own = trained_set(opened, np.arange(4), chosen(None, None))
    seen = TrainedOn((type(own)(own.facts, own.patients, own.recordings, Records(opened, np.arange(4), True)),))
    salt = CertificateSalt(Secret(SALT), public=True)
    export_encoder(
        config, model.state_dict(), tmp_path / "e", training={}, spec=SPEC, program=False, trained_on=seen, salt=salt
    )
    certificate = Certificate.read(tmp_path / "e")
    assert certificate.facts["records_are"] == "consumed"
    own_salt = certificate.salt(None)
    proof = prove(certificate, [(RECORDS_OF, KEYS[5])], own_salt)
    assert [each.named for each in check(proof, certificate.root)] == [True]


def test_a_million_names_are_hashed_once_each_and_those_found_twice_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a million names cost (`bench exposure` measures it): no look at a name by itself, and no hash of one that is
    not there but the first."""
    hashed: list[int] = []
    sip = hashes._sip
    monkeypatch.setattr(hashes, "_sip", lambda names, key: (hashed.append(len(names)), sip(names, key))[1])
    salt = Secret(SALT)
    for size in (2_000, 16_000):
        names = [f"mimic-{40_000_000 + k}" for k in range(size)]
        certificate = made_up(names, salt)
        asked = [*names[: size // 4], *(f"other-{k}" for k in range(size))]
        hashed.clear()
        found = certificate.find(asked, RECORDS_OF, salt)
        assert (found >= 0).sum() == size // 4 and (found[: size // 4] >= 0).all()
        assert hashed == [len(asked), size // 4, size // 4], "three calls, whatever the size"
