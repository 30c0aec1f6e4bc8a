"""A job of a cluster as its users know it: its name, whose it is, its run directory, and how it stands.

Names are for people, and may be anything; ids are for Ray, which makes files and addresses of them. A job that was
submitted here carries its name and its owner as metadata, so two users with one name never meet unseen.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import time
import unicodedata
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cardialign.cluster.jobs.client import JobsClient, Unanswered
from cardialign.cluster.runs.reporting import last_state
from cardialign.data_shards.errors import STOPPED, UsageError, UserError
from cardialign.data_shards.shown import public

MARK, FORM = "cardialign", "1"
"""The metadata that tells our jobs from others."""
HELPER = "cardialign_helper_of"
LONGEST_NAME, SLUG = 1000, 32
STARTING, STARTING_SECONDS, AGAIN_SECONDS = "No available agent", 120.0, 2.0
"""What a head node answers while it starts, how long it is asked again, and how often."""
LIVING = ("PENDING", "RUNNING")
TAIL_LINES = 400
WORDS = {"PENDING": "queued", "RUNNING": "running", "STOPPED": "stopped", "SUCCEEDED": "finished", "FAILED": "failed"}
_SAID = re.compile(r"^cardialign: (.+(?:\n  remedy: .+)?)", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """One job. started, ended: seconds since 1970, None where Ray does not say. message: Ray's own words."""

    id: str
    status: str
    metadata: dict[str, str]
    message: str = ""
    error: str = ""
    started: float | None = None
    ended: float | None = None
    node: str | None = None
    exit_code: int | None = None
    entrypoint: str = field(default="", repr=False)

    @staticmethod
    def read(values: dict[str, Any]) -> Job:
        """As the Jobs API describes it."""
        metadata = values.get("metadata") or {}
        return Job(
            id=str(values.get("submission_id") or values.get("job_id") or ""),
            status=str(values.get("status") or ""),
            metadata={str(key): str(value) for key, value in metadata.items()},
            message=str(values.get("message") or ""),
            error=str(values.get("error_type") or ""),
            started=_seconds(values.get("start_time")),
            ended=_seconds(values.get("end_time")),
            node=values.get("driver_node_id"),
            exit_code=values.get("driver_exit_code"),
            entrypoint=str(values.get("entrypoint") or ""),
        )

    @property
    def ours(self) -> bool:
        return MARK in self.metadata

    @property
    def name(self) -> str:
        return self.metadata.get("name", "") if self.ours else ""

    @property
    def user(self) -> str:
        return self.metadata.get("user", "") if self.ours else ""

    @property
    def run_dir(self) -> str:
        return self.metadata.get("run_dir", "") if self.ours else ""

    @property
    def lives(self) -> bool:
        return self.status in LIVING

    def told(self) -> str:
        """For messages: id, owner and state."""
        whose = f" of {self.user} (from {self.metadata.get('host', '?')})" if self.user else ""
        return f"job {self.id}{whose}, {WORDS.get(self.status, self.status)}"


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None


def this_user() -> str:
    """Whose jobs are submitted from here: CARDIALIGN_USER, else the login name."""
    if named := os.environ.get("CARDIALIGN_USER", "").strip():
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container with a user id that nobody has
        return f"uid-{os.getuid()}"


