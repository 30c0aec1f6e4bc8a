"""Gather against ring, measured over real processes.

Time and peak memory of one rank while all ranks compute the weighted loss together. One process per rank: gloo over
this machine's loopback on a CPU, one thread each, and NCCL with a GPU each on CUDA. Times are wall-clock of the slowest
rank, medians of interleaved repeats, since a rank that waits spends no CPU seconds.
The loopback is faster than a network: what the table shows is the price of the schemes in arithmetic, copies and
memory.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from cardialign.kernels.benchmarks.cases import Case, Rows, Work, compared
from cardialign.kernels.benchmarks.memory import peak_mib
from cardialign.kernels.benchmarks.timing import Timing
from cardialign.kernels.contrastive import Execution, NegativeWeights, Similarity, weighted_infonce
from cardialign.kernels.contrastive.exchange import Ring, choose_exchange

WORLD = 2
SCHEMES = ("gather", "ring")
WEIGHTS = NegativeWeights("ramp", low=0.3, high=0.8)
DEADLINE_S = 240.0


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Two global batches, each over two ranks."""
    cuda = device.type == "cuda"
    width, similarity_width, dtype = (512, 128, "bfloat16") if cuda else (256, 128, "float32")
    batches = (64,) if quick else (16384, 65536) if cuda else (2048, 8192)
    found = []
    for batch in batches:
        size = {"world": WORLD, "batch": batch, "width": width, "similarity_width": similarity_width, "dtype": dtype}
        pairs = batch * batch // WORLD
        once = 2.0 * pairs * (width + similarity_width)
        found.append(
            Case(
                op=f"weighted loss over {WORLD} ranks ({'NCCL' if cuda else 'gloo'}), wall-clock",
                shown=f"{batch // WORLD:,} x {batch:,} per rank d={width} d_s={similarity_width} {dtype}",
                implementations=SCHEMES,
                size=size,
                work=Work(once, 2 * once + 4.0 * pairs * width),
                rounds=1 if quick else 15 if cuda else 5,
                seconds=8.0,
                memory=not quick,
                measured_by=measure_over_ranks,
            )
        )
    return found


def measure_over_ranks(case: Case, device: torch.device) -> Rows:
    """The rows of both schemes.

    Says so where there are fewer GPUs than ranks; raises RuntimeError with a rank's last lines when one fails.
    """
    world = case.size["world"]
    if device.type == "cuda" and torch.cuda.device_count() < world:
        return compared(
            case,
            device,
            {},
            dict.fromkeys(case.implementations, f"{world} GPUs are needed, {torch.cuda.device_count()} here"),
        )
    request = {
        **case.size,
        "device": device.type,
        "rounds": case.rounds,
        "seconds": case.seconds,
        "memory": case.memory,
    }
    answer = run_processes(world, "cardialign.kernels.benchmarks.ranks", request, DEADLINE_S)
    chosen = answer.pop("auto")
    timings = {scheme: Timing(**figures) for scheme, figures in answer.items()}
    rows = compared(case, device, timings, {})
    for row in rows:
        row["auto"] = row["implementation"] == chosen
    return rows


def run_processes(world: int, module: str, request: dict[str, Any], deadline: float) -> Any:
    """`python -m module` once per rank, `request` as JSON on its standard input.

    Returns what rank 0 prints as its last line, read as JSON. RANK, WORLD_SIZE and RENDEZVOUS (a file) are in the
    environment. No process is left behind.
    Raises RuntimeError with the last lines of the rank that failed first, or when the ranks have not ended after
    `deadline` seconds.
    """
    root = str(Path(__file__).absolute().parents[3])
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(world),
            "RENDEZVOUS": f"{folder}/rendezvous",
        }
        started: list[subprocess.Popen[str]] = []
        logs: list[IO[str]] = []
        try:
            for rank in range(world):
                logs.append((Path(folder) / f"{rank}.log").open("w+"))
                process = subprocess.Popen(  # noqa: S603 - a benchmark of ours
                    [sys.executable, "-m", module],
                    stdin=subprocess.PIPE,
                    stdout=logs[-1],
                    stderr=subprocess.STDOUT,
                    text=True,
                    env={**environment, "RANK": str(rank)},
                )
                started.append(process)
                assert process.stdin is not None
                process.stdin.write(json.dumps(request))
                process.stdin.close()
            failed = _first_to_fail(started, time.monotonic() + deadline)
            if failed is not None:
                reason = "failed" if started[failed].poll() else f"was still running after {deadline:g} s"
                raise RuntimeError(f"rank {failed} of {world} {reason}:\n" + "\n".join(_lines(logs[failed])[-8:]))
            return json.loads(_lines(logs[0])[-1])
        finally:
            for process in started:
                process.kill()
                process.wait()
            for log in logs:
                log.close()


