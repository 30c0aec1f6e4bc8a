"""Versioned prompt sets: which words stand for which label code in zero-shot evaluation.

They are data, not code (`pretrain/prompts/*.yaml`). A published figure names its prompt set and that set's digest.
Changing any word makes a new version; files there are never edited after release.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import read_text
from cardialign.data_shards.plugins import Table, did_you_mean
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.config.yaml_text import read_yaml

COMBINE = ("mean", "max")
PROMPTS = Path(__file__).parent.parent / "prompts"


@dataclass(frozen=True)
class PromptClass:
    """One label code, its human name, and the statements that stand for it (an ensemble, `PromptSet.combine`).

    against: the same statements with the opposite word, whose mean is taken off (Tiu et al. 2022 score such pairs):
    of "Normal ECG" less "Abnormal ECG" the finding is left, and the form that both share falls out.
    """

    code: str
    name: str
    prompts: tuple[str, ...]
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptSet:
    """All classes that are scored together, and the label set of the records that they answer to.

    combine: how the prompts of a class make one score. mean: by their mean unit embedding (Radford et al. 2021, section
    3.1.4). max: the one that fits the record best counts, as for statements about one lead each (FG-CLEP's ensemble).
    """

    name: str
    version: int
    label_set: str
    style: str
    classes: tuple[PromptClass, ...]
    combine: str = "mean"

    @property
    def codes(self) -> list[str]:
        return [c.code for c in self.classes]

    @property
    def digest(self) -> str:
        """sha256 over name, version, label set, codes, prompts in order and how they are combined: equal iff the scores
        mean the same."""
        classes = [[c.code, list(c.prompts), *([list(c.against)] if c.against else [])] for c in self.classes]
        content = [
            self.name,
            self.version,
            self.label_set,
            classes,
            *([] if self.combine == "mean" else [self.combine]),
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def only(self, codes: Sequence[str]) -> PromptSet:
        """The same set restricted to `codes`, in the set's order.

        Raises UsageError naming unknown codes and the known ones.
        """
        unknown = [c for c in codes if c not in self.codes]
        if unknown:
            raise UsageError(
                f"prompt set {self.name} has no class {', '.join(unknown)}", f"choose from: {', '.join(self.codes)}"
            )
        return replace(self, classes=tuple(c for c in self.classes if c.code in set(codes)))

    def class_names(self, in_leads: bool = False) -> PromptSet:
        """The same classes asked for by their names alone; in_leads: or by "NAME in lead L", whichever fits best."""
        ends = ["", *(f" in lead {lead}" for lead in STANDARD_LEADS)] if in_leads else [""]
        named = tuple(
            PromptClass(each.code, each.name, tuple(each.name + end for end in ends)) for each in self.classes
        )
        style = "class names, also in each lead" if in_leads else "class names"
        return PromptSet(
            f"{self.name}, {style}", self.version, self.label_set, style, named, "max" if in_leads else "mean"
        )


def said(prompts: PromptSet, words: str) -> PromptSet:
    """The set as it is ("prompts"), by its class names ("names"), or by these also in each lead ("names-in-leads")."""
    return prompts if words == "prompts" else prompts.class_names(in_leads=words == "names-in-leads")


def _no_file(thing: Any) -> str | None:
    if not isinstance(thing, str | Path):
        return f"it is of type {type(thing).__name__}, not the path of a YAML file"
    return None if Path(thing).is_file() else f"there is no file {thing}"


PROMPT_SETS = Table("prompt", {path.stem: str(path) for path in sorted(PROMPTS.glob("*.yaml"))}, check=_no_file)
"""Name -> path of a shipped set; then the entry points of the group `cardialign.prompts`, each a path of a YAML file.

Only those of other packages are for `find`: ours are files already.
"""


def prompt_set_names() -> list[str]:
    return sorted(PROMPT_SETS)


def _place(prompts: str | Path) -> Path:
    """The file of a set that is known by name, ours first; else what was given, as a path."""
    ours = PROMPTS / f"{prompts}.yaml"
    if ours.is_file():
        return ours
    return Path(PROMPT_SETS.find(str(prompts)) if str(prompts) in PROMPT_SETS else prompts)


def load_prompts(prompts: str | Path) -> PromptSet:
    """Name of a set (see `prompt_set_names`) or path of a YAML file of the same form.

    Raises UsageError, all mistakes at once.
    """
    try:
        path = _place(prompts)
        text = read_text(path) if path.is_file() else None
    except OSError as error:
        raise UsageError(f"prompt set {prompts}: {error.strerror}", "give a YAML file that can be read") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"prompt set {prompts} is no UTF-8 text: {error}", "save it as UTF-8") from None
    if text is None:
        names = prompt_set_names()
        near = did_you_mean(str(prompts), names)
        raise UsageError(f"no prompt set {str(prompts)!r}{near}", f"use a YAML file or one of: {', '.join(names)}")
    values = read_yaml(text, f"prompt set {path}")
    mistakes = _mistakes(values)
    if mistakes:
        listed = "\n".join(f"  - {line}" for line in mistakes)
        raise UsageError(
            f"prompt set {path} has {len(mistakes)} mistake{'s' * (len(mistakes) > 1)}:\n{listed}",
            "correct them and run again",
        )
    classes = tuple(
        PromptClass(code, entry["name"], tuple(entry["prompts"]), tuple(entry.get("against", ())))
        for code, entry in values["classes"].items()
    )
    combine = values.get("combine", "mean")
    found = PromptSet(values["name"], values["version"], values["label_set"], values["style"], classes, combine)
    if found.name in PROMPT_SETS and not path.samefile(_place(found.name)) and found != load_prompts(found.name):
        raise UsageError(
            f"prompt set {path} has the name of another one, {found.name}, under which its figures would stand",
            "give it a name of its own (key `name`)",
        )
    return found


def _mistakes(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return ["the file does not hold a mapping with name, version, label_set, style and classes"]
    kinds = {"name": str, "version": int, "label_set": str, "style": str, "classes": dict}
    unknown = [key for key in values if key not in (*kinds, "combine")]
    out = [f"{str(key)[:60]}: unknown key; known keys: {', '.join(kinds)}, combine" for key in unknown]
    for key, kind in kinds.items():
        value = values.get(key)
        if not isinstance(value, kind) or not value or isinstance(value, bool):
            out.append(f"{key}: must be a non-empty {kind.__name__}, got {reprlib.repr(value)[:80]}")
    combine, classes = values.get("combine", "mean"), values.get("classes")
    if combine not in COMBINE:
        out.append(f"combine: must be one of {', '.join(COMBINE)}, got {reprlib.repr(combine)[:80]}")
    if combine == "max" and (pairs := _having_against(classes)):
        out.append(f"combine: max takes no `against`, which {', '.join(pairs)} has; write combine: mean")
    for code, entry in (classes if isinstance(classes, dict) else {}).items():
        out += [f"classes.{str(code)[:60]}: {reason}" for reason in _class_mistakes(code, entry)]
    return out or _alike(classes or {})


def _alike(classes: dict[str, dict[str, Any]]) -> list[str]:
    """Classes that nobody can tell apart: asked with the same words they have one score, whatever they are; and those
    whose score is 0 because it is taken off itself."""
    out: list[str] = []
    for what in ("name", "prompts"):
        first: dict[Any, str] = {}
        for code, each in classes.items():
            said = (
                _words([each["name"]]) if what == "name" else (_words(each["prompts"]), _words(each.get("against", ())))
            )
            other = first.setdefault(said, code)
            if other != code:
                needs = "a name" if what == "name" else "prompts"
                out.append(f"classes.{code[:60]}: has the {what} of {other[:60]}; a class needs {needs} of its own")
    own = [code for code, each in classes.items() if _words(each["prompts"]) & _words(each.get("against", ()))]
    return out + [f"classes.{code[:60]}: a prompt stands in `against`, too" for code in own]


def _words(prompts: Sequence[str]) -> frozenset[str]:
    return frozenset(map(_said, prompts))


def _said(text: str) -> str:
    """The words alone: not their case, spaces, and the marks around them. A question mark says something."""
    return " ".join(text.casefold().split()).strip(" .,;:!\"'")


def _having_against(classes: Any) -> list[str]:
    given = classes.items() if isinstance(classes, dict) else ()
    return [str(code)[:60] for code, each in given if isinstance(each, dict) and "against" in each]


def _class_mistakes(code: Any, entry: Any) -> list[str]:
    if isinstance(code, str) and not code.isprintable():
        return ["the code holds characters that cannot be printed"]
    if not isinstance(code, str):  # YAML reads 1 or NO as something else
        return [f"the code was read as {type(code).__name__}; put it in quotes"]
    if not isinstance(entry, dict) or set(entry) - {"against"} != {"name", "prompts"}:
        return ["must hold exactly `name` and `prompts`, and may hold `against`"]
    named = isinstance(entry["name"], str) and entry["name"].strip() and entry["name"].isprintable()
    out = [] if named else ["name must be a non-empty text"]
    for key in ("prompts", "against"):
        out += _list_mistakes(key, entry[key]) if key in entry else []
    return out


def _list_mistakes(key: str, prompts: Any) -> list[str]:
    if not isinstance(prompts, list) or not prompts:
        return [f"{key} must be a non-empty list"]
    if any(not isinstance(p, str) or not p.strip() or not p.isprintable() for p in prompts):
        return [f"every one of {key} must be a non-empty text on one line"]
    return ["a prompt is listed twice"] if len(_words(prompts)) != len(prompts) else []
