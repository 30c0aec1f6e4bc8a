"""`cardialign plan`: what a recipe comes to on machines that nobody has paid for yet. Predictions, each with its
assumption; nothing is trained and no GPU is needed."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import add_folds, add_split, place

if TYPE_CHECKING:
    from cardialign.cluster.planning.question import Data, Problems, Question
    from cardialign.pretrain.config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", help="name of a shipped recipe or a YAML file (with --against: default the run's own)"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--shards", type=place, help="shard set that would be read; its records are counted")
    data.add_argument("--records", metavar="N", help="so many records instead, of --seconds at --sampling-rate")
    data.add_argument("--sampling-rate", metavar="HZ", help="of --records (default 500)")
    data.add_argument("--seconds", metavar="S", help="of --records (default 10)")
    add_folds(data, "of --shards (YAML: data.folds)")
    add_split(data, "of --shards (YAML: data.split)")
    data.add_argument(
        "--data-rate", metavar="N|FILE",
        help="records/s that one rank reads, or the file of `bench data --json`, which knows them per core",
    )  # fmt: skip
    machines = parser.add_argument_group("machines")
    machines.add_argument("--nodes", metavar="N", help="default 1")
    machines.add_argument("--gpus-per-node", metavar="N", help="devices of each; with --kind CPU its ranks (default 1)")
    machines.add_argument(
        "--kind",
        metavar="KIND",
        help="H100, H200, A100, L40S or CPU (one core of it), or a YAML file of a machine of yours",
    )
    machines.add_argument("--mfu", metavar="SHARE", help="share of the peak that is reached (default 0.05, CPU 0.25)")
    machines.add_argument("--price", metavar="AMOUNT", help="of one device for one hour")
    machines.add_argument("--currency", default="", metavar="WORD", help="of --price, a word that is printed")
    parser.add_argument("--against", type=place, metavar="RUN", help="predicted beside what this finished run measured")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="any dotted key, repeatable"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    with _without_collecting():
        return _planned(args)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Look for no garbage: what is imported and counted here lives to the end, and looking through it again and again,
    also once more when the process ends, takes a third of the whole time."""
    collects = gc.isenabled()
    gc.disable()
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _planned(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.planning.forecast import make_plan
    from cardialign.cluster.planning.question import Problems

    problems = Problems()
    finished = _finished(args, problems)
    question = _asked(args, finished, problems)
    problems.settle()
    assert question is not None
    plan = make_plan(question)
    if finished is not None:
        from cardialign.cluster.planning.against import beside

        plan |= {
            "against": str(args.against),
            "measured_as": finished["memory_meaning"],
            "beside": beside(plan, finished),
        }
    return plan


def summary(result: dict[str, Any]) -> list[str]:
    from cardialign.cluster.planning.report import lines

    return lines(result)


def _finished(args: argparse.Namespace, problems: Problems) -> dict[str, Any] | None:
    if args.against is None:
        return None
    from cardialign.cluster.planning.against import finished_run

    found: dict[str, Any] | None = problems.of(lambda: finished_run(args.against))
    return found


def _asked(args: argparse.Namespace, finished: dict[str, Any] | None, problems: Problems) -> Question | None:
    """The question; None where something of it is wrong, which stands in `problems` then."""
    from cardialign.cluster.planning.question import Question, data_rate_of, legal_world

    nodes, devices = (
        problems.number(option, text, 1, whole=True)
        for option, text in (
            ("--nodes", args.nodes or "1"),
            ("--gpus-per-node", args.gpus_per_node or _ranks(finished)),
        )
    )
    price = problems.number("--price", args.price, 0)
    if args.currency and args.price is None:
        problems.add("--currency would say nothing: no --price is given", "give --price AMOUNT, or leave it out")
    mfu = problems.number("--mfu", args.mfu, 0.001, 1)
    config = _config(args, finished, problems)
    machine, more = _machine(args, finished, problems)
    data = _data(args, config, problems)
    threads = 1 if config is None else config.data.threads
    data_rate, data_said = problems.of(lambda: data_rate_of(args.data_rate, threads)) or (None, "")
    if config is not None and nodes and devices:
        problems.of(lambda: legal_world(config, nodes * devices))
        if finished is not None and nodes * devices != finished["world_size"]:
            problems.add(
                f"{nodes * devices} ranks are planned, the run of --against had {finished['world_size']}",
                "leave --nodes and --gpus-per-node out: those of the run are taken then",
            )
    if problems.found or config is None or machine is None or data is None:
        return None
    share, said = _mfu(machine.cuda, mfu, more.get("mfu"))
    return Question(
        config, data, machine, nodes, devices, share, said, more.get("records_per_second"), data_rate, data_said, price,
        args.currency, _bf16_kernels(finished),
    )  # fmt: skip


def _bf16_kernels(finished: dict[str, Any] | None) -> bool:
    from cardialign.pretrain.training.peak_memory import has_bf16_kernels

    told = None if finished is None else finished["bf16_kernels"]
    return told if isinstance(told, bool) else has_bf16_kernels()


def _ranks(finished: dict[str, Any] | None) -> str:
    return "1" if finished is None else str(finished["world_size"])


def _config(args: argparse.Namespace, finished: dict[str, Any] | None, problems: Problems) -> RunConfig | None:
    from cardialign.pretrain.config import load_config

    narrowed = args.overrides or args.shards is not None or args.folds is not None or args.split is not None
    if args.recipe is None and finished is not None and not narrowed:
        config: RunConfig = finished["config"]
        return config
    if args.recipe is None:
        if args.against is None or narrowed:
            problems.add("no recipe is named", "give --recipe NAME, or --against RUN without --shards and --set")
        return None
    lines = [] if args.shards is None else [f"data.shards={json.dumps(str(args.shards))}", "data.mixture=[]"]
    lines += [] if args.folds is None else [f"data.folds={list(args.folds)}"]
    lines += [] if args.split is None else [f"data.split={args.split}"]
    found: RunConfig | None = problems.of(lambda: load_config(args.recipe, [*lines, *args.overrides]))
    if found is not None and finished is not None:
        from cardialign.cluster.planning.against import check_same_recipe

        problems.of(lambda: check_same_recipe(found, finished, args.against))
    return found


def _machine(
    args: argparse.Namespace, finished: dict[str, Any] | None, problems: Problems
) -> tuple[Any, dict[str, Any]]:
    from cardialign.cluster.planning.question import machine_of
    from cardialign.pretrain.benchmarks.machines import MACHINES

    kind = args.kind
    if kind is None and finished is not None:
        name = str(finished["name"] or "").upper()
        kind = next((known for known in MACHINES if known in name), None)
    if kind is None and args.against is not None and finished is None:
        return None, {}  # that run would have said it, and what is wrong with it is told
    if kind is None:
        problems.add("no kind of machine is named", f"give --kind, one of {', '.join(MACHINES)}, or a YAML file")
        return None, {}
    found: tuple[Any, dict[str, Any]] = problems.of(lambda: machine_of(kind)) or (None, {})
    return found


def _data(args: argparse.Namespace, config: RunConfig | None, problems: Problems) -> Data | None:
    from cardialign.cluster.planning.question import data_of
    from cardialign.data_shards.record import SignalSpec

    records = problems.number("--records", args.records, 1, whole=True)
    rate = problems.number("--sampling-rate", args.sampling_rate or "500", 1, 1e6)
    seconds = problems.number("--seconds", args.seconds or "10", 0.1, 1e6)
    if args.records is not None and args.shards is not None:
        problems.add("--shards and --records are both given", "give one of them")
        return None
    if _of_the_other(args, config, problems):
        return None
    if config is None or rate is None or seconds is None or (args.records is not None and records is None):
        return None
    found: Data | None = problems.of(lambda: data_of(config, records, SignalSpec(rate, seconds)))
    return found


def _of_the_other(args: argparse.Namespace, config: RunConfig | None, problems: Problems) -> bool:
    """Whether options are given that the way in which the data is named would pass over; each becomes a problem."""
    by_shards = args.records is None and (args.shards is not None or (config is not None and bool(config.data.parts)))
    passed_over = (
        {"--sampling-rate": args.sampling_rate, "--seconds": args.seconds}
        if by_shards
        else {"--folds": args.folds, "--split": args.split}
        if args.records is not None
        else {}
    )
    given = [option for option, value in passed_over.items() if value is not None]
    if given:
        why, do = (
            ("would say nothing: the shards say how their records are", "leave it out, or give --records N")
            if by_shards
            else ("would choose nothing: --records is the number that is trained on", "leave it out, or give --shards")
        )
        problems.add(f"{' and '.join(given)} {why}", do)
    return bool(given)


def _mfu(cuda: bool, asked: float | None, of_file: float | None) -> tuple[float, str]:
    """The share of the peak, and where it comes from."""
    from cardialign.cluster.planning.duration import MFU

    if asked is not None:
        return asked, f"MFU {asked:g}: given (--mfu)"
    if of_file is not None:
        return float(of_file), f"MFU {of_file:g}: given in the machine's file"
    share = MFU["cuda" if cuda else "cpu"]
    why = (
        "one H100 did 0.081 of cardialign-base, 0.047 of cardialign-small"
        if cuda
        else "a core seldom fills its vector units"
    )
    return share, f"MFU {share:g}: assumed, on the careful side ({why}); measure yours: `bench kernels --step RECIPE`"