def _first_to_fail(processes: Sequence[subprocess.Popen[str]], end: float) -> int | None:
    """Wait until all have ended well (None), one has failed, or the time is up: that rank."""
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                return rank
        if None not in codes:
            return None
        if time.monotonic() > end:
            return codes.index(None)
        time.sleep(0.05)


def _lines(log: IO[str]) -> list[str]:
    log.seek(0)
    return log.read().splitlines()


def _rank_main() -> None:
    request = json.loads(sys.stdin.read())
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    cuda = request["device"] == "cuda"
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{os.environ['RENDEZVOUS']}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=DEADLINE_S),
    )
    try:
        answer = _rank_figures(request, rank, world, device)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        sys.stdout.write("\n" + json.dumps(answer) + "\n")


def _rank_figures(request: dict[str, Any], rank: int, world: int, device: torch.device) -> dict[str, Any]:
    """Timing of each scheme, the slowest rank's and the largest memory of any, and which of them "auto" takes."""
    local = request["batch"] // world
    operands = _operands(request, local, rank, device)
    small = _operands(request, 16, rank, device)
    peaks: dict[str, float | None] = {}
    for scheme in SCHEMES:
        _seconds(small, scheme, device)
        if request["memory"]:
            peaks[scheme] = peak_mib(device, lambda scheme=scheme: _seconds(operands, scheme, device))  # type: ignore[misc]
    samples: dict[str, list[list[tuple[float, float]]]] = {scheme: [] for scheme in SCHEMES}
    spent = 0.0
    for number in range(request["rounds"]):
        if number and spent * (number + 1) / number > request["seconds"]:
            break
        for scheme in SCHEMES:
            samples[scheme].append(_everyone(_seconds(operands, scheme, device), world))
            # Of the slowest rank, so all ranks stop after the same round.
            spent += max(sum(each) for each in samples[scheme][-1])
    ecg, text, similarity, _ = operands
    auto = choose_exchange(ecg, text, similarity, Execution(), {"loss": 0})
    answer: dict[str, Any] = {"auto": "ring" if isinstance(auto, Ring) else "gather"}
    for scheme in SCHEMES:
        figures = [
            [max(rank_times[part] for rank_times in round_) * 1e3 for part in (0, 1)] for round_ in samples[scheme]
        ]
        both = [max(sum(rank_times) for rank_times in round_) * 1e3 for round_ in samples[scheme]]
        held = [peak for peak in _everyone(peaks.get(scheme), world) if peak is not None]
        answer[scheme] = {
            "forward_ms": statistics.median(each[0] for each in figures),
            "backward_ms": statistics.median(each[1] for each in figures),
            "both_ms": statistics.median(both),
            "rounds": len(both),
            "peak_mib": max(held, default=None),
        }
    return answer


def _operands(request: dict[str, Any], rows: int, rank: int, device: torch.device) -> tuple[Any, Any, Similarity, Any]:
    generator = torch.Generator().manual_seed(rank)

    def unit(width: int) -> torch.Tensor:
        return F.normalize(torch.randn(rows, width, generator=generator), dim=1).to(
            device, getattr(torch, request["dtype"])
        )

    key = torch.arange(rank * rows, (rank + 1) * rows, device=device)
    similarity = Similarity("cosine", unit(request["similarity_width"]), key)
    scale = torch.tensor([math.log(1 / 0.07)], device=device, requires_grad=True)
    return unit(request["width"]).requires_grad_(), unit(request["width"]).requires_grad_(), similarity, scale


def _seconds(operands: tuple[Any, Any, Similarity, Any], scheme: Any, device: torch.device) -> tuple[float, float]:
    """(forward, backward) of this rank; all begin together."""
    ecg, text, similarity, scale = operands
    dist.barrier()
    marks = [_now(device)]
    loss = weighted_infonce(ecg, text, scale, similarity, WEIGHTS, Execution(scheme=scheme)).loss
    marks.append(_now(device))
    torch.autograd.grad(loss, [ecg, text, scale])
    marks.append(_now(device))
    return marks[1] - marks[0], marks[2] - marks[1]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _everyone(mine: Any, world: int) -> list[Any]:
    found: list[Any] = [None] * world
    dist.all_gather_object(found, mine)
    return found


if __name__ == "__main__":
    _rank_main()
