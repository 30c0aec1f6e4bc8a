"""The file of `--out`, or the files in it: judged before hours of work, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import commit_file, temporary_path, write_json


def write_result(out: Path, result: dict[str, Any]) -> None:
    """The result as JSON. Raises UserError when it cannot be written."""
    with _named(out):
        if _is_file_to_be(out):
            write_json(out, result, indent=1)
        else:
            out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def write_rows(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same columns as CSV; None is an empty cell. Raises UserError when it cannot be written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with _named(out):
        commit_file(out, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


@contextmanager
def _named(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}", "name another file") from None


def _is_file_to_be(out: Path) -> bool:
    """Not so of a pipe or a device, which must not be replaced by a file of its name."""
    with _named(out):
        return out.is_file() or not out.exists()


def check_place(out: Path) -> None:
    """Before hours of scoring: whether a file can be made beside `out`."""
    if not _is_file_to_be(out):
        return
    with _named(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = temporary_path(out)
        probe.touch()
        probe.unlink()
