"""A data set of which nothing that identifies goes into the shards: for archives whose file names, or dates, are those
of patients. Reports are text, and go in as they are: who has names or dates in them takes them out before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError, RecordRejected, UsageError
from cardialign.data_shards.reading.walk import NotSeen
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources.base import Entry, Source, Walked
from cardialign.data_shards.sources.shared.patients import SHORTEST_SALT, patient_hash

LEFT_OUT = "left out with the names (--hash-keys)"
_HARMLESS = ("other_channels",)
"""Of what a reader keeps beside a record, what names no record and nobody."""
_DATE = re.compile(r"[12][0-9]{3}[-/.]?[01][0-9][-/.]?[0-3][0-9]|[0-3]?[0-9][-/.][01]?[0-9][-/.](?:[12][0-9])?[0-9]{2}")


class Pseudonyms:
    """`source` with keys that are keyed hashes of its own (names) and without the times of recording (dates).

    With names hidden no name of a file stands in the set, in its list of rejected records, or in what a reader keeps
    beside a record. Raises UsageError for hidden names without a salt of SHORTEST_SALT characters: names can be tried
    out.
    """

    def __init__(self, source: Source, *, names: bool, dates: bool, salt: Secret | str = "") -> None:
        salt = Secret.of(salt)
        if names and len(salt) < SHORTEST_SALT:
            raise UsageError(
                f"--hash-keys has {'no salt' if not salt else f'a salt of {len(salt)} characters'}: names of files can "
                "be tried out",
                f"give --salt-file with {SHORTEST_SALT} characters or more",
            )
        self._source, self.hides_names, self._dates, self._salt = source, names, dates, salt
        self.name, self.root, self.label_sets = source.name, Path(source.root), source.label_sets

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_salt": self._salt.reveal()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_salt": Secret(state["_salt"])}

    @classmethod
    def options(cls) -> dict[str, str]:
        return {}

    def entries(self) -> Iterator[Entry]:
        for entry in self._source.entries():
            self.label_sets = self._source.label_sets  # a walk may find some
            yield replace(entry, key=self._key(entry.key)) if self.hides_names else entry

    def read(self, entry: Entry) -> EcgRecord:
        try:
            record = self._source.read(entry)
        except RecordRejected as rejection:
            raise RecordRejected(rejection.reason, LEFT_OUT) if self.hides_names else rejection from None
        except (DataError, OSError):
            raise
        except Exception as error:
            if not self.hides_names:
                raise
            raise RuntimeError(f"{type(error).__name__}, {LEFT_OUT}") from None
        extra = dict(record.extra)
        if self.hides_names:
            extra = {name: value for name, value in extra.items() if name in _HARMLESS}
        if self._dates:
            extra = {name: value for name, value in extra.items() if not _tells_a_date(name, value)}
        return replace(record, acquired=None if self._dates else record.acquired, extra=extra)

    def describe(self) -> dict[str, Any]:
        told = self._source.describe()
        hidden = {"hash_keys": self.hides_names, "no_dates": self._dates}
        return {**told, "options": {**told.get("options", {}), **hidden}}

    def not_seen(self) -> list[NotSeen]:
        found = self._source.not_seen() if isinstance(self._source, Walked) else []
        return [replace(each, path="", detail=LEFT_OUT) for each in found] if self.hides_names else found

    def _key(self, key: str) -> str:
        return f"{re.sub('[^A-Za-z0-9]', '', self.name)}-{patient_hash(f'key {key}', self._salt)}"


def _tells_a_date(name: str, value: Any) -> bool:
    told = value if isinstance(value, list | tuple) else [value]
    return "date" in name.casefold() or any(_DATE.search(str(each)) for each in told if isinstance(each, str))
