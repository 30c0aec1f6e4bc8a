"""A checkpoint that is written behind the steps is the one that the step would have written, or it is not there."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import RunConfig, TrainingConfig
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.training import engine as engines
from cardialign.pretrain.training.checkpoints import background, files
from cardialign.pretrain.training.checkpoints.background import Checkpoints, Writing
from cardialign.pretrain.training.checkpoints.condition import newest_sound
from cardialign.pretrain.training.checkpoints.files import MANIFEST, CheckpointError
from cardialign.pretrain.training.checkpoints.save import save_checkpoint
from cardialign.pretrain.training.checkpoints.snapshot import HostBuffers, Share, records_of, write_archive
from cardialign.pretrain.training.loop import train
from tests.support import two_towers
from tests.support.checkpoints import content, state_of, write_checkpoint
from tests.support.processes import run_ranks
from tests.support.tiny_shards import config_for, make_shards

STAGES = (0, 1, 2, 3)


def both_ways(rank: int, world: int, root: Path, wanted: list[tuple[int, str]]) -> dict[str, tuple[bool, int, int]]:
    """Per engine: whether both ways gave the same bytes, how many files, and the host memory by that of the files."""
    workers, found = engines.start_workers(), {}
    for stage, precision in wanted:
        torch.manual_seed(0)
        config = two_towers.settings(stage, None, precision=precision)
        plan = engines.plan_batches(two_towers.GLOBAL_BATCH, world, None)
        engine = engines.make_engine(config, two_towers.TwoTowers(), plan, workers.device)
        xs, ys = two_towers.data()
        rows = {"x": xs[0][rank::world], "y": ys[0][rank::world]}

        def step(engine: Any = engine, rows: Any = rows, plan: Any = plan) -> None:
            two_towers.accumulate_gradients(engine, rows, two_towers.gathered_infonce, plan)
            engines.optimizer_step(engine)

        name = f"{stage}-{precision}"
        behind = Checkpoints(engine, root / name / "behind", workers, TrainingConfig(steps=9))
        equal = []
        for at in (1, 2):  # the second fills the memory of the first again
            step()
            here = save_checkpoint(engine, root / name / "step", state_of(at, config, world), workers, keep=9)
            behind.save(state_of(at, config, world))
            step()  # the weights move on while the files are written
            behind.finish()
            equal.append(content(files.committed_path(root / name / "behind", at)) == content(here))
        held = behind.host_bytes
        own = [f for f in files.files_below(here) if f.endswith(f"rank_{rank}_mp_rank_00_optim_states.pt") or rank == 0]
        found[name] = (all(equal), len(files.files_below(here)), held - sum((here / f).stat().st_size for f in own))
    return found


@pytest.mark.processes
@pytest.mark.parametrize(
    ("world", "wanted"),
    [
        (1, {(1, "fp32"): 5}),
        pytest.param(2, {(2, "bf16"): 7, **dict(zip(STAGES, (5, 7, 7, 8), strict=True))}, marks=pytest.mark.slow),
    ],
)
def test_what_is_written_behind_the_steps_is_byte_for_byte_what_the_step_writes(
    world: int, wanted: dict[Any, int], tmp_path: Path
) -> None:
    counts = {key if isinstance(key, tuple) else (key, "fp32"): count for key, count in wanted.items()}
    for found in run_ranks(world, both_ways, tmp_path, list(counts), init=False, deadline=120):
        assert {name: equal for name, (equal, _, _) in found.items()} == dict.fromkeys(found, True)
        assert {name: count for name, (_, count, _) in found.items()} == {f"{s}-{p}": n for (s, p), n in counts.items()}
        assert all(more < 20_000 for _, _, more in found.values()), "one copy of what this rank writes, not two"


def test_an_archive_is_that_of_torch_save_and_keeps_nothing_of_what_it_was_made_from(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    values = {"whole": whole, "view": whole[3:7], "step": torch.tensor(4), "name": "a", "none": torch.empty(0)}
    torch.save(values, tmp_path / "model.pt")
    expected = (tmp_path / "model.pt").read_bytes()
    records = records_of(values, HostBuffers())
    whole.zero_()
    values["name"] = "b"
    write_archive(records, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == expected


def shares(world: int) -> list[Share]:
    """What `world` ranks of a small model write."""
    buffers = HostBuffers()
    found = []
    for rank in range(world):
        archives = {f"engine/rank_{rank}.pt": records_of({"x": torch.full((50,), float(rank))}, buffers)}
        found.append(Share(archives | {f"rng/rank-{rank:05d}.pt": records_of({"cpu": torch.ones(3)}, buffers)}))
    found[0].weights = {"x": torch.ones(20)}
    found[0].state = state_of(6, RunConfig(), world)
    return found


def begun(run_dir: Path, world: int = 2) -> list[Writing]:
    background.open_behind(run_dir, files.temporary_path(run_dir, 6))
    state = state_of(6, RunConfig(), world)
    workers = [engines.Workers(rank, world, torch.device("cpu")) for rank in range(world)]
    return [Writing(run_dir, state, share, each, 2) for share, each in zip(shares(world), workers, strict=True)]


def run_all(writings: list[Writing]) -> None:
    for writing in reversed(writings):  # rank 0 waits for all others
        writing.start()
    for writing in writings:
        writing.join(60)
        assert not writing.is_alive()


CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.link", "os.truncate")


def dies_at(point: int, run_dir: Path) -> bool:
    """Write a checkpoint in a process that ends at its `point`-th touch of a file; False when there are fewer."""
    child = os.fork()
    if child == 0:
        seen = [0]

        def hook(event: str, words: tuple[Any, ...]) -> None:
            if event in CHANGES and words and str(words[0]).startswith(str(run_dir)):
                seen[0] += 1
                if seen[0] > point:
                    os._exit(9)

        try:
            writings = begun(run_dir)
            sys.addaudithook(hook)
            run_all(writings)
            os._exit(0 if all(each.error is None for each in writings) else 3)
        finally:
            os._exit(4)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_dies_at_any_point_of_it_leaves_the_checkpoint_committed_or_absent(
    every: int, tmp_path: Path
) -> None:
    steps = []
    for point in range(0, 400, every):
        run_dir = tmp_path / str(point)
        write_checkpoint(run_dir, 3)
        died = dies_at(point, run_dir)
        files.sweep(run_dir)
        found, passed = newest_sound(run_dir)
        assert found is not None and not passed
        assert sorted(os.listdir(run_dir / "checkpoints")) == [f"step-{s:08d}" for s in range(3, found.step + 1, 3)]
        steps.append(found.step)
        if not died:
            break
    assert not died and steps == sorted(steps) and steps.count(3) > 25 // every and steps[-1] == 6


def test_who_is_given_up_for_another_start_commits_nothing_and_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    first = fence.take_start(tmp_path)
    write_checkpoint(tmp_path, 3)
    writings = begun(tmp_path)
    write = writings[1].share.writers()
    fence.take_start(tmp_path)  # another process: this one holds what it held
    fence._held[fence._key(tmp_path)] = first
    try:
        run_all(writings)
    finally:
        del fence._held[fence._key(tmp_path)]
    assert write and {type(each.error) for each in writings} == {fence.FencedOutError}
    assert [one.step for one in files.list_checkpoints(tmp_path)] == [3]


def test_the_rank_that_could_not_write_is_named_on_rank_zero_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writings = begun(tmp_path)
    seal = files.seal

    def refuse(folder: Path, names: list[str]) -> Any:
        if names == ["engine/rank_1.pt"]:
            raise OSError(28, "No space left on device")
        return seal(folder, names)

    monkeypatch.setattr(files, "seal", refuse)
    run_all(writings)
    for each in writings:
        assert isinstance(each.error, CheckpointError)
        assert "rank 1: [Errno 28] No space left on device" in each.error.problem and "bytes free" in each.error.problem
        assert "free space" in each.error.remedy
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_rank_that_never_comes_is_given_up_after_the_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "PATIENCE_SECONDS", 0.2)
    writing = begun(tmp_path)[0]
    run_all([writing])
    assert isinstance(writing.error, CheckpointError) and "rank 1: nothing was written for" in writing.error.problem
    assert list((tmp_path / "checkpoints").iterdir()) == []


class Listener(NullObserver):
    """What is told of checkpoints, and whether each was whole by then."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def checkpoint(self, step: int, path: Path) -> None:
        assert (path / MANIFEST).is_file()
        self.told.append(step)


