"""The folder of a grid: what is finished is kept and verified, so that a killed command goes on where it was.

OUT/plan.json                what the grid is of, and when its test records were opened
OUT/cells/TASK@SHARE.json    the figures of a finished cell, what decided them, and their sha256
OUT/cells/TASK@SHARE.safetensors  what the encoder's probe made of every test record, for evidence beside a version
OUT/work/                    features and labels for the cells (`probing/cells.py`), kept on purpose: a later call with
                             more shares or seeds reads no record again; may be deleted at any time
OUT/grid.json, grid.csv      all figures
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import commit_file, read_bytes, read_json, write_json
from cardialign.pretrain.evaluation.probing.report import OF_ENCODER, Key, ProbeResult
from cardialign.pretrain.evaluation.scored import ScoredRecords
from cardialign.pretrain.run.tensors import load_numbers

log = logging.getLogger(__name__)

PLAN = "plan.json"


@dataclass(frozen=True)
class GridFolder:
    path: Path

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Take the folder for a grid of these facts, or go on with the one that is there.

        More sets may be added later, and more shares. Raises UsageError when it holds something else.
        """
        plan = read_json(self.path / PLAN)
        if plan is None:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise UsageError(f"{self.path} holds something, and no grid", "name a new folder for --out")
            (self.path / "cells").mkdir(parents=True)
            self._write(dict(facts), {})
            return
        known = plan["facts"]
        names = [name for name in {**facts, **known} if name != "sets"]
        differing = [name for name in names if (known.get(name) or None) != (facts.get(name) or None)]
        differing += [f"set {name}" for name, to in facts["sets"].items() if known["sets"].get(name, to) != to]
        if differing:
            name = differing[0]
            was, now = (known["sets"], facts["sets"]) if name.startswith("set ") else (known, facts)
            key = name.removeprefix("set ")
            raise UsageError(
                f"{self.path} holds a grid of another {name}: {_short(was.get(key))} there, {_short(now.get(key))} now",
                "give what it was begun with, or name a new folder for --out",
            )
        self._write({**facts, "sets": {**known["sets"], **facts["sets"]}}, plan["openings"])

    @property
    def openings(self) -> dict[str, dict[str, Any]]:
        """Task -> when its test records were opened for this grid, as `openings.open_test` said then."""
        plan = read_json(self.path / PLAN)
        return {} if plan is None else plan["openings"]

    def note_opening(self, task: str, opening: Mapping[str, Any]) -> None:
        plan = read_json(self.path / PLAN) or {}
        self._write(plan["facts"], {**plan["openings"], task: dict(opening)})

    def _write(self, facts: Mapping[str, Any], openings: Mapping[str, Any]) -> None:
        write_json(self.path / PLAN, {"facts": facts, "openings": openings}, indent=1)

    def cell(self, task: str, share: float, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """The finished cell as `keep` got it; None when it is not there, damaged, or decided by other facts."""
        path = self._cell(task, share)
        values = read_json(path)
        if values is None:
            if path.exists():
                log.warning("cell=%s action=again reason=it cannot be read", path)
            return None
        content = values.get("content")
        if not isinstance(content, dict) or values.get("sha256") != _digest(content):
            log.warning("cell=%s action=again reason=it is not as it was written", path)
            return None
        if content.get("facts") != facts:
            log.warning("cell=%s action=again reason=its records, features or software are others now", path)
            return None
        return content

    def keep(self, task: str, share: float, facts: Mapping[str, Any], outcome: ProbeResult | str) -> dict[str, Any]:
        """Write a cell: figures, or why there are none."""
        values: dict[str, Any] = {"missing": outcome}
        if isinstance(outcome, ProbeResult):
            values = {"result": outcome.to_dict()}
            if share in outcome.scored:
                values["scores"] = _keep_scores(self._scores(task, share), outcome.scored[share])
        content: dict[str, Any] = json.loads(json.dumps({"facts": facts, **values}))
        write_json(self._cell(task, share), {"sha256": _digest(content), "content": content}, indent=1)
        return content

    def scored(self, task: str, share: float, content: Mapping[str, Any]) -> dict[Key, ScoredRecords]:
        """The scores of a finished cell; of fewer systems where an earlier release kept fewer, of none where they are
        not as they were written: its figures stand all the same."""
        path = self._scores(task, share)
        try:
            raw = read_bytes(path)
        except OSError:
            raw = b""
        if content.get("scores") is None or hashlib.sha256(raw).hexdigest() != content["scores"]["sha256"]:
            return {}
        arrays = load_numbers(raw)
        names = tuple((str(code), str(name)) for code, name in content["scores"]["names"])
        same = (arrays["truth"], arrays["patients"], names, arrays.get("decided"))
        told = content["scores"].get("systems", [])
        others = {
            (system, reader): ScoredRecords(arrays[f"scores.{k}"], *same) for k, (system, reader) in enumerate(told)
        }
        return {OF_ENCODER: ScoredRecords(arrays["scores"], *same), **others}

    def _scores(self, task: str, share: float) -> Path:
        return self._cell(task, share).with_suffix(".safetensors")

    def _cell(self, task: str, share: float) -> Path:
        return self.path / "cells" / f"{task}@{100 * share:g}.json"


def _keep_scores(path: Path, found: Mapping[Key, ScoredRecords]) -> dict[str, Any]:
    """Write the scores, of what stands beside the encoder's linear probe as well, patients as numbers; returns what
    finds them again."""
    scored = found[OF_ENCODER]
    others = {key: each for key, each in found.items() if key != OF_ENCODER}
    _, patients = np.unique(scored.patients, return_inverse=True)
    arrays = {"scores": scored.scores, "truth": scored.truth, "patients": patients.astype(np.int64)}
    arrays |= {f"scores.{k}": each.scores for k, each in enumerate(others.values())}
    if scored.decided is not None:
        arrays["decided"] = scored.decided
    raw = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    commit_file(path, lambda temporary: temporary.write_bytes(raw))
    names, systems = ([list(each) for each in of] for of in (scored.names, others))
    return {"sha256": hashlib.sha256(raw).hexdigest(), "names": names, "systems": systems}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _short(value: Any) -> str:
    return str(value)[:40]
