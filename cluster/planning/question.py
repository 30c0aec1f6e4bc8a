"""What is asked of a plan: recipe, data, machines and prices, checked together: every mistake is told at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.files import parse_json, read_text

if TYPE_CHECKING:
    from cardialign.data_shards.record import SignalSpec
    from cardialign.pretrain.benchmarks.machines import Machine
    from cardialign.pretrain.config import RunConfig

BYTES_OF_A_SAMPLE = 0.4
"""Of a shard, where none is at hand: 16 bits, 5.1 times smaller (README, figures of PTB-XL at 500 Hz)."""
MACHINE_KEYS = {
    "name": str, "bf16_tflops": float, "fp32_tflops": float, "memory_gib": float, "link_gb_s": float,
    "network_gb_s": float, "watts": float, "records_per_second": float, "mfu": float, "cuda": bool,
}  # fmt: skip
"""Keys of a machine's file. records_per_second: of one device and this recipe, as measured."""
NEEDED = ("bf16_tflops", "fp32_tflops", "memory_gib")


@dataclass
class Problems:
    """Mistakes so far, each as what is wrong and what to do."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, problem: str, remedy: str) -> None:
        self.found.append((problem, remedy))

    def of(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, or None and its mistake among the others."""
        try:
            return work()
        except UserError as error:
            self.add(error.problem, error.remedy)
            return None

    def number(self, name: str, text: str | None, least: float, most: float = math.inf, whole: bool = False) -> Any:
        """A number from `least` to `most`, of an option; None, and a mistake, where it is none of them."""
        if text is None:
            return None
        kind = "a whole number" if whole else "a number"
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if least <= value <= most and math.isfinite(value):  # refuses nan, too
            return value
        limits = f"of {least:g} or more" if math.isinf(most) else f"from {least:g} to {most:g}"
        self.add(f"{name} {text} is not {kind} {limits}", f"give {name} {kind} {limits}")
        return None

    def settle(self) -> None:
        """Raises UsageError with all of them."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise UsageError(*self.found[0])
        lines = "\n".join(f"  - {problem.replace(chr(10), chr(10) + '  ')}; {remedy}" for problem, remedy in self.found)
        raise UsageError(f"the plan has {len(self.found)} problems:\n{lines}", "correct them and run again")


@dataclass(frozen=True)
class Data:
    """records: that the run selects; None where only its steps are known. record_bytes: of one in its shards.

    reports: different ones, None where no shards are at hand. said: where these come from.
    """

    spec: SignalSpec
    records: int | None
    record_bytes: float
    said: str
    reports: int | None = None


@dataclass(frozen=True)
class Question:
    """A checked question. records_per_second: of one device, measured by the user. price: of a device for an hour.

    bf16_kernels: whether oneDNN has kernels of bf16 on the processors, where a CPU trains.
    """

    config: RunConfig
    data: Data
    machine: Machine
    nodes: int
    devices: int
    mfu: float
    mfu_said: str
    records_per_second: float | None
    data_rate: float | None
    data_said: str
    price: float | None
    currency: str
    bf16_kernels: bool

    @property
    def world(self) -> int:
        return self.nodes * self.devices


def machine_of(kind: str) -> tuple[Machine, dict[str, Any]]:
    """A published machine, or that of a YAML file; and what else the file says. Raises UsageError."""
    from cardialign.pretrain.benchmarks.machines import MACHINES, Machine
    from cardialign.pretrain.config.yaml_text import read_yaml

    known = next((machine for name, machine in MACHINES.items() if name.lower() == kind.lower()), None)
    if known is not None:
        return known, {}
    path = Path(kind)
    if path.suffix not in (".yaml", ".yml", ".json") or not path.is_file():
        raise UsageError(
            f"--kind {kind} is no machine that is known here and no file",
            f"take one of {', '.join(MACHINES)}, or a YAML file with {', '.join(NEEDED)}",
        )
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"machine {path} cannot be read: {why}", "give a YAML file in UTF-8") from None
    values = read_yaml(text, str(path))
    wrong = _wrong_keys(values)
    if wrong:
        raise UsageError(f"machine {path}: {'; '.join(wrong)}", f"keys there are: {', '.join(MACHINE_KEYS)}")
    return Machine(
        str(values.get("name", path.stem)),
        values["bf16_tflops"] * 1e12,
        values["fp32_tflops"] * 1e12,
        values["memory_gib"],
        None,
        values.get("link_gb_s", 32.0),
        values.get("network_gb_s", 12.5),
        values.get("watts"),
        f"given in {path}",
        ", ".join(
            f"{key} {value:g}" for key, value in (("link_gb_s", 32.0), ("network_gb_s", 12.5)) if key not in values
        ),
        bool(values.get("cuda", True)),
    ), {key: values[key] for key in ("records_per_second", "mfu") if key in values}


def _wrong_keys(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return ["it holds no mapping"]
    wrong = [f"unknown key {key}" for key in values if key not in MACHINE_KEYS]
    wrong += [f"{key} is missing" for key in NEEDED if key not in values]
    for key, value in values.items():
        kind = MACHINE_KEYS.get(key)
        if kind is float and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            wrong.append(f"{key} {value!r} is not a number above 0")
        elif kind in (str, bool) and not isinstance(value, kind):
            wrong.append(f"{key} {value!r} is not {'text' if kind is str else 'true or false'}")
    return wrong


def data_rate_of(text: str | None, threads: int) -> tuple[float | None, str]:
    """Records/s that one rank reads: a number, or a file of `cardialign bench data --json`. Raises UsageError."""
    if text is None:
        return None, "unknown: `cardialign bench data SHARDS --json > FILE`, then --data-rate FILE"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value > 0 and math.isfinite(value):
        return value, f"given: {value:g} records/s of each rank"
    try:
        lines = read_text(Path(text)).strip().splitlines()
        rate = float(parse_json(lines[-1])["stream_records_per_s_per_core"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UsageError(
            f"--data-rate {text} is no number above 0 and no result of `bench data`",
            "give records/s of one rank, or the file of `cardialign bench data SHARDS --op stream --json > FILE`",
        ) from None
    return rate * threads, f"{rate:,.0f} records/s per core (bench data, {text}) x {threads} data.threads of each rank"


def data_of(config: RunConfig, records: int | None, spec: SignalSpec) -> Data:
    """What the run reads: its shards where it names them, else as many records of `spec` as were given.

    Raises UserError for shards that cannot be opened, and where neither records nor steps are known.
    """
    if config.data.parts and records is None:
        from cardialign.pretrain.training.data import open_data

        shard_set, selection, _ = open_data(config)
        sets = getattr(shard_set, "sets", [shard_set])
        held = sum(int(shard["bytes"]) for each in sets for shard in each.manifest["shards"])
        names = ", ".join(str(part.shards) for part in config.data.parts)
        reports = sum(each.report_count for each in sets)
        per_record = held / max(1, len(shard_set))
        return Data(shard_set.spec, len(selection.rows), per_record, f"counted in {names}", reports)
    per_record = 12 * spec.samples * BYTES_OF_A_SAMPLE
    assumed = (
        f"records of {spec.seconds:g} s at {spec.sampling_rate:g} Hz, {BYTES_OF_A_SAMPLE:g} bytes a sample in shards"
    )
    if records is None and config.training.steps is None:
        raise DataError(
            "neither shards nor a number of records is given, and the recipe counts its duration in epochs",
            "give --shards FOLDER, or --records N",
        )
    if records is not None and records < config.training.global_batch:
        raise DataError(
            f"--records {records} is less than training.global_batch {config.training.global_batch}",
            "give more records, or lower training.global_batch",
        )
    return Data(spec, records, per_record, f"{'given: ' if records else ''}{assumed}")


def world_sizes(config: RunConfig, most: int = 4096) -> tuple[int, list[int]]:
    """The most ranks that `plan_batches` lets a run have, and those of up to `most` that give all ranks equal rows."""
    from cardialign.pretrain.training.engine import plan_batches

    batch, legal = config.training.global_batch, []
    for world in (n for n in range(1, min(batch, most) + 1) if batch % n == 0):
        plan_batches(batch, world, config.training.micro_batch)  # the rule: it raises where a rank would get no row
        legal.append(world)
    return batch, legal


def legal_world(config: RunConfig, world: int) -> None:
    """Raises UsageError, with the numbers that are legal, where a run cannot have so many ranks."""
    from cardialign.pretrain.training.engine import plan_batches

    try:
        plan_batches(config.training.global_batch, world, config.training.micro_batch)
    except UserError as error:
        most, even = world_sizes(config)
        raise UsageError(
            f"{world} ranks: {error.problem}",
            f"{error.remedy}; legal are 1 to {most}, with equal rows for all: {listed(even)}",
        ) from None


def listed(numbers: Iterable[int], most: int = 24) -> str:
    """Numbers with commas; of many the first and the last."""
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= most else [*shown[: most - 1], "...", shown[-1]])
