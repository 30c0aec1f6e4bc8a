"""The Ray that work runs on: a local one, started and ended with the work, or a cluster that is joined and left."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import logging
import os
import resource
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cardialign.cluster.environment.package import package_folder
from cardialign.cluster.environment.put_off import STAND_INS
from cardialign.cluster.environment.starting import START_SECONDS, led_by_us, signals_left_alone
from cardialign.cluster.environment.threads import threads_asked, threads_of_each
from cardialign.cluster.environment.versions import source_root
from cardialign.data_shards.cpus import usable_cpus
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shown import public

OBJECT_STORE_BYTES = 128 * 2**20
"""Nothing large goes through Ray's object store: shards are read from files."""
LOCAL_RAY = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody drains the one node of a local Ray: one process less
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of a worker, and its reports, are seen sooner
    "RAY_gcs_server_port_wait_time_s": f"{START_SECONDS:.0f}",  # 30 without it
}
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in a driver that a cluster runs as a job: its packages and variables are those of all its workers."""
NICENESS = "RAY_worker_niceness"
"""15 if it is not set: beside any other work of this machine a training step took ten minutes, not seconds."""
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""With clusters switched off Ray gives its node the address 127.0.0.1, and then listens there alone."""
log = logging.getLogger(__name__)

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
SCRATCH, PREFIX, OWNER = Path("/tmp"), "ray-", "owner.lock"  # noqa: S108 - a folder is made in it by mkdtemp
"""Where a local Ray keeps its sockets and logs; socket paths below must stay under 108 bytes."""
LEAST_FREE = 2**26
OPEN_FILES, OPEN_FILES_OF_WORKER = 96, 8
"""Of one process: counted on local clusters of one and two workers, Ray's control service and its raylet hold 45 to 55
each, its driver and workers fewer; the rest is for what comes and goes while they start."""
REACH_SECONDS = 10.0
CLIENT = "ray://"
MODE, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"
AUTHENTICATION = (MODE, "RAY_AUTH_TOKEN", TOKEN_PATH)


@contextlib.contextmanager
def ray_session(workers: int, address: str | None, keep_logs: Path | None = None, beside: int = 0) -> Iterator[None]:
    """A local Ray without dashboard and with a small object store, or the cluster at `address`.

    At the end the local Ray is shut down, a joined cluster left. keep_logs: where the logs of a local Ray are copied
    when the work on it fails. beside: CPUs of a local Ray for work beside the workers. Raises UserError when the
    cluster does not answer, or a local Ray cannot be started.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    if address is not None:
        reach(address)
        with _authentication({}), _leaving():
            _join(address)
            yield
        return
    check_open_files(workers + beside)
    for name, value in LOCAL_RAY.items():
        os.environ.setdefault(name, value)
    with _scratch() as scratch, _authentication(_own_token(scratch.parent)), _leaving():
        try:
            _start(workers + beside, _local_environment(workers), scratch)
            yield
        except BaseException:
            if keep_logs is not None:
                _keep(scratch, keep_logs)
            raise


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def _own_token(folder: Path) -> dict[str, str]:
    """A token for one local Ray in a file of its own, and what names it to every process; {} where the user has chosen.

    Ray would write one for all clusters of this user into the home directory, where two first starts overwrite it.
    """
    if any(name in os.environ for name in AUTHENTICATION):
        return {}
    path = folder / "auth_token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return {MODE: "token", TOKEN_PATH: str(path)}


@contextlib.contextmanager
def _authentication(variables: dict[str, str]) -> Iterator[None]:
    """How this process proves itself to the Ray that it starts or joins: `variables`, else as the environment says.

    Ray reads both once for a process, and sets them: what an earlier session left would be refused by the next Ray.
    """
    as_it_is = {name: os.environ.get(name) for name in AUTHENTICATION}
    try:
        with _environment({**as_it_is, **variables}):
            _read_authentication_again()
            yield
    finally:
        _read_authentication_again()


def _read_authentication_again() -> None:
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for a local Ray that is gone afterwards.

    Its lock dies with this process: what a killed driver left behind is removed by the next one.
    """
    _remove_left_behind()
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=SCRATCH))
        descriptor = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _no_local_ray(str(error)) from None
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder / "r"  # Ray opens its folder to every user of the machine; the one around it stays ours
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_left_behind() -> None:
    for path in SCRATCH.glob(f"{PREFIX}*/{OWNER}"):
        try:
            if path.parent.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:  # its driver lives
            pass
        finally:
            os.close(descriptor)


def _local_environment(workers: int) -> dict[str, str | None]:
    """Of every process of a local Ray, beside what it inherits: our package, its threads, the accelerator."""
    from torch import cuda

    variables: dict[str, str | None] = {
        **LOOPBACK_ONLY,
        JOB_CONFIG: None,  # a local Ray inside a job knows nothing of the packages of that cluster
        "OMP_NUM_THREADS": str(threads_of_each(workers, threads_asked())),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        NICENESS: os.environ.get(NICENESS, "0"),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(STAND_INS), str(source_root()), os.environ.get("PYTHONPATH", "")])
        ),
    }
    if "GLOO_SOCKET_IFNAME" not in os.environ and "lo" in (name for _, name in socket.if_nameindex()):
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    if not cuda.is_available():
        variables["DS_ACCELERATOR"] = "cpu"
    return variables


