"""The logs of a job: its driver's, which the cluster keeps, and its workers', which lie in the run directory."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from cardialign.cluster.cli.streams import say
from cardialign.cluster.jobs.client import JobsClient, Unanswered
from cardialign.cluster.jobs.helpers import worker_log
from cardialign.cluster.jobs.job import Job, absolute_local, failed, log_tail, whole_log
from cardialign.cluster.runs.reporting import without_states
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.files import LOGS

LOOK_SECONDS, BYTES_PER_SECOND = 2.0, 2**20
"""A log is asked for every 2 s, a large one less often: it comes whole."""


def text_of(client: JobsClient, job: Job, rank: int | None, lines: int) -> list[str]:
    """The last lines of the driver (without its state lines), or of a worker."""
    if rank is None:
        return without_states(log_tail(client, job, 2 * lines)).splitlines()[-lines:]
    folder = absolute_local(job.run_dir) if job.run_dir else None
    if folder is not None and any(folder.glob(f"{LOGS}/*")):
        return newest_worker_log(folder, rank, lines)
    if not job.run_dir:
        raise UserError(f"job {job.id} is no run: it has no workers of ours", "leave out --rank")
    return worker_log(client, job, rank, lines).splitlines()


def newest_worker_log(run_dir: Path, rank: int, lines: int) -> list[str]:
    """Raises UserError when the run has no worker of this rank."""
    found = sorted(run_dir.glob(f"{LOGS}/*/rank-{rank}.log"))
    if not found:
        ranks = sorted({int(path.stem.partition("-")[2]) for path in run_dir.glob(f"{LOGS}/*/rank-*.log")})
        there = f"there are {', '.join(map(str, ranks))}" if ranks else "no worker has started yet"
        raise UserError(f"the run in {run_dir} has no log of rank {rank}: {there}", "give another --rank")
    return found[-1].read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]


def follow(client: JobsClient, job: Job, rank: int | None) -> Job:
    """Print a log as it grows, until the job ends; returns the job as it ended."""
    shown = 0
    while True:
        job = _again(client, job)
        if rank is None:
            text = without_states(whole_log(client, job))
        else:
            with contextlib.suppress(UserError):  # its workers may not have started
                text = "".join(f"{line}\n" for line in text_of(client, job, rank, 1_000_000))
        complete = text.rfind("\n") + 1 if job.lives else len(text)
        shown = 0 if complete < shown else shown  # another start of the run has another log
        say(text[shown:complete].splitlines())
        shown = max(shown, complete)
        if not job.lives:
            return job
        time.sleep(max(LOOK_SECONDS, len(text) / BYTES_PER_SECOND))


def _again(client: JobsClient, job: Job) -> Job:
    try:
        return Job.read(client.get(f"/api/jobs/{job.id}"))
    except Unanswered as answer:
        raise failed(client, answer) from None
