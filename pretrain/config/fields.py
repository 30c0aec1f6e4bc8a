"""What every section of the configuration stands on:
a strict base, bounded types, and a refusal that names every problem at once.

Every number has both ends: what lies outside is a slip of the pen, or a run that cannot learn, and is told as such.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

MOST = 10**9
"""Of anything that is counted: beyond every run, and within what 32 and 64 bits, and a float, hold exactly."""

Positive = Annotated[int, Field(gt=0, le=MOST)]
Width = Annotated[int, Field(gt=0, le=2**16)]
"""Of a layer: a square matrix of the widest has 16 GiB."""
Depth = Annotated[int, Field(gt=0, le=1000)]
"""Layers, or heads, of a transformer."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
DropRate = Annotated[float, Field(ge=0.0, le=0.99)]
"""Share that is dropped while what stays is scaled up by 1 / (1 - rate)."""
Milliseconds = Annotated[float, Field(ge=0.01, le=1e7)]
MlpRatio = Annotated[float, Field(ge=0.1, le=64)]
Temperature = Annotated[float, Field(ge=1e-3, le=100)]
"""By which cosines are divided: 1 / 0.001 is as far as float32 logits tell neighbours apart."""


class Strict(BaseModel):
    """Frozen; a key it does not know is a mistake; defaults are checked like everything else.

    No field takes infinities or NaN, and none that counts or measures takes true or false.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        given = value if isinstance(value, list | tuple) else [value]
        truth = next((one for one in given if isinstance(one, bool)), None)
        kinds = set() if truth is None else _kinds(cls.model_fields[str(info.field_name)].annotation)
        if kinds & {int, float} and bool not in kinds:
            raise ValueError(f"{str(truth).lower()} is no number; write a number")
        return value


def no_blank(value: Any) -> Any:
    """Of a path, or an id: nothing, or blanks, would mean the folder where the command runs. Raises ValueError."""
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"{value!r} names nothing; write a path, or leave the key out")
    return value


Place = Annotated[Path, BeforeValidator(no_blank)]
PlaceOrId = Annotated[str, BeforeValidator(no_blank)]
"""Of a folder, or of something in a registry."""


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return set(map(type, inner))
    return {annotation} if not inner else set().union(*map(_kinds, inner))


def refuse(problems: list[str]) -> None:
    """One line per problem, each "what is wrong; what to do"; `parse_config` shows them all.

    Nothing to say: nothing happens.
    """
    if problems:
        raise ValueError("\n".join(problems))
