"""What every section of the configuration stands on: a strict base, bounded types, and a refusal that names every problem at once."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Strict(BaseModel):
    """Frozen; a key it does not know is a mistake; defaults are checked like everything else."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def refuse(problems: list[str]) -> None:
    """One line per problem, each "what is wrong; what to do"; `parse_config` shows them all. Nothing to say: nothing happens."""
    if problems:
        raise ValueError("\n".join(problems))
