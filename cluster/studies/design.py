"""What a study compares: one recipe in several variants, each a few keys away from it, or several recipes; over folds
and seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import read_text

LONGEST_NAME = 60
PAEDIATRIC = "paediatric"
"""The study that is no YAML file (`studies.paediatric`)."""
KEYS, MAY = ("name", "recipe", "reference", "variants"), ("records", "missingness")
VARIANT_KEYS, VARIANT_MAY = ("words", "set"), ("recipe",)
FLOORS = {
    "untrained": "the reference with fresh weights",
    "random-kernels": "random convolution kernels + logistic regression",
    "hand-features": "rates, intervals, amplitudes + logistic regression",
}
"""What stands beside the variants of every study (`studies.floors`), and what it is in words."""


@dataclass(frozen=True)
class Variant:
    """name, what it is in words, and the keys (dotted) in which it differs from its recipe: that of the study, or one
    of its own."""

    name: str
    words: str
    changes: dict[str, Any]
    recipe: str | None = None

    @property
    def overrides(self) -> list[str]:
        """As `--set` takes them."""
        return [f"{key}={json.dumps(value)}" for key, value in self.changes.items()]


@dataclass(frozen=True)
class Design:
    """A study: the recipe, the variant that the others are compared with, and all of them.

    records: how many records every variant sees in training, whatever its batch; None: as its recipe says.
    missingness: also scored with leads and time missing (`studies.missing`).
    """

    name: str
    recipe: str
    reference: str
    variants: tuple[Variant, ...]
    records: int | None = None
    missingness: bool = False

    def recipe_of(self, variant: Variant) -> str:
        return variant.recipe or self.recipe

    def only(self, names: Sequence[str]) -> Design:
        """The study of these variants and the reference. Raises UsageError for a name that it does not have."""
        known = [variant.name for variant in self.variants]
        for name in names:
            if name not in known:
                raise UsageError(f"study {self.name} has no variant {name!r}", f"its variants are {', '.join(known)}")
        kept = tuple(variant for variant in self.variants if variant.name in {*names, self.reference})
        return replace(self, variants=kept)


@dataclass(frozen=True)
class Cell:
    """One training run and its evaluation: a variant, the fold that it is tested on, a seed."""

    variant: Variant
    fold: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant.name}-fold{self.fold}-seed{self.seed}"


def study_names() -> list[str]:
    """The studies that come with the package."""
    folder = files("cardialign.pretrain") / "studies"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_design(study: str | Path) -> Design:
    """A shipped study by name, or a YAML file. Raises UsageError that names what is wrong in it."""
    from cardialign.pretrain.config.yaml_text import read_yaml

    shipped = study_names()
    if str(study) in shipped:
        text, where = (
            (files("cardialign.pretrain") / "studies" / f"{study}.yaml").read_text(encoding="utf-8"),
            str(study),
        )
    else:
        try:
            text, where = read_text(Path(study)), str(study)
        except (OSError, UnicodeDecodeError) as error:
            known = f"give a YAML file, or one of {', '.join([*shipped, PAEDIATRIC])}"
            if isinstance(error, FileNotFoundError):
                raise UsageError(f"there is no study {study}, and no file of that name", known) from None
            raise UsageError(f"study {study} cannot be read: {error}", known) from None
    return _judged(read_yaml(text, where), where)


def _judged(values: Any, where: str) -> Design:
    def refuse(problem: str) -> UsageError:
        return UsageError(
            f"study {where}: {problem}",
            f"a study has {', '.join(KEYS)}, records where all variants see as many, and missingness; a variant is "
            "NAME: {words: what it is, set: {encoder.beat: false}}, and recipe where it has one of its own",
        )

    if not isinstance(values, dict):
        raise refuse("it is not a mapping of these keys")
    if unknown := [str(key)[:40] for key in values if key not in KEYS + MAY]:
        raise refuse(f"unknown key {', '.join(unknown)}")
    if missing := [key for key in KEYS if key not in values]:
        raise refuse(f"it has no {', '.join(missing)}")
    if not all(isinstance(values[key], str) for key in KEYS[:3]):
        raise refuse("name, recipe and reference are words")
    records = values.get("records")
    if records is not None and (isinstance(records, bool) or not isinstance(records, int) or records < 1):
        raise refuse(f"records is {records!r:.40}, and no whole number above 0")
    if not isinstance(values.get("missingness", False), bool):
        raise refuse("missingness is true or false")
    if not isinstance(values["variants"], dict) or not values["variants"]:
        raise refuse("variants is empty")
    variants: list[Variant] = []
    for name, each in values["variants"].items():
        if problem := _wrong(name, each):
            raise refuse(f"variant {name!r:.40} {problem}")
        if alike := [other.name for other in variants if other.name.lower() == name.lower()]:
            raise refuse(f"variants {alike[0]} and {name} would share their folders where capitals do not count")
        variants.append(Variant(name, " ".join(each["words"].split()), each["set"], each.get("recipe")))
    if values["reference"] not in values["variants"]:
        raise refuse(f"its reference {values['reference']!r:.40} is none of its variants")
    asked = values.get("missingness", False)
    return Design(values["name"], values["recipe"], values["reference"], tuple(variants), records, asked)


def _wrong(name: Any, each: Any) -> str:
    """What is wrong with a variant, "" for nothing. Its name becomes that of folders."""
    plain = isinstance(name, str) and name.replace("-", "").replace("_", "").isalnum() and len(name) <= LONGEST_NAME
    if not plain:
        return f"needs a plain name: at most {LONGEST_NAME} letters, digits, - and _"
    if name in FLOORS:
        return "is called like a floor, which every study has"
    if not isinstance(each, dict):
        return "is no mapping of `words` and `set`"
    if unknown := [str(key)[:40] for key in each if key not in VARIANT_KEYS + VARIANT_MAY]:
        return f"has an unknown key {', '.join(unknown)}; it has `words` and `set`, and may have `recipe`"
    if missing := [key for key in VARIANT_KEYS if key not in each]:
        return f"has no `{missing[0]}`" + ("; where it is the recipe itself, write set: {}" if "set" in missing else "")
    if not isinstance(each["words"], str):
        return "needs a text for `words`; put it in quotes"
    if not isinstance(each.get("recipe", ""), str):
        return "needs a word for `recipe`: the name of one, or a YAML file"
    if not isinstance(each["set"], dict):
        return "needs a mapping for `set`, dotted keys of the recipe to values"
    try:
        json.dumps(each["set"])
    except (TypeError, ValueError):
        return "sets a value that is no number, word, list or mapping of these; put dates in quotes"
    return ""


def digest_of(values: Any) -> str:
    """sha256 of anything that JSON holds: a cell that is there counts only while what it was made from is the same."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def cells_of(design: Design, test_folds: Sequence[int], seeds: int) -> list[Cell]:
    """All cells, seed by seed: what a budget ends early is whole up to some seed."""
    return [Cell(variant, fold, seed) for seed in range(seeds) for fold in test_folds for variant in design.variants]
