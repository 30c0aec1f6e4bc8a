"""Signatures of registered encoders by OpenSSF model-signing (extra `sign`): a local key or certificate, no network.

What is signed is the encoder's folder with `statement.json` in it: which version of which model this is, its recipe,
the fingerprint of its shards, the digest of its records in their order, the commit of its code, its bill of materials.
signatures/DIGEST/VERSION/ among the artifacts of the run holds the statement and `encoder.sig`, a Sigstore bundle.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.registry.card import SBOM_TAG, SIGNED_TAG, version_key
from cardialign.cluster.registry.lookup import fetch_of_run, title
from cardialign.cluster.tracking.places import send_folder
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.files import names_below, parse_json, read_bytes, sha256_of
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shown import shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from cardialign.cluster.registry.origin import Origin

FOLDER, STATEMENT, SIGNATURE = "signatures", "statement.json", "encoder.sig"
VERSION = 1
PASSWORD = "CARDIALIGN_SIGNING_PASSWORD"  # noqa: S105 - the name of a variable
"""Environment variable with the password of an encrypted private key."""
CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAKE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub.pem"


def _check_installed() -> None:
    if importlib.util.find_spec("model_signing") is None or importlib.util.find_spec("OpenSSL") is None:
        raise UserError(
            "signatures need the package model-signing, which is not installed", 'pip install "cardialign[sign]"'
        )


def _pem(path: Path, what: str, remedy: str) -> bytes:
    try:
        content = path.expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror or error}", remedy) from None
    if b"-----BEGIN " not in content:
        raise UserError(f"{what} {path} is no PEM file", remedy)
    return content


@dataclass(frozen=True)
class SigningKey:
    """An EC private key, and the certificates that vouch for it, its own first, where there are any."""

    path: Path
    certificate: Path | None
    fingerprint: str

    @classmethod
    def open(cls, path: Path, certificate: Path | None = None) -> SigningKey:
        """Raises UserError for what no signature can be made with, and without the extra `sign`."""
        _check_installed()
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        content = _pem(path, "private key", f"make one: {_MAKE}")
        if b"PRIVATE KEY-----" not in content:
            raise UserError(f"{path} holds no private key", f"give the private key to --sign; make one: {_MAKE}")
        try:
            key = load_pem_private_key(content, _revealed(_password()))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"private key {path} cannot be opened: {shown(str(error))[:200]}",
                f"an encrypted key needs its password in {PASSWORD}; without a password leave that unset",
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
            raise UserError(f"private key {path} is not on one of the curves {', '.join(CURVES)}", f"make one: {_MAKE}")
        if certificate is not None:
            _check_certificate(certificate, key.public_key(), path)
            if _password() is not None:
                raise UserError(
                    f"{path} is encrypted, and model-signing takes no such key with a certificate",
                    "decrypt it for the signing, or sign without a certificate",
                )
        return cls(path.expanduser(), certificate, _fingerprint(key.public_key()))

    def sign(self, folder: Path, signature: Path) -> None:
        """Write the signature of every file below `folder`."""
        import model_signing.signing

        config = model_signing.signing.Config()
        if self.certificate is not None:
            leaf, *chain = _split(self.certificate, signature.parent)
            config.use_certificate_signer(private_key=self.path, signing_certificate=leaf, certificate_chain=chain)
        else:  # cryptography, which gets the password as it is, wants bytes
            password: Any = _revealed(_password())
            config.use_elliptic_key_signer(private_key=self.path, password=password)
        config.sign(folder, signature)


def _password() -> Secret | None:
    given = os.environ.get(PASSWORD, "")
    return Secret(given) if given else None


def _revealed(password: Secret | None) -> bytes | None:
    return None if password is None else password.reveal().encode()


def _fingerprint(public: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _check_certificate(path: Path, public: Any, key: Path) -> None:
    from cryptography import x509

    try:
        first = x509.load_pem_x509_certificates(_pem(path, "certificate", "give a PEM file, the key's own first"))[0]
    except ValueError as error:
        raise UserError(f"certificate {path} cannot be read: {error}", "give a PEM file, the key's own first") from None
    if _fingerprint(first.public_key()) != _fingerprint(public):
        raise UserError(
            f"the first certificate in {path} is not that of the private key {key}",
            "put the key's own certificate first, those that vouch for it after it",
        )


def _split(path: Path, folder: Path) -> list[Path]:
    """The certificates of a PEM file in files of their own: the key's, and the rest as they stand."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    files = []
    for number, each in enumerate(x509.load_pem_x509_certificates(path.expanduser().read_bytes())):
        files.append(folder / f"certificate-{number}.pem")
        files[-1].write_bytes(each.public_bytes(Encoding.PEM))
    return files


