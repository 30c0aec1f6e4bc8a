"""The salt of an exposure certificate: of the user's own file, or a random one that stays beside the run."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.files import temporary_path
from cardialign.data_shards.secret import Secret
from cardialign.pretrain.run.files import EXPOSURE_SALT

log = logging.getLogger(__name__)

SHORTEST = 16
"""Characters under which a salt can be tried out."""
_PERSON = b"exposure salt"


@dataclass(frozen=True)
class CertificateSalt:
    """public: it stands in the certificate, so that everybody can ask, and try out names."""

    secret: Secret
    public: bool = False


def given_salt(path: Path) -> Secret:
    """Of a file of the user's. Raises UsageError for one that cannot be read, and for a salt that can be tried out."""
    salt = Secret.of_file(path, "--salt-file")
    if len(salt) < SHORTEST:
        raise UsageError(
            f"the salt in {path} has {len(salt)} characters: it can be tried out", f"write {SHORTEST} or more"
        )
    return salt


def salt_of_run(run_dir: Path) -> Secret | None:
    """The one that lies beside the run, made now where there is none; None where none can be kept there.

    Raises UserError for a file of its name that holds none.
    """
    path = run_dir / EXPOSURE_SALT
    if not os.path.lexists(path):
        temporary = temporary_path(path)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            log.warning("exposure=none run=%s reason=its salt cannot be kept there: %s", run_dir, error)
            return None
        finally:
            temporary.unlink(missing_ok=True)
    try:
        return given_salt(path)
    except UsageError as error:
        raise UserError(
            f"the salt of the exposure certificates of run {run_dir} cannot be used: "
            + error.problem.removeprefix("--salt-file "),
            "put the file back as it was, give another salt with --salt-file, or remove the file: a new salt is made, "
            "and certificates from before cannot be asked for names without the old one",
        ) from None


def salt_check(salt: Secret) -> str:
    """8 hex digits by which a mistyped salt is told; keyed with the salt, as `patients.salt_check`."""
    return hashlib.pbkdf2_hmac("sha256", salt.reveal().encode(), _PERSON, 200_000, 4).hex()