@contextmanager
def slow_disk(seconds: float) -> Iterator[None]:
    sync = files.sync

    def slowly(path: Path) -> None:
        time.sleep(seconds)
        sync(path)

    files.sync = slowly
    try:
        yield
    finally:
        files.sync = sync


def ends(work: Callable[[], object]) -> str:
    try:
        work()
    except (UserError, ZeroDivisionError) as error:
        return str(error)
    return "no error"


def in_the_loop(rank: int, world: int, shards: Path, root: Path) -> dict[str, Any]:
    config, found, lines = config_for(shards, zero_stage=2), {}, []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("cardialign")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    listener, most = Listener(), []

    def look(step: int) -> None:
        most.append(len(list((root / "slow" / "checkpoints").glob(".tmp-*"))))

    often = config.model_copy(update={"training": config.training.model_copy(update={"checkpoint_every": 1})})
    with slow_disk(0.05):
        train(often, root / "slow", listener, on_step=look)
    found["told"], found["most"], found["waited"] = listener.told, max(most), sum("wait-for" in each for each in lines)

    def fail(step: int) -> None:
        if step == 4:
            raise ZeroDivisionError("the loop fails")

    with slow_disk(0.1):
        found["failed"] = ends(lambda: train(config, root / "failed", NullObserver(), on_step=fail))
    found["kept"] = [one.step for one in files.list_checkpoints(root / "failed")]

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: int) -> None:
        if step == 5 and rank == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))

    try:
        found["full"] = ends(lambda: train(config, root / "full", NullObserver(), on_step=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if rank == 0:  # which clears up; the rank that failed does not wait for that
        found["left"] = sorted(os.listdir(root / "full" / "checkpoints"))
    return found


def test_a_folder_that_is_renamed_under_a_look_is_none_and_no_error(tmp_path: Path) -> None:
    """Rank 0 commits while the others, whose run has failed, look whether it still writes."""
    (tmp_path / "receipts").mkdir()
    (tmp_path / "model").write_bytes(b"12345")
    assert list(files.sizes_below(tmp_path).values()) == [5]
    assert files.sizes_below(tmp_path / "committed meanwhile") == {}


@pytest.mark.processes
@pytest.mark.slow
def test_in_the_loop_none_overlaps_a_failure_waits_for_the_commit_and_a_full_disk_is_said_on_all_ranks(
    tmp_path: Path,
) -> None:
    shards = make_shards(tmp_path / "shards")
    results = run_ranks(2, in_the_loop, shards, tmp_path, init=False, deadline=150)
    for found in results:
        assert found["told"] == [1, 2, 3, 4, 5, 6] and found["most"] == 1 and found["waited"] > 0
        assert "the loop fails" in found["failed"] and found["kept"] == [3]
        assert "rank 1: " in found["full"] and "bytes free" in found["full"] and "run again" in found["full"]
    assert results[0]["left"] == ["step-00000003"]
