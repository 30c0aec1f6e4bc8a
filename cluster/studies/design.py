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

from cardialign.cluster.studies.measures import MEASURES, unknown_measures
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import read_text

LONGEST_NAME = 60
PAEDIATRIC = "paediatric"
"""The study that is no YAML file (`studies.paediatric`)."""
KEYS, MAY = ("name", "recipe", "reference", "variants"), ("records", "missingness", "measures")
VARIANT_KEYS, VARIANT_MAY = ("words", "set"), ("recipe", "first", "supervised")
FIRST_KEYS = ("recipe", "records")
FLOORS = {
    "untrained": "the reference with fresh weights",
    "random-kernels": "random convolution kernels + logistic regression",
    "hand-features": "rates, intervals, amplitudes + logistic regression",
}
"""What stands beside the variants of every study (`studies.floors`), and what it is in words."""


@dataclass(frozen=True)
class First:
    """A training before that of the variant, which starts from its weights: recipe, and how many records it sees."""

    recipe: str
    records: int


@dataclass(frozen=True)
class Variant:
    """name, what it is in words, and the keys (dotted) in which it differs from its recipe: that of the study, or one
    of its own.

    first: of two trainings the first one; supervised: trained on the labels alone, from random weights, by this preset
    of fine-tuning (`probing.fine_tune.PRESETS`), without a recipe; its changes are of the preset's encoder.
    """

    name: str
    words: str
    changes: dict[str, Any]
    recipe: str | None = None
    first: First | None = None
    supervised: str | None = None

    @property
    def overrides(self) -> list[str]:
        """As `--set` takes them."""
        return [f"{key}={json.dumps(value)}" for key, value in self.changes.items()]


@dataclass(frozen=True)
class Design:
    """A study: the recipe, the variant that the others are compared with, and all of them.

    records: how many records every variant sees in training, whatever its batch; None: as its recipe says.
    missingness: also scored with leads and time missing (`studies.missing`).
    measures: what each is scored by (`studies.measures`).
    """

    name: str
    recipe: str
    reference: str
    variants: tuple[Variant, ...]
    records: int | None = None
    missingness: bool = False
    measures: tuple[str, ...] = MEASURES

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
            f"a study has {', '.join(KEYS)}, records where all variants see as many, measures, and missingness; a "
            "variant is NAME: {words: what it is, set: {encoder.beat: false}}, and recipe where it has one of its own, "
            "first where another training comes before, or supervised where labels alone train it",
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
    asked, measures = values.get("missingness", False), values.get("measures", list(MEASURES))
    if problem := unknown_measures(measures, asked):
        raise refuse(problem)
    if not isinstance(values["variants"], dict) or not values["variants"]:
        raise refuse("variants is empty")
    variants: list[Variant] = []
    for name, each in values["variants"].items():
        if problem := _wrong(name, each) or _wrong_kind(each, records):
            raise refuse(f"variant {name!r:.40} {problem}")
        if alike := [other.name for other in variants if other.name.lower() == name.lower()]:
            raise refuse(f"variants {alike[0]} and {name} would share their folders where capitals do not count")
        first = First(**each["first"]) if "first" in each else None
        words, supervised = " ".join(each["words"].split()), each.get("supervised")
        variants.append(Variant(name, words, each["set"], each.get("recipe"), first, supervised))
    if values["reference"] not in values["variants"]:
        raise refuse(f"its reference {values['reference']!r:.40} is none of its variants")
    if "supervised" in values["variants"][values["reference"]]:
        raise refuse("its reference is supervised; choose a variant that has a recipe")
    return Design(
        values["name"], values["recipe"], values["reference"], tuple(variants), records, asked, tuple(measures)
    )


def _wrong_kind(each: dict[str, Any], records: int | None) -> str:
    """What is wrong with the stages of a variant, or with its preset; "" for nothing."""
    from cardialign.pretrain.evaluation.probing.fine_tune import PRESETS

    if "supervised" in each:
        known = [name for name, (start, _) in PRESETS.items() if start is not None]
        if each["supervised"] not in known:
            return f"has supervised {each['supervised']!r:.40}, and the presets are {', '.join(known)}"
        if "recipe" in each or "first" in each or not all(str(key).startswith("encoder.") for key in each["set"]):
            return "is supervised: it has no recipe, no first training, and sets keys of `encoder.` alone"
    if "first" not in each:
        return ""
    first = each["first"]
    if not isinstance(first, dict) or set(first) != set(FIRST_KEYS) or not isinstance(first["recipe"], str):
        return "needs a mapping for `first`: {recipe: NAME, records: how many it sees}"
    seen = first["records"]
    if records is None:
        return "has a first training, and the study does not say how many `records` both see together"
    if isinstance(seen, bool) or not isinstance(seen, int) or not 0 < seen < records:
        return f"shows {seen!r:.40} records to its first training; give a number above 0 and below {records}"
    return ""


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
