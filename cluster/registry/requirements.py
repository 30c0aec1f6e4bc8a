"""What the gate asks of a model: which evaluations, and how much worse it may be.

From the command (`--require`, `--margin`), a policy file, and tags of the registered model (`gate.require`,
`gate.margin`). What they ask for adds up, and the smallest margin counts: no option of a command weakens what the
registry says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.cluster.tracking.names import shorten
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.files import read_text
from cardialign.data_shards.shown import quoted

REQUIRE_TAG, MARGIN_TAG = "gate.require", "gate.margin"
KINDS = ("zero-shot", "linear-probe", "fine-tune")
PROBE = KINDS[1]
_POLICY = "write require: [clean-v2:ptb-xl-super] and, where wanted, margin: 0.01"
_FORM = "write [zero-shot:|linear-probe:|fine-tune:]PROTOCOL:TASK[@PERCENT], for example clean-v2:ptb-xl-super"


@dataclass(frozen=True)
class Requirement:
    """An evaluation by kind and what it is on: `PROTOCOL:TASK`, or the name of a prompt set or label set; share: of the
    training records of a probe, in percent."""

    kind: str
    what: str
    share: float = 100.0

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Raises UsageError."""
        kind, _, rest = text.strip().partition(":")
        if kind not in KINDS:
            kind, rest = KINDS[0], text.strip()
        match = re.fullmatch(r"(?P<what>[^@]+?)(?:@(?P<share>[0-9.]{1,8}))?", rest)
        share = _number(match["share"]) if match and match["share"] else 100.0
        wrong_share = match is not None and match["share"] is not None and kind != PROBE
        if match is None or not rest.isprintable() or share is None or not 0 < share <= 100 or wrong_share:
            raise UsageError(f"{quoted(text)} names no evaluation", _FORM)
        return cls(kind, match["what"], share)

    @classmethod
    def of_name(cls, name: str) -> Requirement:
        """Of an evaluation that is there, whatever its prompts are called."""
        try:
            return cls.parse(name)
        except UsageError:
            kind, _, what = name.partition(":")
            return cls(kind, what)

    @property
    def name(self) -> str:
        """As `evidence.Evaluation` writes it."""
        share = f"@{self.share:g}" if self.kind == PROBE else ""
        return f"{self.kind}:{shorten(self.what)}{share}"

    def unknown(self) -> str:
        """What is wrong with a protocol and task that nobody has here; "" for one that is known, and for prompts."""
        from cardialign.pretrain.evaluation.protocols import load_task

        protocol, colon, task = self.what.partition(":")
        if not colon:
            return ""
        try:
            load_task(f"{protocol}:{task.partition(':')[0]}")  # what follows is a part of its records
        except UserError as error:
            return f"{error.problem}; {error.remedy}"
        return ""

    def command(self, encoder: str) -> str:
        """The command that brings it for `NAME/VERSION`."""
        by = "--protocol" if ":" in self.what else "--prompts" if self.kind == "zero-shot" else "--labels"
        share = f" --shares {self.share:g}" if self.kind == PROBE and self.share != 100 else ""
        return (
            f"cardialign evaluate {self.kind} --encoder {_quoted(f'models:/{encoder}')} --shards SHARDS "
            f"{by} {_quoted(self.what)}{share} --track"
        )


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


@dataclass(frozen=True)
class Policy:
    """What is asked for. margin: of macro AUROC, by which the whole interval of the paired difference may lie below
    zero."""

    required: tuple[Requirement, ...] = ()
    margin: float = 0.0

    @classmethod
    def of(cls, require: Sequence[str], margin: float | None, file: Path | None, tags: Mapping[str, str]) -> Policy:
        """Raises UsageError for words of the command, UserError for those of the file or of the tags."""
        words, margins = list(require), [] if margin is None else [margin]
        if file is not None:
            values = _read(file)
            words += values.get("require", [])
            margins += [values["margin"]] if "margin" in values else []
        if tags.get(REQUIRE_TAG, "").strip():
            words += [word for word in re.split(r"[,\s]+", tags[REQUIRE_TAG].strip()) if word]
        if tags.get(MARGIN_TAG, "").strip():
            found = _number(tags[MARGIN_TAG])
            if found is None:
                raise UserError(f"the tag {MARGIN_TAG} is {quoted(tags[MARGIN_TAG])}, no margin", "write 0, or 0.01")
            margins.append(found)
        return cls(tuple(dict.fromkeys(map(Requirement.parse, words))), min(margins, default=0.0))


def _read(file: Path) -> dict[str, Any]:
    from cardialign.pretrain.config.yaml_text import read_yaml

    try:
        values = read_yaml(read_text(file.expanduser()), str(file))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        told = getattr(error, "strerror", None) or error
        raise UserError(f"policy {file} cannot be read: {told}", _POLICY) from None
    if not isinstance(values, dict):
        raise UserError(f"policy {file} holds no keys", _POLICY)
    unknown = [quoted(str(key)) for key in values if key not in ("require", "margin")]
    require, margin = values.get("require", []), values.get("margin", 0.0)
    wrong = [f"it has the unknown key {key}" for key in unknown]
    if not isinstance(require, list) or not all(isinstance(word, str) for word in require):
        wrong.append(f"require is {quoted(str(require))}, no list of words")
    fits = isinstance(margin, int | float) and not isinstance(margin, bool) and math.isfinite(margin) and margin >= 0
    if not fits:
        wrong.append(f"margin is {quoted(str(margin))}, no number of 0 or more")
    if wrong:
        raise UserError(f"policy {file}: {'; '.join(wrong)}", _POLICY)
    return dict(values)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