def _start(cpus: int, environment: Mapping[str, str | None], scratch: Path) -> None:
    """A local Ray whose every process inherits `environment`: cheaper than a `runtime_env`, which starts an agent.

    Parts that Ray gives 30 s to come up may need more on a busy machine: it is started a second time then.
    """
    import ray

    try:
        try:
            _start_once(cpus, environment, scratch)
        except Exception as error:
            told = _no_local_ray(_in_short(error))
            if isinstance(error, OSError) or told.remedy != _ASK_DOCTOR:
                raise  # a second time finds the same disk
            log.warning("%s; starting it once more", told.problem)
            ray.shutdown()
            _start_once(cpus, environment, scratch)
    except (Exception, SystemExit) as error:  # whatever it is, it comes from this machine
        raise _no_local_ray(_in_short(error)) from error


def _start_once(cpus: int, environment: Mapping[str, str | None], scratch: Path) -> None:
    import ray
    from ray._private import ray_constants

    clusters = ray_constants.ENABLE_RAY_CLUSTER
    try:
        with _environment(environment), led_by_us():
            ray_constants.ENABLE_RAY_CLUSTER = False  # read from the environment when Ray was imported: maybe before us
            ray.init(
                address="local",
                num_cpus=max(cpus, usable_cpus()),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(scratch),
                _system_config={"prestart_worker_first_driver": False},
                **QUIET,
            )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def ended_processes() -> list[str]:
    """The processes without which the local Ray is none, and that have ended; a joined cluster has none here.

    Ray's control service lives on after SIGTERM, and answers nobody any more.
    """
    from ray._private import ray_constants, worker

    node = worker._global_node
    if node is None or not node.is_head():
        return []
    control, raylet = ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET
    ended = {str(kind) for kind, _ in node.dead_processes() if kind in (control, raylet)}
    host, _, port = node.gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except ConnectionRefusedError:
        ended.add(control)
    except OSError:  # a machine that is out of ports or descriptors says nothing of Ray
        pass
    return sorted(ended)


def check_open_files(workers: int) -> None:
    """Raise UserError when this process may never open the files that a local Ray with `workers` wants.

    Ray raises the soft limit to the hard one by itself; its services have that of the process that starts them.
    """
    wanted, hard = OPEN_FILES + OPEN_FILES_OF_WORKER * workers, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise UserError(
            f"a local Ray with {workers} workers wants {wanted} open files, the limit here is {hard}",
            "raise it (`ulimit -n 65536`; a service: LimitNOFILE=65536; a container: --ulimit nofile=65536), or join a "
            "cluster with --address",
        )


_ASK_DOCTOR = "see `cardialign doctor` for memory, /dev/shm, /tmp and open files; or join a cluster with --address"


def _no_local_ray(problem: str) -> UserError:
    """Why Ray does not start here: a full /tmp or /dev/shm, where they are, and Ray's own first line otherwise."""
    full = [str(place) for place in (SCRATCH, Path("/dev/shm")) if _free(place) < LEAST_FREE]  # noqa: S108 - measured
    if full:
        return UserError(
            f"a local Ray could not be started: no space is left in {' and '.join(full)} ({problem})",
            "free space there (containers: --shm-size=1g), or join a cluster with --address",
        )
    return UserError(f"a local Ray could not be started: {problem}", _ASK_DOCTOR)


def _free(place: Path) -> int:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return LEAST_FREE


def _keep(scratch: Path, target: Path) -> None:
    """Copy the logs of a local Ray, whose folder goes, beside those of its workers, once there are some."""
    if not target.parent.is_dir():
        return
    for logs in scratch.glob("session_[0-9]*/logs"):
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(logs, target, dirs_exist_ok=True, symlinks=True)


def reach(address: str) -> None:
    """Raise UserError when nothing listens at `address`: Ray would try for minutes and end the process."""
    meant = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if "://" in meant and not meant.startswith(CLIENT):
        raise UsageError(
            f"{'--address' if meant == address else 'RAY_ADDRESS'} {public(meant)!r} is no address that a driver joins",
            "give auto, HOST:6379 or ray://HOST:10001; a dashboard (http://HOST:8265) takes commands by "
            "`cardialign submit --address http://HOST:8265 --name NAME -- COMMAND ...`",
        )
    host, colon, port = meant.removeprefix(CLIENT).rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _no_cluster(address, f"{host.rpartition('@')[2]}:{port} cannot be reached: {why}") from None


def _join(address: str) -> None:
    """Join a cluster. What runs there is this package as it is here: checkout, editable or installed alike.

    A driver that is itself a job of the cluster brings nothing: its workers get what the job was submitted with.
    """
    import ray

    runtime: dict[str, Any] = {"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TOKENIZERS_PARALLELISM": "false"}}
    try:
        with contextlib.ExitStack() as stack:
            if JOB_CONFIG not in os.environ:
                runtime["py_modules"] = [str(stack.enter_context(package_folder()))]
            stack.enter_context(signals_left_alone())
            ray.init(address=address, runtime_env=runtime, **QUIET)
    except SystemExit:
        raise _no_cluster(address, "it does not answer as a Ray cluster does") from None
    except Exception as error:
        text = " ".join(str(error).split())
        if "Version mismatch" in text:
            raise UserError(
                f"the Ray cluster at {public(address)!r} runs other versions than this machine: {text[:600]}",
                "let driver and nodes have the same Ray and Python: install the same set on both",
            ) from None
        raise _no_cluster(address, _in_short(error)) from None


def _no_cluster(address: str, why: str) -> UserError:
    return UserError(
        f"no Ray cluster at {public(address)!r}: {why}",
        "check --address; a cluster started with `ray start` wants RAY_AUTH_MODE=token and its token here too; "
        "without --address a local Ray is started",
    )


def _in_short(error: BaseException) -> str:
    """First and last line: Ray says in the first what failed, and in the last, far below, why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ... ".join(dict.fromkeys((lines[0], lines[-1])))


@contextlib.contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """`os.environ` with `variables` (None: without), as it was afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        _set(variables)
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
