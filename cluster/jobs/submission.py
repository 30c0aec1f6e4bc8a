"""A command of ours as a job of a Ray cluster: it runs there while the machine that submitted it sleeps."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.cluster.environment.handed_on import SUBMITTED
from cardialign.cluster.environment.package import archive, package_files
from cardialign.cluster.environment.versions import COMMIT, git_commit, version
from cardialign.cluster.jobs.client import JobsClient, Unanswered, check_version
from cardialign.cluster.jobs.job import (
    FORM,
    MARK,
    Job,
    check_name,
    failed,
    first_id,
    give,
    list_jobs,
    same_folder,
    this_user,
)
from cardialign.cluster.jobs.travel import travelling
from cardialign.cluster.jobs.words import Inner
from cardialign.cluster.runs.reporting import JOB
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shown import public

STOP_SECONDS = 900
"""How long Ray waits after a stop before it kills a driver: long enough for a checkpoint."""
RAYS_PYTHON = (
    "\"$(l=$(grep -om1 '/.*/lib/python[0-9.]*/site-packages/ray/_raylet' /proc/$PPID/maps); "
    'p=${l%/lib/python*}/bin/python; if [ -n "$l" ] && [ -x "$p" ]; then echo "$p"; else echo python; fi)"'
)
"""Ray runs a job in a shell, where `python` may be another one than its own: that is beside the library which the
parent of the shell has loaded."""
LARGEST_WHEEL = 2**28
IMAGE = "image"
"""The word of `--wheel` for a package that the nodes have already."""
TRIES = 5


@dataclass(frozen=True)
class Driver:
    """What the driver of a job stands on. wheel: None means this package as it is here. memory: in bytes."""

    wheel: str | None = None
    cpus: float = 0.0
    memory: int = 0


def judge_driver(name: str, driver: Driver) -> None:
    """Raises UsageError for a name, or a wheel, that no cluster would take."""
    check_name(name)
    if driver.wheel is not None and driver.wheel.endswith(".whl") and "://" not in driver.wheel:
        _wheel(Path(driver.wheel).expanduser())


def submit(
    client: JobsClient, name: str, inner: Inner, driver: Driver, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Give the command to the cluster; returns at once, with the job's id and what travelled.

    Raises UsageError while a job of this name and user, or one of the same run directory, lives, and for a name that
    belongs to another run directory; UserError when the cluster does not take the job.
    """
    check_name(name)
    if driver.wheel != IMAGE:
        check_version(client)
    jobs = list_jobs(client)
    user = this_user()
    earlier = [job for job in jobs if job.ours and job.name == name and job.user == user]
    check_free(jobs, earlier, inner)
    handed, stays = travelling(environment)
    runtime, travels = _upload(client, inner, driver)
    metadata = {
        MARK: FORM, "name": name, "user": user, "host": platform.node(), "run_dir": inner.run_dir, "out": inner.out,
        "command": shlex.join(inner.given), "version": version("cardialign"),
        "commit": git_commit() if driver.wheel is None else "",  # what else runs is not the code that lies here
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    number = 1 + max((_number(job.id) for job in earlier), default=0)
    for attempt in range(number, number + TRIES):
        job_id = f"{first_id(name, user)}-{attempt}"
        variables = {JOB: job_id, SUBMITTED: json.dumps(handed), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        variables |= {COMMIT: metadata["commit"]} if metadata["commit"] else {}
        asked: dict[str, Any] = {
            "entrypoint": inner.entrypoint("python" if "pip" in runtime else RAYS_PYTHON),
            "submission_id": job_id, "metadata": metadata,
            "runtime_env": {**runtime, "env_vars": variables},
        }  # fmt: skip
        asked |= {"entrypoint_num_cpus": driver.cpus} if driver.cpus else {}
        asked |= {"entrypoint_memory": driver.memory} if driver.memory else {}
        try:
            give(client, asked)
            break
        except Unanswered as answer:
            if "already exists" not in answer.text:
                raise failed(client, answer) from None
            check_free(list_jobs(client), [], inner)  # somebody was faster: maybe with the same run
    else:
        raise UserError(f"the name {name!r} is being submitted again and again", "give it another --name")
    return {
        "job": job_id, "name": name, "user": user, "address": public(client.address), "run_dir": inner.run_dir or None,
        "continues": earlier[0].id if earlier else None, "words": metadata["command"], **travels,
        "environment": sorted(handed), "stays": stays,
    }  # fmt: skip


def check_free(jobs: list[Job], earlier: list[Job], inner: Inner) -> None:
    """Raises UsageError when the name or the work of `inner` is taken."""
    living = next((job for job in earlier if job.lives), None)
    if living is not None:
        raise UsageError(
            f"{living.name!r} is {living.told()}: it runs already",
            f"see `cardialign status {living.id}`; stop it with `cardialign stop {living.id}`, or give another --name",
        )
    for key, place in (("run_dir", inner.run_dir), ("out", inner.out)):
        for job in jobs:
            if job.ours and job.lives and place and same_folder(job.metadata.get(key) or "", place):
                raise UsageError(
                    f"{place} is in use by {job.told()} ({job.name!r})", "wait for it, or give another folder"
                )
        before = earlier[0].metadata.get(key, "") if earlier else ""
        if before and place and not same_folder(before, place):
            raise UsageError(
                f"the name {earlier[0].name!r} belongs to the work in {before} ({earlier[0].id}), not to {place}",
                "give another --name, or the folder of the earlier job to go on with it",
            )


def _number(job_id: str) -> int:
    last = job_id.rpartition("-")[2]
    return int(last) if last.isdecimal() else 0


def _upload(client: JobsClient, inner: Inner, driver: Driver) -> tuple[dict[str, Any], dict[str, Any]]:
    """(Ray's runtime environment, what travelled for it): the package as it is here, or the wheel; and YAML files."""
    runtime: dict[str, Any] = {}
    files, size, what = 0, 0, "the package as it is here"
    if driver.wheel is None:
        package = package_files()
        name, content = archive(package)
        files, size = len(package), len(content)
        runtime["py_modules"] = [_stored(client, name, content)]
    elif driver.wheel == IMAGE:
        what = "nothing: the nodes have the package"
    elif driver.wheel.endswith(".whl") and "://" not in driver.wheel:
        path = Path(driver.wheel).expanduser()
        content = _wheel(path)
        files, size, what = 1, len(content), path.name
        runtime["py_modules"] = [_stored(client, _own_name(path.name, content), content)]
    else:
        what = f"nothing: the nodes install {public(driver.wheel)}"
        runtime["pip"] = {"packages": [driver.wheel], "pip_check": False}
    if inner.files:
        name, content = archive(inner.files)
        files, size = files + len(inner.files), size + len(content)
        runtime["working_dir"] = _stored(client, name, content)
    named = [str(path) for path in inner.files.values()]
    return runtime, {"travels": what, "files": files, "bytes": size, "yaml": named}


def _wheel(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"--wheel {path} cannot be read: {error.strerror}",
            f"give the file of a wheel, a requirement (cardialign==...), or {IMAGE} for nodes that have the package",
        ) from None
    if len(content) > LARGEST_WHEEL or not content.startswith(b"PK"):
        raise UsageError(f"--wheel {path} is no wheel", "make one with `python -m build --wheel` (or `pip wheel .`)")
    return content


def _own_name(name: str, content: bytes) -> str:
    """The name of a wheel with its digest as build tag: one that was built again under its old name is sent again."""
    parts = name.split("-")
    return "-".join([*parts[:2], f"0{hashlib.sha256(content).hexdigest()[:16]}", *parts[-3:]])


def _stored(client: JobsClient, name: str, content: bytes) -> str:
    """The cluster's own address of a package, which is sent unless it is there."""
    path = f"/api/packages/gcs/{name}"
    try:
        if not client.has(path):
            client.put(path, content)
    except Unanswered as answer:
        raise failed(client, answer) from None
    return f"gcs://{name}"
