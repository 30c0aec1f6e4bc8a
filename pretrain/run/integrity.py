"""The digest list of an exported encoder: what was written is what is read, file by file.

The digest of an encoder is that of its list of files, so that equal files make equal digests. When it was written is
said beside that list and is no part of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import (
    facts_below,
    is_sha256,
    names_below,
    parse_json,
    read_bytes,
    read_json,
    sha256_of,
    write_json,
)
from cardialign.pretrain.run.archive import pickled_parts
from cardialign.pretrain.run.files import EXPORT
from cardialign.pretrain.run.tensors import load_tensors

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

EXPORT_VERSION = 2
READABLE = (1, 2)
"""Version 2: the configuration has the sections `encoder:` and `method:`; the report head may be absent."""
DIGESTS = "digests.json"
MODEL, REPORT_HEAD, REPORT_ENCODER = "model.safetensors", "text_head.safetensors", "text_encoder.safetensors"
PROGRAM, SETTINGS, CONTRACT, PROVENANCE = "encoder.pt2", "config.json", "signal_contract.json", "provenance.json"
ONNX = "encoder.onnx"
"""The same program for onnxruntime; only where it was asked for."""
TRAINED_ON, SCORINGS = "trained_on.safetensors", "scorings.safetensors"
BILL = "sbom.cdx.json"
"""The packages that an encoder was made with; exports from before there was one lack it."""
MISSINGNESS, EARLIER = "missingness.json", "earlier"
"""A missingness card, and in it the digests of the export under the cards before it."""
CARD, GOLDEN = "README.md", "golden.safetensors"
"""The model card, and ten ECGs with the embeddings that must come out; exports from before they existed lack them."""
MISSING_PART = b"<!-- missing leads -->"
"""In a model card, where the part begins that comes with a missingness card."""
EXPOSURE, EXPOSURE_LISTS = "exposure.json", "exposure.safetensors"
"""An exposure certificate, and its lists, which may be large and which only the certificate's reader needs."""
NEEDED = (MODEL, SETTINGS, CONTRACT, PROVENANCE)
EXPORT_FILES = (
    *NEEDED,
    REPORT_HEAD,
    REPORT_ENCODER,
    SCORINGS,
    PROGRAM,
    ONNX,
    TRAINED_ON,
    BILL,
    MISSINGNESS,
    CARD,
    GOLDEN,
    EXPOSURE,
    EXPOSURE_LISTS,
    DIGESTS,
)
"""Everything that an export may hold. What is not named here is never called verified, whoever lists it."""
OF_MLFLOW = (
    "MLmodel",
    "requirements.txt",
    "python_env.yaml",
    "input_example.json",
    "serving_input_example.json",
    "registered_model_meta",
)
"""What lies beside a registered encoder for MLflow, which writes the last one when it loads. No export holds them; who
fetches a version by MLflow alone has them in its folder."""
LITTER = re.compile(r"\.DS_Store|\._.*|\.nfs[0-9a-fA-F]*|Thumbs\.db|desktop\.ini|\.directory")
"""Names of files that file managers and NFS leave in every folder: nobody reads them, nobody misses them."""

MAKING, OLD = ".making-", "replaced"
"""In the name of a folder in which an encoder is made; the encoder that it replaces, in that folder."""
SETTLED_SECONDS = 60.0
"""A folder that is younger than this may be about to be locked."""


class VerifiedExport:
    """An export as it was checked; whoever loads what is in here, and not the files again, loads what was checked.

    listed: its digest list, name -> sha256; digest: sha256 of that; bare_digest: of that list as it was without a
    missingness card, which names the encoder by it and has a part of its own at the end of the model card. content:
    name -> bytes that were hashed, of every file but the programs and the lists of an exposure certificate. What cannot
    be read raises UserError that names the file.
    """

    def __init__(self, folder: Path, listed: dict[str, str], content: dict[str, bytes]) -> None:
        self.folder, self.listed, self.content = folder, listed, content
        self.digest = _digest_of_list(listed)
        bare = {name: each for name, each in listed.items() if name != MISSINGNESS}
        if MISSINGNESS in listed and CARD in content:
            bare[CARD] = hashlib.sha256(content[CARD].partition(MISSING_PART)[0]).hexdigest()
        self.bare_digest = _digest_of_list(bare)

    def earlier_digests(self) -> list[str]:
        """What the card says of those before it; of a card that cannot be read nothing."""
        try:
            told = parse_json(self.content.get(MISSINGNESS, b"{}"))[EARLIER]
        except (ValueError, RecursionError, KeyError, TypeError):
            return []
        listed = told if isinstance(told, list) else []
        return [each for each in listed if is_sha256(each)]

    def wrong(self, name: str, why: str) -> UserError:
        return UserError(f"{self.folder / name}: {why}", "fetch the encoder again, or export it anew")

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file."""
        try:
            values = parse_json(self.content[name])
        except (ValueError, RecursionError) as error:
            raise self.wrong(name, f"no JSON that can be read ({error})") from None
        if not isinstance(values, dict):
            raise self.wrong(name, "not a JSON object")
        return values

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a file; its bytes are let go: an encoder need not lie in memory three times."""
        try:
            return load_tensors(self.content.pop(name))
        except ValueError as error:
            raise self.wrong(name, str(error)) from None


