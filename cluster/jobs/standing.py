"""How a job and its run stand: the job by the cluster, the run by its directory where this machine sees it, else by the
state lines in the log of its driver."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.streams import say
from cardialign.cluster.jobs.client import JobsClient, connect
from cardialign.cluster.jobs.job import Job, absolute_local, cause, find_job, list_jobs, log_tail, same_folder
from cardialign.cluster.runs.reporting import last_state, read_state
from cardialign.cluster.watching.decisions import decision_of
from cardialign.cluster.watching.terminal import waits_of, words_of
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shown import public, shown
from cardialign.pretrain.run.files import ATTEMPT, CONFIG

WATCHED = ("name", "state", "run", "step", "loss", "records/s", "time left", "slow because", "checkpoint", "restarts")
WATCH_SECONDS = 5.0
CAUSES_TOLD = 4
"""Kinds of causes of the restarts before the last."""


def standing(word: str, address: str | None, ca: Path | None = None) -> dict[str, Any]:
    """Of a job (name, id) or a run directory. A run directory that is seen here needs no cluster.

    Returns job, state, why and what else is known of the job, and under `run` what `read_state` gives, with `seen`:
    "here" or "log", and `age_seconds` of a state that comes from a log.
    """
    folder = _run_here(word)
    if folder is not None and address is None and not os.environ.get("RAY_ADDRESS"):
        return {"job": None, "run_dir": str(folder), "run": {**read_state(folder), "seen": "here"}}
    if address is None and not os.environ.get("RAY_ADDRESS") and os.sep in word:
        raise UsageError(
            f"{word} holds no run that this machine sees, and no cluster is named that could be asked for it",
            "name the --run-dir of a run, or give --address http://HOST:8265 (or RAY_ADDRESS)",
        )
    client = connect(address, ca)
    jobs = list_jobs(client)
    if folder is not None and not any(job.run_dir and same_folder(job.run_dir, str(folder)) for job in jobs):
        return {"job": None, "run_dir": str(folder), "run": {**read_state(folder), "seen": "here"}}
    return of_job(client, find_job(client, str(folder or word), jobs))


def of_job(client: JobsClient, job: Job) -> dict[str, Any]:
    log = log_tail(client, job)
    state, why = cause(job, log)
    run, said = _run(job, log), last_state(log) or {}
    if state == "waiting" and run and run["seen"] == "here" and (run["step"] or 0) > (said.get("step") or 0):
        state, why = "running", ""  # it has gone on since its log said so
    ended = job.ended if not job.lives else None
    return {
        "job": job.id, "name": job.name or None, "user": job.user or None, "host": job.metadata.get("host"),
        "address": public(client.address), "state": state, "why": why or None, "job_exit_code": job.exit_code,
        "started": job.started, "ended": ended, "run_dir": job.run_dir or None,
        "words": job.metadata.get("command") if job.ours else job.entrypoint,
        "version": job.metadata.get("version") or None, "commit": job.metadata.get("commit") or None,
        "run": run,
    }  # fmt: skip


def _run(job: Job, log: str) -> dict[str, Any] | None:
    said = last_state(log)
    folder = _run_here(job.run_dir) if job.run_dir else None
    if folder is not None:
        steps = (said or {}).get("steps")
        return {**read_state(folder, steps if isinstance(steps, int) else None), "seen": "here"}
    if said is None:
        return None
    when = said.get("time")
    age = max(0.0, time.time() - when) if isinstance(when, int | float) else None
    return {**said, "seen": "log", "age_seconds": age}


def _run_here(word: str) -> Path | None:
    """The run directory that `word` names, where this machine sees one."""
    folder = absolute_local(word)
    return folder if folder is not None and any((folder / name).is_file() for name in (CONFIG, ATTEMPT)) else None


def told(result: dict[str, Any]) -> dict[str, Any]:
    """For a terminal: label -> words."""
    run = result.get("run") or {}
    table: dict[str, Any] = {}
    if result["job"]:
        table |= {"job": result["job"], "name": result["name"], "user": result["user"]}
        table["state"] = result["state"] + (f": {result['why']}" if result["why"] else "")
        table["command"] = result["words"]
    table["run directory"] = result["run_dir"]
    if not run:
        return table
    if not result["job"] or run.get("state") in ("stalled", "interrupted"):
        of_run = words_of(run["state"], run.get("last_step_age_seconds"), run["phase"] == "stopping")
        table["run" if result["job"] else "state"] = of_run + (f": {run['problem']}" if run.get("problem") else "")
    if run.get("step") is not None:
        table["step"] = f"{run['step']} of {run['steps']}" if run.get("steps") else run["step"]
    table["loss"] = run.get("loss")
    table["records/s"] = run.get("records_per_second")
    if isinstance(run.get("mfu"), int | float):
        table["MFU"] = f"{100 * run['mfu']:.3g} %"
    if run.get("phase") == "running":
        table["time left"] = duration(run.get("eta_seconds"))
    if isinstance(run.get("cause"), dict):
        table["slow because"] = run["cause"].get("line")
    if isinstance(run.get("data_wait"), dict):
        table["data, a step"] = waits_of(run["data_wait"]) or None
    if isinstance(run.get("slowest_rank"), dict):
        table["slowest rank"] = f"{run['slowest_rank'].get('rank')} on {run['slowest_rank'].get('host')}"
    table["slowest shard"] = run.get("slowest_shard")
    if run.get("last_checkpoint_step") is not None:
        table["checkpoint"] = f"step {run['last_checkpoint_step']}, {duration(run['checkpoint_age_seconds'])} old"
    table["restarts"] = _restarts([str(each.get("cause")) for each in run.get("restarts") or []])
    for number, told in enumerate(run.get("decisions") or [], start=1):
        if isinstance(told, dict) and (decision := decision_of(told)) is not None:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(decision.time))
            table[f"decision {number}"] = shown(f"{at}  {decision.told()}")
    if run.get("seen") == "log":
        table["as of"] = f"{duration(run.get('age_seconds'))} ago, from the job's log"
    return table


def _restarts(causes: list[str]) -> str:
    """How many, and what each was for: the last first, then the others, the most frequent first."""
    if not causes:
        return "0"
    before = Counter(causes[:-1]).most_common(CAUSES_TOLD)
    times = [cause if count == 1 else f"{cause} ({count} times)" for cause, count in before]
    return f"{len(causes)}, the last: {causes[-1]}" + (f"; before it: {'; '.join(times)}" if times else "")


def watch(word: str, address: str | None, ca: Path | None = None) -> dict[str, Any]:
    """Show it until its run, or its job, has ended, or Ctrl-C; returns what was seen last.

    A run directory that is seen here is drawn from its files; what is seen through a dashboard alone says a line
    whenever something changes.
    """
    found = standing(word, address, ca)
    folder = _run_here(found["run_dir"]) if found["run_dir"] else None
    if folder is not None and (found["run"] or {}).get("seen") == "here":
        from cardialign.cluster.watching import terminal

        terminal.watch(folder)
        return standing(word, address, ca)
    said = ""
    while True:
        seen = {label: value for label, value in told(found).items() if label in WATCHED and value is not None}
        line = "  ".join(f"{label} {shown(str(value))}" for label, value in seen.items())
        if line != said:
            say([line])
            said = line
        if found.get("ended") is not None:
            return found
        time.sleep(WATCH_SECONDS)
        found = standing(word, address, ca)


def duration(seconds: Any) -> str | None:
    """`3 h 20 min`, `12 s`."""
    if not isinstance(seconds, int | float):
        return None
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
