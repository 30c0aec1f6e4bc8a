"""Files of the artifact store, fetched by names of ours from places that are allowed, up to a size that is said.

A registry is a server of other people's: where artifacts lie, what they are called and how large they are is its word.
It does not choose what this machine reads or connects to: a place is of a kind that is listed here, on the server that
was named or in a cloud's own store, and on this machine only where the registry itself is a file on it, or below a
folder that the user names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.places import check_place
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shown import public, shown
from cardialign.pretrain.run.integrity import DIGESTS, EXPORT_FILES, is_litter, listed_names

LARGEST = 8 << 30
"""Bytes that one encoder, or what lies beside it, may have; a base encoder has a twentieth of that."""
_PUT_BACK = "the artifact store holds it so: put back what was registered, or register it again from its run"


def fetch_files(source: str, names: Sequence[str], folder: Path, uri: str, wanted: str, most: int = LARGEST) -> Path:
    """These files at an artifact address, in `folder`, which is returned. Raises DataError."""
    from mlflow.artifacts import download_artifacts

    check_place(source, uri, wanted)
    folder.mkdir(parents=True, exist_ok=True)
    left = most
    for name in names:
        with _reported(source, uri, wanted, most), _no_larger_than(left):
            download_artifacts(artifact_uri=f"{source}/{name}", dst_path=str(folder), tracking_uri=uri)
        if not (folder / name).is_file() or (folder / name).is_symlink():
            raise _not_fetched(source, wanted, f"{name} is no file there")
        left -= (folder / name).stat().st_size
        if left < 0:
            raise _too_large(source, wanted, most)
    return folder


def fetch_encoder(source: str, folder: Path, uri: str, wanted: str, most: int = LARGEST) -> Path:
    """The files of an exported encoder at an artifact address: what is there is looked at before anything is fetched.

    Raises DataError for a file that no encoder has, and for more than `most` bytes; UserError for a digest list that no
    export has. Nothing is verified here but names and sizes.
    """
    check_place(source, uri, wanted)
    there = _names_and_sizes(source, uri, wanted)
    strange = sorted(name for name in there if name not in EXPORT_FILES and not is_litter(name))
    if strange:
        told = ", ".join(shown(name)[:80] for name in strange[:5])
        raise DataError(
            f"{wanted}: no encoder holds {told}, which lies among its files; nothing was fetched",
            _PUT_BACK,
        )
    if sum(size for name, size in there.items() if name in EXPORT_FILES) > most:
        raise _too_large(source, wanted, most)
    fetch_files(source, (DIGESTS,), folder, uri, wanted, most)
    left, names = most - (folder / DIGESTS).stat().st_size, listed_names(folder)
    if missing := sorted(set(names) - set(there)) if there else []:
        raise DataError(f"{wanted}: {', '.join(missing)}: missing in the artifact store", _PUT_BACK)
    return fetch_files(source, names, folder, uri, wanted, left)


def _names_and_sizes(source: str, uri: str, wanted: str) -> dict[str, int]:
    """What the store says that lies there; {} of one that shows no folders."""
    from mlflow.artifacts import list_artifacts

    with _reported(source, uri, wanted):
        found = list_artifacts(artifact_uri=source, tracking_uri=uri)
    above = source.rstrip("/").rpartition("/")[2] + "/"
    sizes = {}
    for each in found:
        name = str(each.path).removeprefix(above) + ("/" if each.is_dir else "")
        sizes[name] = each.file_size if isinstance(each.file_size, int) else 0
    return sizes


@contextlib.contextmanager
def _reported(source: str, uri: str, wanted: str, most: int = LARGEST) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # every artifact store has errors of its own
        if os.strerror(errno.EFBIG) in str(error):
            raise _too_large(source, wanted, most) from None
        raise _not_fetched(source, wanted, mlflow_store.reason(error, uri)) from None


def _not_fetched(source: str, wanted: str, why: str) -> DataError:
    return DataError(
        f"{wanted}: its artifacts cannot be fetched from {shown(public(source))[:300]}: {why}",
        "check the artifact store, or register again",
    )


def _too_large(source: str, wanted: str, most: int) -> DataError:
    return DataError(
        f"{wanted}: what lies at {shown(public(source))[:300]} is larger than {most / 1e9:.3g} GB",
        "no encoder of ours is so large; `registry pull --max-gb N` fetches it all the same",
    )


@contextlib.contextmanager
def _no_larger_than(size: int) -> Iterator[None]:
    """In this block no file of this process grows beyond this: a server may send more than it has said."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    least = max(size, 0) + 1
    within = least if before[0] == resource.RLIM_INFINITY else min(least, before[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (within, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
