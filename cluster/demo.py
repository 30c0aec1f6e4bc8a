"""The demo: every stage is the command a user would type, run in a process of its own.

A record of what is finished makes it restartable: a stage is skipped when the same command has finished in this folder
before, its outputs still verify, and no earlier stage had to run again.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.streams import tell
from cardialign.cluster.cli.subcommand import run_command
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import parse_json, read_bytes, read_json, write_json
from cardialign.pretrain.run.files import EXPORT

RECORD = "demo.json"
NAME = "cardialign-demo"
MADE = (
    RECORD,
    "cohort",
    "unseen-cohort",
    "shards",
    "unseen-shards",
    "run",
    "mlflow.db",
    "mlartifacts",
    "zero_shot.json",
    "encoder",
    "embedding.npy",
    "report.html",
    ".",
)
"""How the names of what a demo makes in its folder begin; what is hidden are temporary names of ours."""
PROMPTS = "virtual-findings-v2"
Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoSettings:
    """What a demo is made with; a folder holds the demo of one of these."""

    patients: int = 1500
    unseen_patients: int = 400
    recipe: str = NAME
    overrides: list[str] = field(default_factory=list)
    workers: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """words: the command behind `cardialign`; verified: are the outputs there and whole.

    again: words added when it has to replace outputs; clear: folders that go before it starts.
    """

    name: str
    words: list[str]
    verified: Callable[[], bool]
    again: tuple[str, ...] = ()
    clear: tuple[Path, ...] = ()


@dataclass
class Demo:
    """One demo folder and the record of its finished stages."""

    out: Path
    settings: DemoSettings
    say: Say
    stages: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        write_json(self.out / RECORD, {"settings": asdict(self.settings), "stages": self.stages}, indent=1)


def _to_stderr(line: str) -> None:
    tell(line + "\n")


def _open(out: Path, settings: DemoSettings, overwrite: bool, say: Say) -> Demo:
    """The demo in `out`.

    Raises UserError when the folder is something else, or a demo with other settings (unless `overwrite`).
    """
    record = read_json(out / RECORD)
    if record is not None and not (isinstance(record.get("settings"), dict) and isinstance(record.get("stages"), dict)):
        record = None
    if out.exists() and any(out.iterdir()) and record is None:
        raise UserError(f"{out} is not empty and holds no demo", "give another --out")
    if record is not None and overwrite:
        _empty(out)
        record = None
    if record is not None and record["settings"] != asdict(settings):
        before = record["settings"]
        changed = [
            f"{key} {before.get(key)} -> {value}" for key, value in asdict(settings).items() if before.get(key) != value
        ]
        raise UserError(
            f"{out} holds a demo with other settings: {'; '.join(changed)}",
            "add --overwrite to start afresh, or give another --out",
        )
    demo = Demo(out, settings, say, record["stages"] if record else {})
    out.mkdir(parents=True, exist_ok=True)
    demo.save()
    return demo


def _empty(out: Path) -> None:
    """Remove a demo. Raises UserError where something else lies beside it, which is somebody's."""
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith(MADE))
    if others:
        raise UserError(
            f"{out} holds more than a demo ({ascii(others[:5])[1:-1]}); it is left alone",
            "move the other files away, or give another --out",
        )
    for path in sorted(out.iterdir(), key=lambda path: path.name == RECORD):  # the record goes last
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _run_stage(demo: Demo, stage: Stage, number: int, of: int, forced: bool) -> bool:
    """Run or skip one stage; returns whether it ran."""
    done = demo.stages.get(stage.name)
    head = f"[{number}/{of}] {stage.name}"
    demo.say(f"{head}\n      {shlex.join(['cardialign', *stage.words])}")
    if done is not None and not forced and done["words"] == stage.words and stage.verified():
        demo.say(f"      finished before, verified ({done['seconds']:.1f} s then)")
        return False
    for path in stage.clear:
        shutil.rmtree(path, ignore_errors=True)
    started = time.monotonic()
    result = run_command([*stage.words, *(stage.again if done is not None else ())])
    seconds = time.monotonic() - started
    demo.stages[stage.name] = {"words": stage.words, "seconds": seconds, "result": result}
    demo.save()
    demo.say(f"      {seconds:.1f} s")
    return True


