"""Encoders by the names that a command line gives: an exported folder, or a reference to the registry."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cardialign.data_shards.errors import UserError

if TYPE_CHECKING:
    from cardialign.pretrain.export.loaded import LoadedEncoder

REGISTRY = "models:/"


@contextlib.contextmanager
def open_encoder(name: str, tracking_uri: str) -> Iterator[LoadedEncoder]:
    """The encoder in folder `name`, or behind `models:/NAME@ALIAS`: pulled to a temporary folder, its digests checked.

    Raises UserError.
    """
    from cardialign.pretrain.export.loaded import load_encoder

    if not name.startswith(REGISTRY):
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(
                f"no encoder folder {name}", f"give the folder of `cardialign export`, or {REGISTRY}NAME@ALIAS"
            )
        yield load_encoder(folder)
        return
    from cardialign.cluster.registry.registry import pull

    with tempfile.TemporaryDirectory(prefix="encoder-") as scratch:
        pull(name, Path(scratch) / "encoder", tracking_uri)
        yield load_encoder(Path(scratch) / "encoder")
