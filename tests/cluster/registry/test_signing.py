"""Signed encoders: whoever trusts a key gets what its owner signed, and nothing else."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from cardialign.cluster.registry.card import version_key
from cardialign.cluster.registry.signing import PASSWORD, SigningKey, TrustedKey
from cardialign.cluster.tracking.mlflow_store import open_client
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.integrity import verify_export
from tests.support.registered import COMMIT, registered

PLAIN = serialization.NoEncryption()


def private_pem(key: Any, path: Path, encryption: Any = PLAIN) -> Path:
    kind = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, encryption))
    return path


def public_pem(key: Any, path: Path) -> Path:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, kind))
    return path


def certificate(key: Any, of: str, issuer_key: Any, issuer: str, authority: bool) -> x509.Certificate:
    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
    return (
        x509.CertificateBuilder()
        .subject_name(named(of))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ann.pem, ann.pub.pem, bob.pub.pem, and Ann's chain under an authority."""
    folder = tmp_path_factory.mktemp("keys")
    ann, bob, authority = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    private_pem(ann, folder / "ann.pem")
    public_pem(ann, folder / "ann.pub.pem")
    public_pem(bob, folder / "bob.pub.pem")
    root = certificate(authority, "authority", authority, "authority", True)
    (folder / "root.pem").write_bytes(pem(root))
    (folder / "other-root.pem").write_bytes(pem(certificate(bob, "authority", bob, "authority", True)))
    (folder / "chain.pem").write_bytes(pem(certificate(ann, "ann", authority, "authority", False), root))
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, exported: Path, empty_store: Path) -> str:
    """Version 1 and 2 of `signed`, complete and unsigned."""
    folder = tmp_path_factory.mktemp("signing")
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for version in (1, 2):
        registered(exported, folder / str(version), "signed", uri, steps=version)
    return uri


@pytest.fixture
def call(cardialign: Callable[..., Any], store: str) -> Callable[..., Any]:
    return lambda *words: cardialign("registry", *words, "--tracking-uri", store)


def artifacts(store: str, version: int) -> Path:
    client = open_client(store)
    run = client.get_run(client.get_model_version("signed", str(version)).run_id)
    return Path(run.info.artifact_uri.removeprefix("file://"))