def _quick_shards(path: Path) -> bool:
    from cardialign.data_shards.checks.verify import verify

    try:
        return bool(verify(path, quick=True).ok)
    except UserError:
        return False


def _export_verifies(path: Path) -> bool:
    from cardialign.pretrain.run.integrity import verify_export

    try:
        return bool(verify_export(path))
    except UserError:
        return False


def _cohort_stage(name: str, path: Path, patients: int, seed: int, workers: int) -> Stage:
    words = ["cohort", str(path), "--patients", str(patients), "--layout", "mimic-iv-ecg"]
    words += ["--seed", str(seed), "--workers", str(workers)]
    return Stage(name, words, lambda: (path / "cohort.json").is_file(), clear=(path,))


def _shards_stage(name: str, root: Path, path: Path, workers: int) -> Stage:
    words = ["shards", "build", "mimic-iv-ecg", "--root", str(root), "--out", str(path)]
    words += ["--patients", str(root / "patients.csv"), "--labels", str(root / "truth.csv")]
    words += ["--records-per-shard", "512", "--workers", str(workers)]
    return Stage(name, words, lambda: _quick_shards(path), again=("--overwrite",))


def _first_record(cohort: Path) -> Path:
    """A WFDB record of the unseen cohort, without suffix."""
    headers = cohort.rglob("*.hea")
    return min(headers).with_suffix("")


def plan(out: Path, uri: str, settings: DemoSettings) -> list[Stage]:
    """The stages up to the registered encoder in order; the last one, `embed`, is planned when the cohort exists."""
    workers, seed = settings.workers, settings.seed
    run_dir, name = out / "run", f"models:/{NAME}@candidate"
    tracking = ["--tracking-uri", uri]
    sets = [word for assignment in settings.overrides for word in ("--set", assignment)]
    pretrain = ["pretrain", "--recipe", settings.recipe, "--shards", str(out / "shards"), "--run-dir", str(run_dir)]
    # micro-batches of 32: the same result in less memory, because the demo promises to fit in 4 GB
    pretrain += ["--workers", str(workers), "--device", "cpu", "--micro-batch", "32"]
    zero_shot = ["evaluate", "zero-shot", "--encoder", name, "--shards", str(out / "unseen-shards")]
    zero_shot += ["--prompts", PROMPTS, "--baseline", "--track"]
    return [
        _cohort_stage("virtual patients to learn from", out / "cohort", settings.patients, seed, workers),
        _cohort_stage(
            "virtual patients nobody has seen", out / "unseen-cohort", settings.unseen_patients, seed + 1, workers
        ),
        _shards_stage("shards", out / "cohort", out / "shards", workers),
        _shards_stage("shards of the unseen", out / "unseen-cohort", out / "unseen-shards", workers),
        Stage(
            "report embeddings",
            ["text-bank", "build", str(out / "shards")],
            lambda: (out / "shards" / "text_bank").is_dir(),
        ),
        Stage(
            "pretraining on Ray with DeepSpeed ZeRO",
            [*pretrain, *sets, "--experiment", NAME, "--register", NAME, *tracking],
            lambda: _export_verifies(run_dir / EXPORT),
        ),
        Stage(
            "zero-shot on the unseen, untrained encoder beside it",
            [*zero_shot, "--out", str(out / "zero_shot.json"), *tracking],
            lambda: read_json(out / "zero_shot.json") is not None,
        ),
        Stage(
            "the encoder as a consumer gets it",
            ["registry", "pull", f"{NAME}@candidate", str(out / "encoder"), *tracking],
            lambda: _export_verifies(out / "encoder"),
            again=("--overwrite",),
        ),
    ]


def _embed_stage(out: Path) -> Stage:
    record = str(_first_record(out / "unseen-cohort"))
    words = ["embed", record, "--encoder", str(out / "encoder"), "--allow-missing-leads"]
    words += ["--out", str(out / "embedding.npy")]
    return Stage("one ECG through it", words, lambda: (out / "embedding.npy").is_file())


