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
from cardialign.data_shards.shown import cell


def write_result(out: Path, result: dict[str, Any]) -> None:
    """The result as JSON. Raises UserError when it cannot be written."""
    with named_out(out):
        if is_file_to_be(out):
            write_json(out, result, indent=1)
        else:
            out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def write_rows(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same columns as CSV; None is an empty cell. Raises UserError when it cannot be written.

    Text that a spreadsheet would take for a formula gets an apostrophe before it (OWASP, CSV injection), and no control
    character stays as it is.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: cell(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows
    )
    with named_out(out):
        commit_file(out, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


@contextmanager
def named_out(out: Path) -> Iterator[None]:
    """What cannot be written in here is told as a UserError that names the option."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}", "name another file") from None


def is_file_to_be(out: Path) -> bool:
    """Not so of a pipe or a device, which must not be replaced by a file of its name."""
    with named_out(out):
        return out.is_file() or not out.exists()


def check_place(out: Path) -> None:
    """Before hours of scoring: whether a file can be made beside `out`."""
    if not is_file_to_be(out):
        return
    with named_out(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = temporary_path(out)
        probe.touch()
        probe.unlink()