def test_what_was_signed_is_pulled_with_its_statement_and_what_was_not_is_not(
    call: Callable[..., Any], store: str, keys: Path, tmp_path: Path
) -> None:
    unsigned = call("pull", "signed/2", tmp_path / "b", "--verify", keys / "ann.pub.pem")
    assert unsigned.code == 1 and "signed/2 is not signed" in unsigned.json["problem"]
    signed = call("promote", "signed/1", "--to", "staging", "--sign", keys / "ann.pem")
    assert signed.code == 0 and signed.json["signed"] == hashlib.sha256((keys / "ann.pub.pem").read_bytes()).hexdigest()
    pulled = call("pull", "signed@staging", tmp_path / "a", "--verify", keys / "ann.pub.pem")
    assert pulled.code == 0, pulled.err
    told, bill = pulled.json["signed"], open_client(store).get_model_version("signed", "1").tags["sbom"]
    assert (told["model"], told["model_version"], told["encoder"]) == ("signed", 1, pulled.json["digest"])
    assert (told["recipe"], told["shards_fingerprint"], told["order_digest"]) == ("cardialign-demo", "f" * 64, "d" * 32)
    assert (told["commit"], told["sbom"]) == (COMMIT, bill) and len(told["recipe_digest"]) == 64
    assert verify_export(tmp_path / "a") == pulled.json["digest"], "the folder is an encoder and nothing more"
    assert signed.json["signed"] in open_client(store).get_model_version("signed", "1").description
    wrong = call("pull", "signed/1", tmp_path / "c", "--verify", keys / "bob.pub.pem")
    assert wrong.code == 1 and f"is not signed with the key of {keys / 'bob.pub.pem'}" in wrong.json["problem"]
    mine = call("pull", "signed/1", tmp_path / "c", "--verify", keys / "ann.pem")
    assert mine.code == 1 and "holds a private key" in mine.json["problem"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"], "what did not verify is given to nobody"


def test_a_changed_file_and_the_signature_of_another_version_are_named(
    call: Callable[..., Any], store: str, keys: Path, tmp_path: Path
) -> None:
    for version in (1, 2):
        assert call("promote", f"signed/{version}", "--to", "both", "--sign", keys / "ann.pem").code == 0
    client = open_client(store)
    first, second = (client.get_model_version("signed", str(version)) for version in (1, 2))
    verify = ("--verify", keys / "ann.pub.pem")
    source = Path(second.source.removeprefix("file://"))
    place = artifacts(store, 2) / "signatures" / second.tags["digest"] / version_key(second)
    kept = tmp_path / "kept"
    shutil.copytree(place, kept)
    other = artifacts(store, 1) / "signatures" / first.tags["digest"] / version_key(first)
    shutil.copytree(other, place, dirs_exist_ok=True)
    told = call("pull", "signed/2", tmp_path / "a", *verify).json["problem"]
    assert "signed/2 is not what was signed: digests.json, provenance.json" in told
    shutil.copytree(kept, place, dirs_exist_ok=True)
    said = json.loads((place / "statement.json").read_text()) | {"model_version": 1}
    (place / "statement.json").write_text(json.dumps(said))
    assert "is not what was signed: statement.json" in call("pull", "signed/2", tmp_path / "a", *verify).json["problem"]
    shutil.copytree(kept, place, dirs_exist_ok=True)
    assert call("pull", "signed/2", tmp_path / "whole", *verify).code == 0
    # the same encoder under another name: its files are those that were signed, the statement is of the other
    client.create_registered_model("renamed")
    client.create_model_version("renamed", second.source, second.run_id, tags=second.tags)
    renamed = client.get_model_version("renamed", "1")
    shutil.copytree(place, place.with_name(version_key(renamed)))
    told = call("pull", "renamed/1", tmp_path / "a", *verify).json["problem"]
    assert told == "the signature of renamed/1 is that of signed/2"
    # whoever can write to store and database can change a file with its digests, not the signature
    note = json.loads((source / "config.json").read_text()) | {"name": "mine"}
    (source / "config.json").write_text(json.dumps(note))
    listed = json.loads((source / "digests.json").read_text())
    listed["files"]["config.json"] = hashlib.sha256((source / "config.json").read_bytes()).hexdigest()
    (source / "digests.json").write_text(json.dumps(listed))
    changed = verify_export(source)
    client.set_model_version_tag("signed", "2", "digest", changed)
    shutil.copytree(place, artifacts(store, 2) / "signatures" / changed / version_key(second))
    assert call("pull", "signed/2", tmp_path / "b").code == 0
    told = call("pull", "signed/2", tmp_path / "a", *verify).json["problem"]
    assert "signed/2 is not what was signed: config.json, digests.json" in told
    (place.parent.parent / changed / version_key(second) / "encoder.sig").write_text("{}")
    assert "no signature that can be read" in call("pull", "signed/2", tmp_path / "a", *verify).json["problem"]
    assert not (tmp_path / "a").exists()


def test_a_certificate_vouches_for_the_signer(call: Callable[..., Any], keys: Path, tmp_path: Path) -> None:
    words = ("--sign", keys / "ann.pem", "--certificate", keys / "chain.pem")
    assert call("promote", "signed/1", "--to", "certified", *words).code == 0
    pulled = call("pull", "signed@certified", tmp_path / "a", "--verify", keys / "root.pem")
    assert pulled.code == 0 and pulled.json["signed"]["commit"] == COMMIT, pulled.err
    other = call("pull", "signed@certified", tmp_path / "b", "--verify", keys / "other-root.pem")
    assert other.code == 1 and "is not signed under a certificate in" in other.json["problem"]
    assert not (tmp_path / "b").exists()
    mixed = call("promote", "signed/1", "--to", "x", "--sign", keys / "ann.pem", "--certificate", keys / "root.pem")
    assert mixed.code == 1 and "is not that of the private key" in mixed.json["problem"]


def test_keys_that_sign_nothing_are_told_from_those_that_do(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    key = ec.generate_private_key(ec.SECP256R1())
    locked = private_pem(key, tmp_path / "locked.pem", serialization.BestAvailableEncryption(b"s3cret"))
    koblitz = private_pem(ec.generate_private_key(ec.SECP256K1()), tmp_path / "k1.pem")
    long = private_pem(rsa.generate_private_key(65537, 2048), tmp_path / "rsa.pem")
    (tmp_path / "text.pem").write_text("no key")
    for path, why in (
        (locked, PASSWORD),
        (koblitz, "not on one of the curves"),
        (long, "not on one of the curves"),
        (keys / "ann.pub.pem", "holds no private key"),
        (tmp_path / "text.pem", "is no PEM file"),
        (tmp_path / "none.pem", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(UserError, match=why):
            SigningKey.open(path)
    for path in (keys / "ann.pem", public_pem(rsa.generate_private_key(65537, 2048), tmp_path / "r.pem"), tmp_path):
        with pytest.raises(UserError, match=r"private key|curves|directory") as raised:
            TrustedKey.open(path)
        assert "make one" not in raised.value.remedy, "who verifies makes no key"
    monkeypatch.setenv(PASSWORD, "s3cret")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("a")
    SigningKey.open(locked).sign(tmp_path / "model", tmp_path / "sig")
    TrustedKey.open(public_pem(key, tmp_path / "p.pem")).check(tmp_path / "model", tmp_path / "sig")


def test_without_the_extra_its_name_is_the_remedy(
    call: Callable[..., Any], keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "model_signing" else found(name, *a)
    )
    for words in (
        ("promote", "signed/1", "--to", "x", "--sign", keys / "ann.pem"),
        ("pull", "signed/1", tmp_path / "a", "--verify", keys / "ann.pub.pem"),
    ):
        answer = call(*words)
        assert answer.code == 1 and 'pip install "cardialign[sign]"' in answer.json["remedy"]
    assert not (tmp_path / "a").exists()
