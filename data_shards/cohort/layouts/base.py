"""What every layout shares: the writer's protocol, WFDB format-16 files, CSV tables."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from cardialign.data_shards.cohort.patients import Patient, Visit
from cardialign.data_shards.cohort.synthesis import Recording

Rows = dict[str, list[dict[str, Any]]]
"""Table file name -> rows, as one patient or a whole cohort contributes them."""
_MOST = 10**7
"""Patients of a cohort at most."""
_SEEDS = 9 * 10**8
"""Seeds whose patients are told apart: tables of PTB-XL write an id as a decimal, which holds 2**53."""


class Layout(Protocol):
    """One data set's way of laying out files.

    id_column: how truth.csv names a record; gain: counts per mV; tables: CSV file -> its columns.
    """

    name: str
    id_column: str
    gain: float
    tables: ClassVar[dict[str, tuple[str, ...]]]

    def record_id(self, visit: Visit) -> str: ...

    def seconds(self, patient: Patient, visit: Visit, seed: int) -> float: ...

    def write_record(self, root: Path, patient: Patient, visit: Visit, recording: Recording, seed: int) -> Rows: ...

    def patient_rows(self, patient: Patient) -> Rows: ...

    def write_extras(self, root: Path) -> None: ...


def patient_number(patient: Patient, seed: int) -> int:
    """From 1 on; cohorts of two seeds have nobody in common, as one may be trained on and the other scored."""
    return patient.index + 1 + _MOST * (seed % _SEEDS)


def wfdb_header(
    name: str,
    signals: np.ndarray,
    leads: Sequence[str],
    gain: float,
    sampling_rate: int,
    time: str = "",
    comments: Iterable[str] = (),
) -> str:
    """Header of a format-16 record, counts int16 (L, T).

    `time` is "HH:MM:SS dd/mm/yyyy" or empty. Initial value and checksum as WFDB defines them.
    """
    lines = [f"{name} {len(signals)} {sampling_rate} {signals.shape[1]}{' ' + time if time else ''}"]
    checksums = signals.sum(axis=1, dtype=np.int64) & 0xFFFF
    for lead, first, checksum in zip(leads, signals[:, 0].tolist(), checksums.tolist(), strict=True):
        lines.append(f"{name}.dat 16 {gain:.1f}(0)/mV 16 0 {first} {checksum} 0 {lead}")
    lines += [f"# {c}" for c in comments]
    return "\n".join(lines) + "\n"


def write_wfdb(folder: Path, header: str, name: str, signals: np.ndarray) -> None:
    """NAME.hea and NAME.dat (interleaved little-endian int16) in `folder`."""
    (folder / f"{name}.hea").write_text(header, encoding="ascii", newline="\n")
    (folder / f"{name}.dat").write_bytes(np.ascontiguousarray(signals.T, dtype="<i2").tobytes())


def write_table(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """A CSV file with exactly these columns; a row's missing columns stay empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
