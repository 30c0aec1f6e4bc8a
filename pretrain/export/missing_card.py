"""What an encoder is worth without some of the twelve leads, as it was measured: a card that its export may carry.

missingness.json   which encoder (digest of its export without the card), on which records by what, the surface,
                   `earlier`, the digests of the export under cards that this one replaced, and `digest`, the sha256 of
                   all the rest. It is one of the files in `digests.json`, and so is signed with them.

`evaluate missingness` makes it. A figure of AUROC that is lost is (value, low, high), above 0 where leads are missed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import parse_json, read_bytes, write_json
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.export.model_card import with_missing
from cardialign.pretrain.run.integrity import (
    CARD,
    DIGESTS,
    EARLIER,
    MISSINGNESS,
    VerifiedExport,
    folder_beside,
    read_export,
    replace_export,
    write_digests,
)

log = logging.getLogger(__name__)

CARD_VERSION = 1
NEAR = 1
"""A number of missing leads that was measured speaks for one lead more or less."""

Lost = tuple[float, float, float]


@dataclass(frozen=True)
class MissingnessCard:
    """on: what it was measured on, in words. presets: recorded leads -> what is lost when these alone are there;
    numbers: how many of twelve are missing -> what is lost, leads drawn at random."""

    on: str
    presets: Mapping[tuple[str, ...], Lost]
    numbers: Mapping[int, Lost]

    def expect(self, recorded: np.ndarray) -> str:
        """Words for a record with these leads, bool (12,); "" where none is missing."""
        leads = tuple(lead for lead, there in zip(STANDARD_LEADS, recorded, strict=True) if there)
        missing = len(STANDARD_LEADS) - len(leads)
        if not missing:
            return ""
        if leads in self.presets:
            return f"{', '.join(leads)}: expect {said(self.presets[leads])} points of macro AUROC on {self.on}"
        told = f"{missing} of {len(STANDARD_LEADS)} leads missing"
        near = [number for number in self.numbers if number and abs(number - missing) <= NEAR]
        if not near:
            measured = ", ".join(str(number) for number in sorted(self.numbers) if number)
            return f"{told}: nothing measured is near (measured: {measured or 'no number of leads'} missing)"
        # of two that are as near, that with more leads missing
        nearest = min(near, key=lambda number: (abs(number - missing), -number))
        measured = "" if nearest == missing else f", measured at {nearest}"
        lost = said(self.numbers[nearest])
        return f"{told}{measured}: expect {lost} points of macro AUROC on {self.on}, leads drawn at random"

    def points(self) -> dict[str, str]:
        """All that was measured without time missing, in words: which leads are there, or how many are missing."""
        told = {f"only {', '.join(leads)}": said(lost) for leads, lost in self.presets.items()}
        return told | {
            f"{number} leads missing": said(self.numbers[number]) for number in sorted(self.numbers) if number
        }

    @classmethod
    def read(cls, parts: VerifiedExport) -> MissingnessCard | None:
        """Of an export as it was checked; None where it carries none.

        Raises UserError for a card of another encoder, one that was edited, and one that cannot be read.
        """
        if MISSINGNESS not in parts.content:
            return None
        values = parts.json(MISSINGNESS)
        problem = wrong_card(values, parts.bare_digest)
        if problem:
            raise parts.wrong(MISSINGNESS, problem)
        return cls.of(values)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> MissingnessCard:
        """Raises KeyError, TypeError or ValueError for values that no card has."""
        presets = {tuple(str(lead) for lead in each["leads"]): _lost(each["lost"]) for each in values["presets"]}
        if unknown := {lead for leads in presets for lead in leads} - set(STANDARD_LEADS):
            raise ValueError(f"{sorted(unknown)[0]!r:.20} is no lead")
        cells = [each for each in values["surfaces"][0]["cells"] if each["time"] == 0]
        numbers = {int(each["leads"]): _lost(each["lost"]) for each in cells}
        on = f"{values['on']} ({int(values['records'])} records, {values['measure']})"
        return cls(on.encode("ascii", "backslashreplace").decode(), presets, numbers)


class MissingLeads:
    """Tells of missing leads, once for the same ones. met: whether the encoder met any while it was trained."""

    def __init__(self, met: bool) -> None:
        self._met, self._told = met, set[bytes]()

    def tell(self, lead_mask: np.ndarray, card: MissingnessCard | None) -> None:
        """What to expect of records with these leads, bool (B, 12); or that the encoder never met a missing lead."""
        for leads in np.unique(lead_mask, axis=0):
            if leads.all() or leads.tobytes() in self._told:
                continue
            self._told.add(leads.tobytes())
            if card is not None:
                log.warning("missing_leads %s", card.expect(leads))
            elif not self._met:
                log.warning("masked_leads=%d remark=this encoder was trained without lead dropout", int((~leads).sum()))


def _lost(values: Mapping[str, Any]) -> Lost:
    value, low, high = (math.nan if values[key] is None else float(values[key]) for key in ("value", "low", "high"))
    if not math.isfinite(value):
        raise ValueError("a figure is no number")
    return value, low, high


def said(lost: Lost) -> str:
    """In points of AUROC: `-2.1 (1.4 to 2.9)`."""
    value, low, high = (100 * each for each in lost)
    return f"{-value:+z.1f}" + (f" ({low:z.1f} to {high:z.1f})" if math.isfinite(low) else "")


def sealed(values: Mapping[str, Any], encoder: str) -> dict[str, Any]:
    """A card of what was measured, a JSON-able object, for the encoder of this digest (`UsableEncoder.bare_digest`)."""
    card = {"version": CARD_VERSION, "encoder": encoder, **values}
    return {**card, "digest": _seal(card)}


def _seal(values: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in values.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def wrong_card(values: Any, encoder: str) -> str:
    """Why this is no card of the encoder of this digest; "" when it is."""
    if not isinstance(values, dict) or values.get("version") != CARD_VERSION:
        return "no missingness card that is known here"
    if values.get("digest") != _seal(values):
        return "the missingness card was edited: its digest is not that of its figures"
    if values.get("encoder") != encoder:
        return f"the missingness card is of encoder {values.get('encoder')!s:.12}, this one is {encoder[:12]}"
    try:
        MissingnessCard.of(values)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        return f"no missingness card that can be read ({type(error).__name__}: {error})"
    return ""


def add_card(folder: Path, values: Any) -> str:
    """Put a card into an exported encoder, in the place of one that is there; returns the digest of the export then.

    What was evaluated under the card that goes is of the same weights: the new one names the digest of that time, and
    `compare` knows those results. The folder is replaced as a whole: at no moment it does not verify. Raises UserError
    for a card of another encoder or one that was edited, for a folder that is no export, and where nothing can be
    written.
    """
    folder = Path(folder)
    if folder.is_symlink():
        raise UserError(f"{folder} is a link; it is left alone", "give the folder that it points to")
    parts = read_export(folder)
    problem = wrong_card(values, parts.bare_digest)
    if problem:
        raise UserError(f"{folder}: {problem}", "measure this encoder: `cardialign evaluate missingness`")
    created = parse_json(read_bytes(folder / DIGESTS)).get("created")
    try:
        with folder_beside(folder) as beside:
            fresh = beside / "new"
            shutil.copytree(folder, fresh)
            write_json(fresh / MISSINGNESS, _replacing(values, parts), indent=1)
            if CARD in parts.content:
                told = MissingnessCard.of(values)
                (fresh / CARD).write_bytes(with_missing(parts.content[CARD], told.on, told.points()))
            write_digests(fresh, created if isinstance(created, str) else None)
            replace_export(fresh, folder, beside)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}",
            "copy the encoder to a folder that can, or free space",
        ) from None
    return read_export(folder).digest


def _replacing(values: Mapping[str, Any], parts: VerifiedExport) -> dict[str, Any]:
    """The card, with the digests that the export had under the cards before it; the same card again replaces none."""
    if MISSINGNESS not in parts.content:
        return dict(values)
    before = parts.json(MISSINGNESS)
    figures = {key: value for key, value in values.items() if key not in ("digest", EARLIER)}
    if figures == {key: value for key, value in before.items() if key not in ("digest", EARLIER)}:
        return before
    card = {**figures, EARLIER: [*parts.earlier_digests(), parts.digest]}
    return {**card, "digest": _seal(card)}
