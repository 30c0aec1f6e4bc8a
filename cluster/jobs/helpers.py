"""What the Jobs API cannot do by itself, done by a short job on the node of a driver: a second signal, a worker's log.

It is a line of shell that needs none of our code and no resources, and it shows up in no list of ours.
"""

from __future__ import annotations

import secrets
import shlex
import time

from cardialign.cluster.jobs.client import JobsClient, Unanswered
from cardialign.cluster.jobs.job import HELPER, Job, failed, give, log_tail
from cardialign.cluster.runs.reporting import JOB
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shown import public
from cardialign.pretrain.run.files import LOGS

SECONDS, POLL_SECONDS = 90.0, 0.5
BEGIN = "cardialign-helper-begins"
GRACE_SECONDS = 20
"""After a second SIGTERM, before SIGKILL."""


def run_beside(client: JobsClient, job: Job, line: str, lines: int = 100_000) -> str:
    """What the shell `line` prints on the node of the driver of `job`.

    Raises UserError when the node is gone, or busy for longer than SECONDS.
    """
    helper_id = f"{HELPER}-{secrets.token_hex(8)}"
    asked = {
        "entrypoint": f"echo {BEGIN}; {line}",
        "submission_id": helper_id,
        "metadata": {HELPER: job.id},
        "entrypoint_label_selector": {"ray.io/node-id": job.node or ""},
    }
    try:
        give(client, asked)
        helper = Job(helper_id, "PENDING", {})
        until = time.monotonic() + SECONDS
        while helper.lives and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            helper = Job.read(client.get(f"/api/jobs/{helper_id}"))
    except Unanswered as answer:
        raise failed(client, answer) from None
    if helper.lives or helper.exit_code is None:
        raise UserError(
            f"the node of job {job.id} does not answer ({helper.message[:200]})",
            f"look at the nodes of {public(client.address)} (`ray status`)",
        )
    return log_tail(client, helper, lines).partition(f"{BEGIN}\n")[2]


def end_now(client: JobsClient, job: Job, pid: int) -> None:
    """Send the driver of `job` a second SIGTERM, and SIGKILL when it lives on. Another process is left alone."""
    ours = f"tr '\\0' '\\n' < /proc/{pid}/environ 2>/dev/null | grep -qxF {shlex.quote(f'{JOB}={job.id}')}"
    wait = f"for i in $(seq {GRACE_SECONDS}); do kill -0 {pid} 2>/dev/null || exit 0; sleep 1; done"
    run_beside(client, job, f"if {ours}; then kill -TERM {pid}; {wait}; kill -KILL {pid}; fi; exit 0")


def worker_log(client: JobsClient, job: Job, rank: int, lines: int) -> str:
    """The newest log of a worker, as the node of the driver sees the run directory. Raises UserError without one."""
    folder = shlex.quote(f"{job.run_dir}/{LOGS}")
    newest = f"ls -d {folder}/*/rank-{rank}.log 2>/dev/null | sort | tail -n 1"
    told = run_beside(client, job, f'f=$({newest}); if [ -n "$f" ]; then tail -n {lines} "$f"; fi; exit 0', lines + 10)
    if not told.strip():
        raise UserError(f"the run of job {job.id} has no log of rank {rank}", "see `cardialign status` for its workers")
    return told
