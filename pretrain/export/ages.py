"""The age of a patient as a user gives it, and how it reaches an encoder that reads it.

An encoder with an age gate (`encoder.age_gate`) is without an age the encoder without the gate; every other encoder
knows no age at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UserError

YEARS = "years"
MEANING = (
    "float (B,) in years since birth, days as days / 365.25; where it is not known leave it out (NaN in a program): "
    "the age gate then changes nothing"
)
OLDEST_YEARS = 130.0
"""Nobody is known to have lived longer: more is an age in another unit."""


def checked_ages(age: Any, records: int, unit: str) -> np.ndarray | None:
    """float32 (B,) in years, NaN where an entry is None; None where no age is given at all.

    unit: of the signal contract. Raises UserError for what is no age in years, and for an encoder that reads none.
    """
    if age is None:
        return None
    if not unit:
        raise UserError("the encoder does not read the age", "leave age out; one with encoder.age_gate reads it")
    given = np.asarray(age.tolist() if hasattr(age, "tolist") else age, dtype=object)
    given = given[None] if given.ndim == 0 else given
    if given.shape != (records,):
        raise UserError(
            f"age has shape {np.shape(age)} for {records} record{'s' if records > 1 else ''}",
            "give one age in years per record, None where it is not known",
        )
    return np.array([_years(each, row) for row, each in enumerate(given.tolist())], dtype=np.float32)


def _years(value: Any, row: int) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UserError(f"age of record {row} is {value!r:.40}, and no number", "give years since birth, e.g. 6.5")
    years = float(value)
    if math.isnan(years):
        raise UserError(f"age of record {row} is NaN", "give years since birth, or None where it is not known")
    if years < 0:
        raise UserError(
            f"age of record {row} is {years:g}, which is before birth", "give years since birth; a newborn is 0"
        )
    if years > OLDEST_YEARS:
        raise UserError(
            f"age of record {row} is {years:g} years, and nobody has lived {OLDEST_YEARS:g}",
            "give years: months / 12, days / 365.25; if the year of birth was meant, subtract it from that of the ECG",
        )
    return years


@dataclass(frozen=True)
class AgeReader:
    """A reader of records that takes their ages, too: `age` float (B,) in years, NaN where it is not known."""

    read: Callable[..., Any]

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self.read(*given, **named)


def aged(reader: Callable[..., Any], age_years: np.ndarray) -> Callable[..., Any]:
    """The reader with the ages (B,) of the batch that it is about to read; of one that reads no age the reader."""
    return partial(reader, age=age_years) if isinstance(reader, AgeReader) else reader