def mlflow_command(uri: str) -> str:
    """What opens the MLflow UI of this store from the current folder."""
    beside = Path(sys.executable).parent / "mlflow"
    program = "mlflow"
    if shutil.which("mlflow") is None and beside.is_file():  # an environment that is not activated
        program = str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)
    return f"{program} ui --backend-store-uri {uri}"


def run_demo(
    out: Path, settings: DemoSettings | None = None, *, overwrite: bool = False, say: Say = _to_stderr
) -> dict[str, Any]:
    """All stages, then the page. Returns the zero-shot figures, the page's path, the MLflow command, seconds per stage.

    Raises UserError when the folder holds something else or a stage fails; the same call goes on from there.
    """
    from cardialign.pretrain.config import load_config

    started = time.monotonic()
    settings = settings or DemoSettings()
    load_config(settings.recipe, list(settings.overrides))  # a mistake in it is told before anything is made
    demo = _open(out, settings, overwrite, say)
    uri = f"sqlite:///{out / 'mlflow.db'}"
    stages = plan(out, uri, settings)
    ran = False
    for number, stage in enumerate(stages, 1):
        ran = _run_stage(demo, stage, number, len(stages) + 2, ran) or ran
    _run_stage(demo, _embed_stage(out), len(stages) + 1, len(stages) + 2, ran)
    say(f"[{len(stages) + 2}/{len(stages) + 2}] report")
    page_started = time.monotonic()
    from cardialign.cluster.pages.demo_page import write_demo_page

    results = {name: entry["result"] for name, entry in demo.stages.items()}
    zero_shot = parse_json(read_bytes(out / "zero_shot.json"))
    typed = [shlex.join(["cardialign", *stage.words]) for stage in stages]
    page = write_demo_page(out, zero_shot, mlflow_command(uri), typed)
    say(f"      {time.monotonic() - page_started:.1f} s")
    training = results["pretraining on Ray with DeepSpeed ZeRO"]
    return {
        "out": str(out),
        "report": str(page),
        "mlflow_command": mlflow_command(uri),
        "macro": zero_shot["macro"],
        "untrained_macro": zero_shot["baseline"]["macro"],
        "zero_shot": zero_shot,
        "training": {
            key: training[key]
            for key in ("steps", "final_loss", "records_per_second", "data_wait_share", "training_seconds")
        },
        "stage_seconds": {name: round(entry["seconds"], 1) for name, entry in demo.stages.items()},
        "total_seconds": time.monotonic() - started,
        "_table": _table(zero_shot),
    }


def _table(zero_shot: dict[str, Any]) -> str:
    """Classes, AUROC with interval, untrained beside it; and whether the encoder has seen these records."""
    from cardialign.pretrain.evaluation.result import overlap_note

    untrained = {entry["code"]: entry["auroc"] for entry in zero_shot["baseline"]["classes"]}

    def figure(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.3f}"

    def row(name: str, records: int, auroc: str, interval: str, beside: str) -> str:
        return f"{name:<{width}}  {records:>7}  {auroc}  {interval:>13}  {beside:>9}"

    width = max(len(entry["name"]) for entry in zero_shot["classes"])
    lines = [f"{'class':<{width}}  records  AUROC  95 % interval  untrained"]
    for entry in sorted(zero_shot["classes"], key=lambda entry: -(entry["auroc"] or 0)):
        interval = f"{figure(entry['low'])}-{figure(entry['high'])}"
        beside = figure(untrained.get(entry["code"]))
        lines.append(row(entry["name"], entry["positives"], figure(entry["auroc"]), interval, beside))
    interval = f"{figure(zero_shot['low'])}-{figure(zero_shot['high'])}"
    macro, beside = figure(zero_shot["macro"]), figure(zero_shot["baseline"]["macro"])
    lines.append(row(f"macro, {len(zero_shot['classes'])} classes", zero_shot["n"], macro, interval, beside))
    if zero_shot.get("trained_on"):
        lines.append(overlap_note(zero_shot["trained_on"]))
    return "\n".join(lines)