@dataclass(frozen=True)
class TrustedKey:
    """What a signature is checked by: a public key, or certificates of which one must vouch for the signer's."""

    path: Path
    certificates: bool

    @classmethod
    def open(cls, path: Path) -> TrustedKey:
        """Raises UserError for a file that is neither, and without the extra `sign`."""
        _check_installed()
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        content = _pem(path, "public key", "give the public key, or the certificate, of the one who signs (PEM)")
        if b"PRIVATE KEY-----" in content:
            raise UserError(
                f"{path} holds a private key: it stays with the one who signs",
                f"give the public key: openssl ec -in {path} -pubout -out key.pub.pem",
            )
        try:
            if b"-----BEGIN CERTIFICATE-----" in content:
                x509.load_pem_x509_certificates(content)
                return cls(path.expanduser(), certificates=True)
            key = load_pem_public_key(content)
        except ValueError as error:
            raise UserError(f"{path} cannot be read: {shown(str(error))[:200]}", "give a PEM file") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
            raise UserError(
                f"public key {path} is not on one of the curves {', '.join(CURVES)}", "give the key of the signer"
            )
        return cls(path.expanduser(), certificates=False)

    def check(self, folder: Path, signature: Path) -> None:
        """Raises whatever the library does where the folder is not what was signed, by whom it should be."""
        import model_signing.verifying

        config = model_signing.verifying.Config()
        if self.certificates:
            config.use_certificate_verifier(certificate_chain=[self.path])
        else:
            config.use_elliptic_key_verifier(public_key=self.path)
        config.verify(folder, signature)


def statement_of(version: ModelVersion, digest: str, origin: Origin) -> dict[str, Any]:
    """What a signature says of a version, beside the digests of its files."""
    return {
        "version": VERSION,
        "model": version.name,
        "model_version": int(version.version),
        "encoder": digest,
        **origin.to_dict(),
        "sbom": version.tags.get(SBOM_TAG, ""),
        "signed": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def sign_version(
    client: MlflowClient, version: ModelVersion, folder: Path, key: SigningKey, statement: Mapping[str, Any]
) -> None:
    """Sign the encoder in `folder` with its statement, and log the signature beside it."""
    with tempfile.TemporaryDirectory(prefix="signature-") as scratch:
        made = Path(scratch) / FOLDER
        made.mkdir()
        text = json.dumps(statement, indent=1, sort_keys=True)
        (made / STATEMENT).write_text(text, encoding="utf-8")
        (folder / STATEMENT).write_text(text, encoding="utf-8")
        signature = Path(scratch) / SIGNATURE
        try:
            key.sign(folder, signature)
        finally:
            (folder / STATEMENT).unlink()
        signature.rename(made / SIGNATURE)
        send_folder(client, str(version.run_id), made, _place(version, str(statement["encoder"])))
    client.set_model_version_tag(version.name, version.version, SIGNED_TAG, key.fingerprint)


def _place(version: ModelVersion, digest: str) -> str:
    return f"{FOLDER}/{digest}/{version_key(version)}"


def verify_signature(
    client: MlflowClient, version: ModelVersion, folder: Path, trusted: TrustedKey, uri: str
) -> dict[str, Any]:
    """The statement of a version whose verified files lie in `folder`, once its signature holds.

    Raises UserError: it is not signed, by another key, over other files, or as another version.
    """
    from cardialign.pretrain.run.integrity import verify_export

    wanted, digest = title(version), verify_export(folder)
    again = "`cardialign registry promote ... --sign KEY` signs it"
    if not version.run_id or SIGNED_TAG not in version.tags:
        raise UserError(f"{wanted} is not signed", again)
    with tempfile.TemporaryDirectory(prefix="signature-") as scratch:
        try:
            made = fetch_of_run(
                client, version.run_id, _place(version, digest), (STATEMENT, SIGNATURE), Path(scratch), uri
            )
            text = (made / STATEMENT).read_bytes()
            listed = _listed(made / SIGNATURE)
        except (OSError, DataError) as error:
            why = error.problem if isinstance(error, DataError) else str(error)
            raise UserError(f"{wanted} has no signature that can be read: {why}", again) from None
        (folder / STATEMENT).write_bytes(text)
        try:
            _check(trusted, folder, made / SIGNATURE, listed, wanted)
        finally:
            (folder / STATEMENT).unlink()
    statement: dict[str, Any] = parse_json(text)
    if (statement.get("model"), str(statement.get("model_version"))) != (version.name, str(version.version)):
        other = shown(f"{statement.get('model')}/{statement.get('model_version')}"[:300])
        raise UserError(f"the signature of {wanted} is that of {other}", again)
    return statement


def _check(trusted: TrustedKey, folder: Path, signature: Path, listed: Mapping[str, str], wanted: str) -> None:
    try:
        trusted.check(folder, signature)
    except Exception as error:  # cryptography, OpenSSL and the library have errors of their own
        wrong = sorted(name for name in {*listed, *names_below(folder)} if not _same(folder / name, listed.get(name)))
        if isinstance(error, ValueError) and "Signature mismatch" in str(error) and wrong:
            raise UserError(
                f"{wanted} is not what was signed: {', '.join(map(shown, wrong))}",
                "do not use it; ask who signed, and who can write to the artifact store",
            ) from None
        by = "under a certificate in" if trusted.certificates else "with the key of"
        raise UserError(
            f"{wanted} is not signed {by} {trusted.path}: {shown(str(error) or type(error).__name__)[:200]}",
            "give the public key of the one who signed, or have it signed by the one you trust",
        ) from None
    if unsigned := sorted(set(names_below(folder)) - set(listed)):
        raise UserError(f"the signature of {wanted} leaves out {', '.join(unsigned)}", "have it signed again")


def _same(path: Path, digest: str | None) -> bool:
    return path.is_file() and sha256_of(path) == digest


def _listed(signature: Path) -> dict[str, str]:
    """Name -> sha256 of what a bundle says that it signs; who says so is not checked here. Raises DataError."""
    try:
        bundle = parse_json(read_bytes(signature))
        payload = parse_json(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        return {str(each["name"]): str(each["digest"]) for each in payload["predicate"]["resources"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"it is no signature ({shown(str(error))[:100]})", "") from None