def check_name(name: str) -> str:
    """Raises UsageError for a name that nobody could read or write again."""
    if not name.strip():
        raise UsageError(f"--name {name!r} is empty", "give the run a name of its own")
    if len(name) > LONGEST_NAME:
        raise UsageError(f"--name has {len(name)} characters", f"give at most {LONGEST_NAME}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"--name {ascii(name)[:80]} is no UTF-8 text", "give it another name") from None
    return name


def first_id(name: str, user: str) -> str:
    """What the ids of all jobs of this user and name begin with: letters, digits and dashes, and never two names'."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:SLUG].strip("-") or "run"
    return f"{slug}-{hashlib.sha256(chr(0).join((user, name)).encode()).hexdigest()[:10]}"


def list_jobs(client: JobsClient) -> list[Job]:
    """Every job of the cluster but our own helpers, newest first."""
    try:
        found = [Job.read(values) for values in client.get("/api/jobs/") if values.get("type") != "DRIVER"]
    except Unanswered as answer:
        raise failed(client, answer) from None
    jobs = [job for job in found if HELPER not in job.metadata and not job.id.startswith(HELPER)]
    return sorted(jobs, key=lambda job: (job.started or 0.0, job.id), reverse=True)


def find_job(client: JobsClient, word: str, jobs: Sequence[Job] | None = None) -> Job:
    """The newest job with this id, name or run directory; a name of one's own comes before that of others.

    Raises UserError when there is none, or when the name is that of several others.
    """
    jobs = list_jobs(client) if jobs is None else jobs
    by_id = [job for job in jobs if job.id == word]
    named = [job for job in jobs if job.ours and job.name == word]
    own = [job for job in named if job.user == this_user()]
    there = [job for job in jobs if job.run_dir and same_folder(job.run_dir, word)]
    for found in (by_id, own, named, there):
        if not found:
            continue
        if found is named and len(users := sorted({job.user for job in named})) > 1:
            raise UserError(
                f"the name {word!r} belongs to jobs of {', '.join(users)}, none of them yours",
                "give the id of the job (`cardialign list --all`)",
            )
        return found[0]
    own_names = sorted({job.name for job in jobs if job.user == this_user()})
    known = f"; yours are {', '.join(map(repr, own_names[:8]))}" if own_names else ""
    raise UserError(
        f"the cluster at {public(client.address)} knows no job {word!r}{known}",
        "see `cardialign list --all`. A cluster whose head node was started again has forgotten its jobs, not their "
        "runs: give the same `cardialign submit` again, and the run goes on from its newest checkpoint",
    )


def same_folder(one: str, other: str) -> bool:
    return os.path.normpath(one) == os.path.normpath(other)


def log_tail(client: JobsClient, job: Job, lines: int = TAIL_LINES) -> str:
    """The last lines of a job's log, "" where there is none (any more)."""
    if job.node:
        query = urllib.parse.urlencode({"node_id": job.node, "filename": f"job-driver-{job.id}.log", "lines": lines})
        try:
            return client.text(f"/api/v0/logs/file?{query}")
        except Unanswered:  # the node is gone, or an older dashboard: the whole log, if anybody has it
            pass
    return "".join(whole_log(client, job).splitlines(keepends=True)[-lines:])


def whole_log(client: JobsClient, job: Job) -> str:
    try:
        return str(client.get(f"/api/jobs/{job.id}/logs").get("logs") or "")
    except Unanswered:
        return ""


def cause(job: Job, log: str) -> tuple[str, str]:
    """(state, why): the state of a job in a word or two, and what ended it.

    A run that ended at a checkpoint says so with code 75, or in its last state line when it was asked to stop.
    """
    state = last_state(log) or {}
    at_checkpoint = f"at the checkpoint of step {state.get('last_checkpoint_step')}"
    if job.status == "STOPPED" and state.get("phase") == "stopped":
        return "stopped", f"{at_checkpoint}; submit it again to continue"
    if job.status == "FAILED":
        if job.exit_code == STOPPED:
            return "stopped", f"{at_checkpoint if state else 'at a checkpoint'} (75); submit it again to continue"
        said = [told.replace("\n  remedy: ", " -> ") for told in _SAID.findall(log)]
        code = "" if job.exit_code is None else f" (exit code {job.exit_code})"
        return "failed", f"{said[-1]}{code}" if said else f"{_first_line(job.message)}{code}"
    if job.status == "RUNNING" and state.get("phase") == "stopping":
        return "stopping", "asked to stop at a checkpoint"
    if job.status == "RUNNING" and state.get("waits_for"):
        return "waiting", f"for {state['waits_for']}"
    return WORDS.get(job.status, job.status), _first_line(job.message) if job.status == "PENDING" else ""


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")[:500]


def give(client: JobsClient, asked: dict[str, Any]) -> None:
    """Give the cluster a job. A head node that has just started takes none for a while: it is asked again.

    Raises Unanswered when it does not take the job.
    """
    until = time.monotonic() + STARTING_SECONDS
    while True:
        try:
            client.post("/api/jobs/", asked)
            return
        except Unanswered as answer:
            if STARTING not in answer.text or time.monotonic() > until:
                raise
        time.sleep(AGAIN_SECONDS)


def failed(client: JobsClient, answer: Unanswered) -> UserError:
    """An answer of the Jobs API that nothing of ours explains."""
    if STARTING in answer.text:
        return UserError(
            f"the head node of {public(client.address)} takes no job: the agent of its dashboard does not answer",
            "it may be starting still, or another Ray on that machine holds the agent's port: see dashboard_agent.log "
            "there, and `ray start --dashboard-agent-listen-port`",
        )
    lines = [line.strip() for line in answer.text.splitlines() if line.strip(" .")] or [f"status {answer.status}"]
    return UserError(
        f"the Jobs API of {public(client.address)} fails: {lines[-1][:300]}",
        "look at the head node: its dashboard_agent.log and dashboard.log say more",
    )


def absolute_local(word: str) -> Path | None:
    """`word` as a run directory that this machine sees, None when it is none."""
    path = Path(word).expanduser()
    try:
        return path.absolute() if path.is_dir() else None
    except (OSError, ValueError):
        return None
