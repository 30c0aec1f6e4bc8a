"""What a cell follows from: configuration, records, prompts; and whether a cell that is there follows from the same.

A recipe that gained a key since, at a default that changes nothing, is the same recipe: its cells stay good. That
holds of each of two trainings; a cell from before the first one's recipe was kept beside it is judged by the second's.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.studies.design import digest_of
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import parse_json, read_bytes

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

RECIPE = "recipe.yaml"
"""Beside a cell: the configuration that was trained, each key of it, in JSON (which is YAML)."""
FIRST_RECIPE = "first_recipe.yaml"
"""Beside a cell of two trainings: that of the first one."""
CONFIG, FIRST = "config", "first"


def plain(config: RunConfig) -> dict[str, Any]:
    """A configuration with every key of it, as JSON gives it back."""
    values: dict[str, Any] = json.loads(json.dumps(config.resolved()))
    return values


def of_another_study(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder} holds {what} of another study: recipe, records, prompts or overrides differ",
        "give another --out, or move that folder away",
    )


@dataclass(frozen=True)
class Origin:
    """All that a cell follows from, as plain values; under `config`, where there is one, a configuration in which the
    fingerprint of the shard set stands for the folder where it lies; under `first` that of a training before it."""

    facts: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        return digest_of(self.facts)

    def is_of(self, folder: Path, digest: object) -> bool:
        """Whether what lies in `folder`, made from what `digest` is of, follows from this.

        It does where the digests are equal. It does too where the recipes beside it are proven by that digest and say
        the same as these configurations once the keys that they do not name have their defaults.
        """
        if digest == self.digest:
            return True
        if CONFIG not in self.facts:
            return False
        with contextlib.suppress(OSError, ValueError, UserError, LookupError, TypeError):
            written = parse_json(read_bytes(folder / RECIPE))
            facts, same = {**self.facts, CONFIG: self._placed(written)}, self.says(written)
            if self.first is not None and (folder / FIRST_RECIPE).is_file():
                written = parse_json(read_bytes(folder / FIRST_RECIPE))
                facts[FIRST], same = self.first._placed(written), same and self.first.says(written)
            return same and digest_of(facts) == digest
        return False

    @property
    def first(self) -> Origin | None:
        """What the first of two trainings follows from, its records aside; None where there is one training."""
        return Origin({CONFIG: self.facts[FIRST]}) if FIRST in self.facts else None

    def says(self, written: Any) -> bool:
        """Whether a configuration that was written down is this one. Raises UserError for none of today."""
        from cardialign.pretrain.config import parse_config

        return self._placed(plain(parse_config(written))) == self.facts[CONFIG]

    def _placed(self, values: dict[str, Any]) -> dict[str, Any]:
        """With the set of this; of two trainings the second one starts from the first, wherever that lies."""
        start = {"init_from": self.facts[CONFIG]["init_from"]} if FIRST in self.facts else {}
        return {**values, **start, "data": {**values["data"], "shards": self.facts[CONFIG]["data"]["shards"]}}
