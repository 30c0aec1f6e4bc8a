"""Encoders by the names that a command line gives: a folder, a file, a plug-in, or a reference to the registry."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cardialign.data_shards.errors import UsageError, UserError

if TYPE_CHECKING:
    from cardialign.pretrain.export.usable import UsableEncoder

REGISTRY = "models:/"


@contextlib.contextmanager
def open_encoder(name: str, tracking_uri: str, trust_remote_code: bool = False) -> Iterator[UsableEncoder]:
    """The encoder in folder or file `name`, the plug-in `outside:NAME`, or the one behind `models:/NAME@ALIAS`: pulled
    to a temporary folder, its digests checked.

    Raises UserError.
    """
    from cardialign.pretrain.export import opening
    from cardialign.pretrain.export.outside.encoder import is_outside

    if not name.strip():
        raise UsageError(f"the encoder is {name!r}", "give its folder; is the variable set that it was made of?")
    name = str(Path(name).expanduser()) if name.startswith("~/") else name
    if not name.startswith(REGISTRY):
        if not is_outside(name) and not Path(name).is_dir():
            raise UserError(
                f"no encoder folder {name}",
                f"give the folder of `cardialign export`, {REGISTRY}NAME@ALIAS, or an encoder from outside "
                "(`--help` says which forms)",
            )
        yield opening.open_encoder(name, trust_remote_code=trust_remote_code)
        return
    from cardialign.cluster.registry.registry import pull

    with tempfile.TemporaryDirectory(prefix="encoder-") as scratch:
        pull(name, Path(scratch) / "encoder", tracking_uri)
        yield opening.open_encoder(Path(scratch) / "encoder", trust_remote_code=trust_remote_code)
