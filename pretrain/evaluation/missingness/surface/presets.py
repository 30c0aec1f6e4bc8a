"""Leads that are there on devices with fewer than twelve, by name; or any leads, by theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS

PRESETS: dict[str, tuple[str, ...]] = {
    "lead-i": ("I",),  # a watch
    "leads-i-ii": ("I", "II"),
    "leads-i-ii-v2": ("I", "II", "V2"),
    "limb": ("I", "II", "III", "aVR", "aVL", "aVF"),  # two electrodes more than I alone: the rest is arithmetic
}


@dataclass(frozen=True)
class Preset:
    """name, and the leads that are recorded, in the order of STANDARD_LEADS; all others are missing."""

    name: str
    leads: tuple[str, ...]


def presets_of(words: Sequence[str]) -> tuple[Preset, ...]:
    """Names of `PRESETS`, or leads with commas between: `I,V5`. Raises UsageError for what is neither, for all twelve
    leads, and for two words that mean the same leads."""
    found: dict[tuple[str, ...], Preset] = {}
    for word in words:
        leads = PRESETS[word] if word in PRESETS else _leads(word)
        if leads in found:
            raise UsageError(f"{word} and {found[leads].name} are the same leads", "leave one of them out")
        found[leads] = Preset(word if word in PRESETS else ", ".join(leads), leads)
    return tuple(found.values())


def _leads(word: str) -> tuple[str, ...]:
    names = {lead.casefold(): lead for lead in STANDARD_LEADS}
    given = [part.strip() for part in word.split(",")]
    unknown = [part for part in given if part.casefold() not in names]
    if unknown:
        raise UsageError(
            f"{word!r:.60} is no preset, and {', '.join(unknown) or 'nothing'!r:.60} no lead",
            f"presets: {', '.join(PRESETS)}; or leads that are there, commas between: {', '.join(STANDARD_LEADS)}",
        )
    chosen = {names[part.casefold()] for part in given}
    if len(chosen) == len(STANDARD_LEADS):
        raise UsageError(f"{word!r:.60} are all twelve leads: nothing would be missing", "leave it out")
    return tuple(lead for lead in STANDARD_LEADS if lead in chosen)
