"""Stopping a job: first at a checkpoint, then at once."""

from __future__ import annotations

from typing import Any

from cardialign.cluster.jobs.client import JobsClient, Unanswered
from cardialign.cluster.jobs.helpers import end_now
from cardialign.cluster.jobs.job import Job, failed, find_job, list_jobs, log_tail, this_user
from cardialign.cluster.runs.reporting import last_state
from cardialign.data_shards.errors import UsageError


def stop(client: JobsClient, word: str, *, any_user: bool = False) -> dict[str, Any]:
    """Ask the job to end. A run ends at its next committed checkpoint; asked a second time, it ends at once.

    Raises UsageError for a job of somebody else without `any_user`.
    """
    jobs = list_jobs(client)
    job = find_job(client, word, jobs)
    if not job.lives:
        return {"job": job.id, "asked": False, "done": f"it has ended already ({job.told()})"}
    if job.user != this_user() and not any_user:
        whose = f"is of {job.user} (from {job.metadata.get('host', '?')})" if job.ours else "was not submitted here"
        raise UsageError(f"job {job.id} {whose}", "ask them, or stop it all the same with --any-user")
    state = last_state(log_tail(client, job)) or {}
    if state.get("phase") == "stopping" and job.node and isinstance(state.get("pid"), int):
        end_now(client, job, state["pid"])
        return {"job": job.id, "asked": True, "done": "it was ended at once, without a further checkpoint"}
    _ask(client, job)
    how = "it ends at a checkpoint; the same command again ends it at once" if job.run_dir else "it is asked to end"
    return {"job": job.id, "asked": True, "done": how}


def _ask(client: JobsClient, job: Job) -> None:
    try:
        client.post(f"/api/jobs/{job.id}/stop")
    except Unanswered as answer:
        raise failed(client, answer) from None