def write_digests(folder: Path, created: str | None = None) -> None:
    """List every file below `folder` in its `digests.json`: the last file of an export to be written.

    created: when the encoder was made; None: now.
    """
    created = created or datetime.now(UTC).isoformat(timespec="seconds")
    values = {"version": EXPORT_VERSION, "created": created, "files": file_digests(folder)}
    write_json(folder / DIGESTS, values, indent=2)


def file_digests(folder: Path) -> dict[str, str]:
    """Relative name -> sha256 of every file below `folder` but the digest list itself."""
    return {name: facts.sha256 for name, facts in facts_below(folder, (DIGESTS,)).items()}


def verify_export(folder: Path) -> str:
    """Check every file against `digests.json`; returns the digest of the whole export (sha256 of that list).

    Raises UserError that names each changed, missing or extra file, each part of the program that may be a pickle, or
    says that this is no exported encoder.
    """
    return _verified(Path(folder), keep=False).digest


def verified_digests(folder: Path) -> tuple[str, ...]:
    """As `verify_export`, each digest that results know the encoder by: as it is, before it had a card, and under the
    cards that its card replaced."""
    found = _verified(Path(folder), keep=False)
    return tuple(dict.fromkeys((found.digest, found.bare_digest, *found.earlier_digests())))


def read_export(folder: Path) -> VerifiedExport:
    """As `verify_export`, and the content that was checked."""
    return _verified(Path(folder), keep=True)


def read_parts(folder: Path, names: Sequence[str]) -> VerifiedExport:
    """These files of an export, each checked against its digest list; the others need not be there.

    Raises UserError that names each file that is not as it was written.
    """
    listed = _listed(folder)
    content = {name: read_bytes(path) for name in names if (path := folder / name).is_file()}
    wrong = [
        f"{name}: {'content changed (sha256 differs)' if name in content else 'missing'}"
        for name in names
        if name not in content or hashlib.sha256(content[name]).hexdigest() != listed.get(name)
    ]
    if wrong:
        raise _not_as_written(folder, wrong, "fetch it again")
    return VerifiedExport(folder, listed, content)


def listed_names(folder: Path) -> tuple[str, ...]:
    """The files that the digest list of an export names. Raises UserError for a list that no export has."""
    return tuple(_listed(folder))


def described_by(folder: Path) -> tuple[str, ...]:
    """The files in which an encoder says what it is: configuration, signal contract, provenance, and its missingness
    card where its digest list has one, with the model card that says the same. Raises UserError for a list that no
    export has."""
    listed = _listed(folder)
    carded = (MISSINGNESS, CARD) if MISSINGNESS in listed else ()
    return (SETTINGS, CONTRACT, PROVENANCE, *(name for name in carded if name in listed))


