"""The page of any run: provenance, cost, how it learnt, its evaluations; with a shard set a map and what is retrieved.

Everything comes from the run directory and from files that evaluations wrote; what is not there is left out, and said.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cardialign.cluster.comparison.cost import Cost
from cardialign.cluster.comparison.results import figures_of, kind_of, read_values
from cardialign.cluster.comparison.sources import Source, source_of_run
from cardialign.cluster.pages.examples import Shown, ShownRecords, show_records
from cardialign.cluster.pages.run_page import write_run_page, zero_shot_table
from cardialign.cluster.runs.starts import Start, read_starts
from cardialign.cluster.watching.state import RunState, run_state
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import CONFIG, EXPORT, RESULT, TRACKING

FOOTER = "Written by cardialign from the files of the run. For research; not a medical device."


def write_report(
    run_dir: Path,
    out: Path,
    evaluations: Sequence[Path] = (),
    records: ShownRecords | None = None,
    prices: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Write the page of the run in `run_dir` to `out`; returns what stands on it, and `left_out` with the reasons.

    evaluations: results of `evaluate ... --out`. records: of which shard set and how many are shown through the run's
    encoder. Raises UserError where there is no run, DataError for a file that is no result of an evaluation.
    """
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"{run_dir} holds no run", "name a run directory, as `cardialign runs list FOLDER` lists them")
    source, state = source_of_run(run_dir), run_state(run_dir)
    zero_shot, table = _evaluated(evaluations, source)
    shown, left_out = Shown(), list(source.remarks)
    if records is not None:
        try:
            shown = show_records(_encoder_of(run_dir), records)
        except UserError as error:
            left_out.append(error.problem)
        left_out += shown.left_out
    config, starts = source.config or {}, read_starts(run_dir)
    write_run_page(
        out,
        title=f"{state.name}",
        run={
            "summary": _summary(state, starts),
            "facts": _provenance(run_dir, config, state, starts),
            "cost": _cost(source, prices or {}),
            "config": config,
            "cause": state.cause,
            "footer": FOOTER,
            "evaluations": table,
            "map": shown.map,
            "retrieval": shown.retrieval,
            "left_out": left_out,
        },
        trace=source.trace,
        zero_shot=zero_shot,
        baseline=(zero_shot or {}).get("baseline"),
        pictures=shown.pictures,
        commands=_commands(starts),
    )
    return {
        "run_dir": str(run_dir),
        "page": str(out),
        "steps": state.step,
        "evaluations": len(evaluations),
        "records_shown": len(shown.pictures),
        "left_out": left_out,
    }


def _encoder_of(run_dir: Path) -> Path:
    if not (run_dir / EXPORT).is_dir():
        raise UserError(
            f"the run has no exported encoder ({run_dir / EXPORT}): no record can be shown through it",
            f"let the run finish, or `cardialign export {run_dir}`",
        )
    return run_dir / EXPORT


def _evaluated(paths: Sequence[Path], source: Source) -> tuple[dict[str, Any] | None, list[dict[str, str]]]:
    """The first zero-shot result, which has a table of its own, and a row for every figure."""
    zero_shot, rows = None, []
    for path in paths:
        values = read_values(path)
        found = figures_of(path, values)
        if kind_of(values) == "zero-shot":
            if zero_shot is not None:
                raise DataError(
                    f"{path} is a second zero-shot result", "give one; `cardialign compare` sets two beside"
                )
            zero_shot = _checked(path, values)
        for digest, system, figure in found:
            if digest and digest not in source.digests:
                raise DataError(
                    f"{path} was measured on another encoder ({digest[:12]}) than this run exports",
                    "evaluate this run's export, or leave the file out",
                )
            rows.append(
                {
                    "what": str(figure.column),
                    "system": system or "this encoder",
                    "value": f"{figure.value:.3f}",
                    "interval": "" if figure.low is None else f"{figure.low:.3f} to {figure.high:.3f}",
                }
            )
    return zero_shot, rows


def _checked(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """A zero-shot result of which the page can show every part."""
    try:
        zero_shot_table(values, values.get("baseline"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:160]
        raise DataError(f"{path} is not as `evaluate zero-shot` writes it: {said}", "evaluate again") from None
    return values


def _moment(when: float | None) -> str:
    return "" if when is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))


def _summary(state: RunState, starts: Sequence[Start]) -> str:
    begun = f", begun {_moment(starts[0].time)}" if starts else ""
    steps = f"{state.step:,} of {state.steps:,} steps" if state.steps else f"{state.step:,} steps"
    failed = f": {state.failure['problem'].splitlines()[0]}" if state.failure else ""
    return f"A pretraining run, {state.state}{failed}; {steps}{begun}."


def _provenance(run_dir: Path, config: dict[str, Any], state: RunState, starts: Sequence[Start]) -> dict[str, Any]:
    """What ran, where it came from, in the order in which a reader asks."""
    last = starts[-1] if starts else None
    provenance = read_json(run_dir / EXPORT / "provenance.json") or {}
    training, versions = provenance.get("training") or {}, provenance.get("versions") or {}
    result, tracked = read_json(run_dir / RESULT) or {}, read_json(run_dir / TRACKING) or {}
    tags = known if isinstance(known := tracked.get("tags"), dict) else {}  # of a run that has no export yet
    method = config.get("method")
    facts: dict[str, Any] = {
        "Recipe": config.get("name"),
        "Method": method.get("name") if isinstance(method, dict) else None,
        "Seed": None if config.get("seed") is None else str(config["seed"]),
        "Started": _moment(starts[0].time) if starts else "",
        "Last start": _moment(last.time) if last and len(starts) > 1 else "",
        "Started by": f"{last.user or 'unknown'} on {last.host}" if last else "",
        "Machine of the driver": last.machine if last else "",
        "Workers": last.workers if last else "",
        "CardiAlign": last.version if last else versions.get("cardialign"),
        "Commit": last.commit if last else "",
        "Python, torch": f"{last.python}, {last.torch}" if last else "",
        "Shards fingerprint": training.get("shards_fingerprint") or tags.get("data.fingerprint"),
        "Records chosen (fingerprint)": training.get("selection_fingerprint") or tags.get("data.selection"),
        "Order consumed (digest)": training.get("digest") or result.get("digest"),
        "Final loss": result.get("final_loss"),
        "Restarts": len(state.restarts) or None,
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _cost(source: Source, prices: dict[str, float]) -> dict[str, Any]:
    cost = source.cost or Cost()
    price = cost.price(prices)
    facts: dict[str, Any] = {
        "Devices": None if cost.devices is None else f"{cost.devices} x {cost.kind or 'unknown'}",
        f"{cost.unit.capitalize()} of steps": cost.hours,
        f"{cost.unit.capitalize()} per million records": cost.per_million(cost.hours),
        "Price": price,
        "Records trained on, repeats included": cost.records,
        "Records per second": cost.records_per_second,
        "Parameters of the encoder": cost.parameters,
        "Parameters trained": cost.trained_parameters,
        "GFLOP of a record, forward": cost.gflop,
        "Energy": "not measured",
    }
    return {name: value for name, value in facts.items() if value is not None}


def _commands(starts: Sequence[Start]) -> dict[str, str]:
    given = [start for start in starts if start.command]
    names = ["Command"] if len({start.command for start in given}) == 1 else None
    if names:
        return {"Command": given[-1].command}
    return {f"Command of {_moment(start.time)}": start.command for start in given[-10:]}
