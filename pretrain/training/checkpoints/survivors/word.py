"""How the controller of a run and the ranks that are left of a dead worker group agree on what these commit.

They speak through files of the run directory (`survivors/`): a rank may wait in a collective for ever, the thread that
listens (`listening`) does not. The controller asks first who holds which copies. Then it says of which step they are
written, and by whom: the newest of which every rank's part is there. Every file carries the mark of the group.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cardialign.data_shards.files import is_count, read_json, write_json
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import SURVIVORS
from cardialign.pretrain.training.checkpoints import files

WORD, OUTCOME = "word.json", "outcome.json"
LOOK_SECONDS = 0.1
OFFER_SECONDS = 6.0
"""How long the ranks may take to say what they hold: those that are gone say nothing."""
GRACE_SECONDS = 0.5
"""How long others are waited for once all parts of a step are there, or none: they may hold those of a newer one."""
STILL_SECONDS, MOST_SECONDS = 60.0, 900.0
"""How long nothing may be written, and how long it may take in all, until the survivors are told to give up."""

MOST_RANKS = 1 << 20

Offers = dict[int, dict[int, list[int]]]
"""Rank -> step -> the ranks whose parts it holds of that step."""


@dataclass(frozen=True)
class Word:
    """What the controller says to a group. parts: rank -> who writes its part of `step`; `commits`: one of these."""

    group: str
    says: Literal["offer", "write", "give-up"]
    step: int = 0
    parts: tuple[tuple[int, int], ...] = ()
    commits: int = 0

    def told(self) -> str:
        """What was committed, in words."""
        others = [f"rank {rank}'s part from rank {holder}" for rank, holder in self.parts if rank != holder]
        return f"survivors committed step {self.step}" + (f" ({', '.join(others)})" if others else "")


def folder_of(run_dir: Path) -> Path:
    return Path(run_dir) / SURVIVORS


def read_word(run_dir: Path, group: str) -> Word | None:
    """What is said to `group` now."""
    values = read_json(folder_of(run_dir) / WORD)
    if values is None or values.get("group") != group:
        return None
    with contextlib.suppress(KeyError, TypeError, ValueError):
        parts = tuple((int(rank), int(holder)) for rank, holder in values["parts"])
        return Word(group, values["says"], int(values["step"]), parts, int(values["commits"]))
    return None


def _say(run_dir: Path, word: Word) -> None:
    write_json(folder_of(run_dir) / WORD, asdict(word))


def note_of(run_dir: Path, rank: int) -> Path:
    return folder_of(run_dir) / f"rank-{rank}.json"


def enlist(run_dir: Path, group: str, rank: int, world_size: int, offers: Mapping[int, list[int]] | None) -> None:
    """A rank says that it listens (offers: None), or which parts of which steps it holds."""
    folder_of(run_dir).mkdir(exist_ok=True)
    told = None if offers is None else {str(step): ranks for step, ranks in offers.items()}
    write_json(note_of(run_dir, rank), {"group": group, "world_size": world_size, "offers": told})


def tell_outcome(run_dir: Path, group: str, problem: str | None) -> None:
    write_json(folder_of(run_dir) / OUTCOME, {"group": group, "problem": problem})


def choose(group: str, offers: Offers, world_size: int, than: int = -1) -> Word | None:
    """Who writes what: of the newest step of which the parts of all ranks are offered; None without one newer `than`.

    Every rank writes its own part; that of one which says nothing is written by who holds it.
    """
    for step in sorted({step for held in offers.values() for step in held if step > than}, reverse=True):
        holders = {rank: by for by in sorted(offers) for rank in offers[by].get(step, [])}
        holders |= {by: by for by in offers if by in offers[by].get(step, [])}
        if set(holders) == set(range(world_size)):
            return Word(group, "write", step, tuple(sorted(holders.items())), min(holders.values()))
    return None


def ask_survivors(run_dir: Path, start: str, *, now: Callable[[], float] = time.monotonic) -> str:
    """In the controller, once a group of `start` has died and before what is left of it is ended: let it commit.

    Returns what came of it, in words; "" where the group keeps no copies, or another start holds the run. It never
    raises: the run goes on from its last checkpoint as it would have without.
    """
    group = ""
    try:
        mark = fence.holder(run_dir)
        if mark is None or mark.start != start:
            return ""
        group = mark.label
        if not _notes(run_dir, group):
            return ""
        return _asked(run_dir, group, now)
    except (OSError, ValueError, TypeError) as error:  # the last two: of a note that is none of ours
        return f"survivors committed nothing: {getattr(error, 'strerror', None) or error}"
    finally:
        if group:
            shutil.rmtree(folder_of(run_dir), ignore_errors=True)


def _asked(run_dir: Path, group: str, now: Callable[[], float]) -> str:
    _say(run_dir, Word(group, "offer"))
    than = max((step for step, _ in files.committed(run_dir)), default=-1)
    word, offers, world = _collect(run_dir, group, than, now)
    if word is None:
        return f"survivors committed nothing: {_why(offers, world, than)}"
    _say(run_dir, word)
    problem = _outcome(run_dir, word, now)
    return word.told() if problem is None else f"survivors committed nothing: {problem}"


def _notes(run_dir: Path, group: str) -> dict[int, dict[str, Any]]:
    """rank -> what it has written, of the ranks of `group` that listen."""
    found = {}
    for path in folder_of(run_dir).glob("rank-*.json"):
        note = read_json(path)
        if note is not None and note.get("group") == group and is_count(note.get("world_size"), MOST_RANKS):
            found[int(path.stem.partition("-")[2])] = note
    return found


def _collect(run_dir: Path, group: str, than: int, now: Callable[[], float]) -> tuple[Word | None, Offers, int]:
    """The word, what was offered, and the size of the group."""
    began, complete = now(), None
    while True:
        notes = _notes(run_dir, group)
        world = max((int(note["world_size"]) for note in notes.values()), default=0)
        offers: Offers = {
            rank: {int(step): list(ranks) for step, ranks in note["offers"].items()}
            for rank, note in notes.items()
            if isinstance(note.get("offers"), dict)
        }
        word = choose(group, offers, world, than)
        enough = choose(group, offers, world) is not None or (offers and not any(offers.values()))
        complete = now() if enough and complete is None else complete
        settled = len(offers) == world or (complete is not None and now() - complete >= GRACE_SECONDS)
        if settled or now() - began > OFFER_SECONDS:
            return word, offers, world
        time.sleep(LOOK_SECONDS)


def _why(offers: Offers, world: int, than: int) -> str:
    """Why there is nothing to write."""
    silent = sorted(set(range(world)) - set(offers))
    answers = f"no answer of rank {', '.join(map(str, silent))} within {OFFER_SECONDS:.0f} s" if silent else ""
    if not any(offers.values()):
        return "there were no copies so far" if offers else answers
    if choose("", offers, world) is not None:
        return f"the checkpoint of step {than} is as new as their copies"
    whose = sorted(set(range(world)) - {rank for held in offers.values() for ranks in held.values() for rank in ranks})
    lost = f"nobody holds the part of rank {', '.join(map(str, whose))}" if whose else "no step is whole"
    return f"{lost}; {answers}" if answers else lost


def _outcome(run_dir: Path, word: Word, now: Callable[[], float]) -> str | None:
    """What kept them from writing; None once it is committed."""
    began = moved = now()
    given_up, folder = False, files.checkpoints_folder(run_dir)
    last: list[dict[str, int]] | None = None
    while True:
        told = read_json(folder_of(run_dir) / OUTCOME)
        if told is not None and told.get("group") == word.group:
            return None if told.get("problem") is None else str(told["problem"])
        if given_up:
            return f"nothing was written for {now() - moved:.0f} s"
        seen = [files.sizes_below(path) for path in sorted(folder.glob(f"{files.TEMPORARY}*survivors-*"))]
        if seen != last:
            last, moved = seen, now()
        if now() - moved > STILL_SECONDS or now() - began > MOST_SECONDS:
            _say(run_dir, Word(word.group, "give-up"))
            given_up = True  # and one more look: it may have been done a moment before
        time.sleep(LOOK_SECONDS)