def _digest_of_list(listed: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def _not_as_written(folder: Path, wrong: list[str], remedy: str) -> UserError:
    lines = "\n".join(f"  - {line}" for line in wrong)
    return UserError(f"exported encoder {folder} is not as it was written:\n{lines}", remedy)


def _verified(folder: Path, *, keep: bool) -> VerifiedExport:
    listed, content, wrong = _listed(folder), {}, []
    try:
        for name, sha256 in listed.items():
            path = folder / name
            if not path.is_file():
                wrong.append(f"{name}: missing")
                continue
            if name in (MISSINGNESS, CARD) or (keep and name not in (PROGRAM, ONNX, EXPOSURE_LISTS)):
                content[name] = read_bytes(path)
            found = hashlib.sha256(content[name]).hexdigest() if name in content else sha256_of(path)
            if found != sha256:
                wrong.append(f"{name}: content changed (sha256 differs)")
        unlisted = [name for name in names_below(folder, (DIGESTS,)) if name not in listed and not is_litter(name)]
        wrong += [f"{name}: not part of the export" for name in unlisted]
        if not wrong and PROGRAM in listed:
            wrong += _wrong_in_program(folder / PROGRAM)
    except OSError as error:
        raise UserError(
            f"exported encoder {folder} cannot be read: {error}", "check the folder's rights and its disk"
        ) from None
    if wrong:
        added = len(wrong) == len(unlisted)
        again = "move what is no part of it to another folder, or fetch it again" if added else "fetch it again"
        raise _not_as_written(folder, wrong, again)
    return VerifiedExport(folder, listed, content)


def _listed(folder: Path) -> dict[str, str]:
    """Name -> sha256 as the digest list says. Raises UserError for a list that no export has."""
    try:
        values = parse_json(read_bytes(folder / DIGESTS))
        version, files = values["version"], dict(values["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{folder} is not an exported encoder: {DIGESTS} is missing or unreadable",
            f"give {folder / EXPORT}"
            if (folder / EXPORT / DIGESTS).is_file()
            else "give the folder that `export` wrote",
        ) from None
    if version not in READABLE:
        raise UserError(
            f"{folder} has export version {version!r:.40}, this release reads {' and '.join(map(str, READABLE))}",
            "use the release that wrote it",
        )
    strange = sorted(repr(name) for name in files if name not in EXPORT_FILES)
    absent = [name for name in NEEDED if name not in files]
    if strange or absent:
        said = [f"no export holds {', '.join(strange[:5])}"] * bool(strange) + [
            f"it has no {', '.join(absent)}"
        ] * bool(absent)
        raise UserError(
            f"{folder} is not an exported encoder: {'; '.join(said)}", "give the folder that `export` wrote"
        )
    return files


def _wrong_in_program(path: Path) -> list[str]:
    try:
        return [
            f"{path.name}: {part!r} may be a pickle, or hold expressions that torch runs as code"
            for part in pickled_parts(path)
        ]
    except ValueError as error:
        return [f"{path.name}: {error}"]


def is_litter(name: str) -> bool:
    """Whether a file is one that nobody here reads and nobody misses, by its name below the folder of an export."""
    return name in OF_MLFLOW or LITTER.fullmatch(name.rpartition("/")[2]) is not None


def refuse_to_replace(out: Path, overwrite: bool) -> None:
    """Raise UserError unless `out` is free, empty, or (with `overwrite`) holds an encoder and nothing else.

    Nothing else is ever replaced: files that somebody keeps beside an encoder are theirs.
    """
    if out.is_symlink():
        raise UserError(f"{out} is a link; it is left alone", "give the folder that it points to")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    listed = (read_json(out / DIGESTS) or {}).get("files") if out.is_dir() else None
    if not isinstance(listed, dict):
        raise UserError(f"{out} holds something that is no encoder; it is left alone", "give another folder")
    if not overwrite:
        raise UserError(f"{out} exists already", "give another folder, or --overwrite")
    own = {path for path in out.iterdir() if path.is_file() and (path.name in EXPORT_FILES or is_litter(path.name))}
    others = sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path not in own and not path.is_dir()
    ) or sorted(f"{path.name}/" for path in out.iterdir() if path.is_dir())
    if others:
        raise UserError(
            f"{out} holds more than an encoder ({', '.join(others[:5])}); it is left alone",
            "give another folder, or move the other files away",
        )


@contextlib.contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` in which a new encoder is made; it goes when the block ends.

    Those of processes that were killed go now: nobody locks them any more. An encoder that one of them was about to
    replace gets its name back. Raises OSError when nothing can be written there.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{glob.escape(out.name)}{MAKING}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > SETTLED_SECONDS:
                _clear(left, out)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}{MAKING}", dir=out.parent))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: what is left there stays
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def _clear(left: Path, out: Path) -> None:
    """Remove what a killed process left. Raises OSError when it lives."""
    descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (left / OLD).is_dir() and not os.path.lexists(out):
            os.replace(left / OLD, out)
        log.info("action=sweep folder=%s reason=its process was killed", left)
        shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(descriptor)


def replace_export(fresh: Path, out: Path, beside: Path) -> None:
    """Give the finished folder `fresh` the name `out`; an encoder that has it (see `refuse_to_replace`) is put into
    `beside`, a `folder_beside(out)`, and goes with that."""
    old = beside / OLD
    if os.path.lexists(out):
        os.replace(out, old)
    try:
        os.replace(fresh, out)
    except OSError:
        if old.is_dir():
            os.replace(old, out)
        raise
