"""When a rank is gone, those that are left commit the newest step of which every rank's part is there, or nothing."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cardialign.pretrain.config import RunConfig, TrainingConfig
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import METRICS, SURVIVORS
from cardialign.pretrain.training import engine as engines
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.background import open_behind
from cardialign.pretrain.training.checkpoints.condition import newest_sound
from cardialign.pretrain.training.checkpoints.save import save_checkpoint
from cardialign.pretrain.training.checkpoints.snapshot import HostBuffers, Share, records_of
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.checkpoints.survivors import word
from cardialign.pretrain.training.checkpoints.survivors.copies import Held, NeighbourCopies
from cardialign.pretrain.training.checkpoints.survivors.listening import LastWriting, Survivor
from cardialign.pretrain.training.checkpoints.survivors.neighbours import Neighbours
from cardialign.pretrain.training.checkpoints.survivors.word import Word, ask_survivors, choose
from cardialign.pretrain.training.engine import Workers
from tests.support import two_towers
from tests.support.checkpoints import content, state_of, write_checkpoint
from tests.support.processes import run_ranks

START = "a" * 32
MARK = fence.Mark(START, 1)
NEWEST = 3
"""The step of the last copies that all ranks hold, in the tests with processes."""


def write_trace(run_dir: Path, steps: int) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / METRICS).write_text("".join(json.dumps({"step": 1 + at}) + "\n" for at in range(steps)))


def after_deaths(rank: int, world: int, root: Path, stage: int, dead: list[int]) -> str | None:
    """Train, copy after every step, then the `dead` end without a word and the others begin one copy more.

    The lowest rank that is left is the controller as well; it returns what came of it.
    """
    workers, run_dir = engines.start_workers(), root / "run"
    if rank == 0:
        write_trace(run_dir, NEWEST)
        fence.take_start(run_dir, fence.Mark(START))
        fence.take_group(run_dir, MARK)
    torch.distributed.barrier()
    fence.hold(run_dir, MARK)
    torch.manual_seed(0)
    config = two_towers.settings(stage, None)
    plan = engines.plan_batches(two_towers.GLOBAL_BATCH, world, None)
    engine = engines.make_engine(config, two_towers.TwoTowers(), plan, workers.device)
    xs, ys = two_towers.data()
    rows = {"x": xs[0][rank::world], "y": ys[0][rank::world]}
    copies = NeighbourCopies(engine, run_dir, workers)
    survivor = Survivor(copies, run_dir, workers, keep=9)
    survivor.__enter__()
    for step in range(1, NEWEST + 1):
        two_towers.accumulate_gradients(engine, rows, two_towers.gathered_infonce, plan)
        engines.optimizer_step(engine)
        assert copies.take(state_of(step, config, world))
    save_checkpoint(engine, root / "expected", state_of(NEWEST, config, world), workers, keep=9)
    two_towers.accumulate_gradients(engine, rows, two_towers.gathered_infonce, plan)
    engines.optimizer_step(engine)
    for step in (NEWEST + 1, NEWEST + 2):  # copies that one rank cannot make: nobody has them, and the newest stay
        assert not copies.take(state_of(step, config, world), "the disk is full" if rank == 1 else None)
    if rank in dead:
        survivor.ended.set()
        return None
    one_more = threading.Thread(target=fails, args=(copies, state_of(NEWEST + 3, config, world)), daemon=True)
    one_more.start()
    one_more.join(1.0)  # by now the dead are gone, and it has failed or waits for them
    told = ask_survivors(run_dir, START) if rank == min(set(range(world)) - set(dead)) else None
    survivor.join(30)
    assert not survivor.is_alive() or (told or "").startswith("survivors committed nothing")
    return told


def fails(copies: NeighbourCopies, state: TrainerState) -> None:
    try:
        copies.take(state)
    except RuntimeError:
        return


@pytest.mark.processes
@pytest.mark.parametrize(
    ("stage", "dead", "parts"),
    [
        (1, [0], "rank 0's part from rank 1"),
        pytest.param(0, [1], "rank 1's part from rank 2", marks=pytest.mark.slow),
        pytest.param(2, [2], "rank 2's part from rank 0", marks=pytest.mark.slow),
        pytest.param(3, [1], "rank 1's part from rank 2", marks=pytest.mark.slow),
    ],
)
def test_what_survivors_commit_is_byte_for_byte_the_checkpoint_of_the_step_they_hold(
    stage: int, dead: list[int], parts: str, tmp_path: Path
) -> None:
    found = run_ranks(3, after_deaths, tmp_path, stage, dead, init=False, deadline=120)
    assert [each for each in found if each] == [f"survivors committed step {NEWEST} ({parts})"]
    committed = files.committed_path(tmp_path / "run", NEWEST)
    assert content(committed) == content(files.committed_path(tmp_path / "expected", NEWEST))
    sound, passed = newest_sound(tmp_path / "run")
    assert sound is not None and sound.path == committed and not passed
    assert not (tmp_path / "run" / SURVIVORS).exists()
    assert [path.name for path in committed.parent.iterdir()] == [committed.name]


@pytest.mark.processes
@pytest.mark.slow  # what is said and chosen then stands below
def test_two_neighbours_that_are_gone_take_a_part_with_them_and_nothing_is_written(tmp_path: Path) -> None:
    found = run_ranks(3, after_deaths, tmp_path, 1, [0, 1], init=False, deadline=120)
    (told,) = [each for each in found if each]
    assert told.startswith("survivors committed nothing: nobody holds the part of rank 0; no answer of rank 0, 1")
    assert not files.checkpoints_folder(tmp_path / "run").exists()
    assert not (tmp_path / "run" / SURVIVORS).exists()


BOTH = {0: [0, 2], 1: [0, 1], 2: [1, 2]}
"""Rank -> the parts that it holds, of three."""


def offered(steps: dict[int, list[int]]) -> word.Offers:
    """rank -> steps of which it has both copies."""
    return {rank: dict.fromkeys(held, BOTH[rank]) for rank, held in steps.items()}


@pytest.mark.parametrize(
    ("steps", "than", "step", "parts"),
    [
        ({0: [4, 5], 1: [4, 5], 2: [4, 5]}, -1, 5, [0, 1, 2]),
        ({0: [4, 5], 1: [4, 5], 2: [4]}, -1, 5, [0, 1, 0]),
        ({0: [4, 5], 1: [4], 2: [4]}, -1, 4, [0, 1, 2]),
        ({0: [5], 2: [5]}, -1, 5, [0, 2, 2]),
        ({0: [4], 2: [4, 5]}, -1, 4, [0, 2, 2]),
        ({0: [4, 5], 2: [4, 5]}, 4, 5, [0, 2, 2]),
        ({0: [5], 2: [5]}, 5, None, []),
        ({0: [5]}, -1, None, []),
        ({0: [4], 2: [5]}, -1, None, []),
        ({0: [], 2: []}, -1, None, []),
    ],
)
def test_the_newest_step_of_which_all_parts_are_there_is_written_each_by_its_own_rank_where_that_lives(
    steps: dict[int, list[int]], than: int, step: int | None, parts: list[int]
) -> None:
    said = choose("group", offered(steps), 3, than)
    assert (None if said is None else said.step) == step
    if said is not None:
        assert said.parts == tuple(enumerate(parts)) and said.commits == min(parts)


def both_parts(step: int) -> Held:
    """What a survivor of a group of two holds."""
    buffers = HostBuffers()
    shares = {}
    for rank in (0, 1):
        archives = {f"rng/rank-{rank:05d}.pt": records_of({"cpu": torch.ones(3)}, buffers)}
        shares[rank] = Share(archives | {f"engine/rank_{rank}.pt": records_of({"x": torch.ones(9)}, buffers)})
    shares[0].weights, shares[0].state = {"x": torch.ones(20)}, state_of(step, RunConfig(), 2)
    return Held(state_of(step, RunConfig(), 2), shares, None)  # type: ignore[arg-type] # of memory nobody asks


def alone(run_dir: Path, step: int) -> tuple[LastWriting, Word]:
    """The writing of a survivor that holds both parts of a group of two."""
    fence.take_start(run_dir, fence.Mark(START))
    fence.take_group(run_dir, MARK)
    said = Word(MARK.label, "write", step, ((0, 1), (1, 1)), 1)
    word.folder_of(run_dir).mkdir(exist_ok=True)
    word._say(run_dir, said)
    return LastWriting(run_dir, said, both_parts(step), Workers(1, 2, torch.device("cpu")), keep=2), said


def test_one_that_is_left_of_two_writes_both_parts(tmp_path: Path) -> None:
    write_trace(tmp_path, 6)
    writing, said = alone(tmp_path, 6)
    writing.run()
    assert writing.error is None and said.told() == "survivors committed step 6 (rank 0's part from rank 1)"
    sound, _ = newest_sound(tmp_path)
    assert sound is not None and TrainerState.read(sound.path).step == 6
    assert {"rng/rank-00000.pt", "rng/rank-00001.pt", "engine/rank_0.pt", "engine/rank_1.pt"} <= set(sound.names)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("short trace", "the loss trace ends at step 5, the copies are of step 6"),
        ("newer", "the checkpoint of step 7 has been committed meanwhile"),
        ("same", "the checkpoint of step 6 has been committed meanwhile"),
        ("given up", "waits for it no longer"),
        ("fenced out", "another start of this run has taken over"),
    ],
)
def test_what_must_not_be_committed_is_not_and_what_is_there_stays_as_it_is(
    spoil: str, why: str, tmp_path: Path
) -> None:
    write_trace(tmp_path, 5 if spoil == "short trace" else 6)
    writing, _ = alone(tmp_path, 6)
    before: dict[str, Any] = {}
    if spoil in ("newer", "same"):
        path = write_checkpoint(tmp_path, 7 if spoil == "newer" else 6)
        before = {path.name: content(path)}
    if spoil == "given up":
        word._say(tmp_path, Word(MARK.label, "give-up"))
    if spoil == "fenced out":
        values = json.loads((tmp_path / "attempt.json").read_text())
        (tmp_path / "attempt.json").write_text(json.dumps({**values, "group": 2}))
    writing.run()
    assert writing.error is not None and why in writing.error.problem
    assert {path.name: content(path) for _, path in files.committed(tmp_path)} == before


@pytest.mark.parametrize(("step", "parts"), [(7, ((0, 1), (1, 1))), (6, ((0, 1), (1, 1), (2, 1)))])
def test_a_survivor_that_is_asked_for_what_it_does_not_hold_says_so_and_writes_nothing(
    step: int, parts: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    write_trace(tmp_path, 7)
    _, said = alone(tmp_path, 6)
    copies: Any = None  # they are handed over
    survivor = Survivor(copies, tmp_path, Workers(1, 2, torch.device("cpu")), keep=9)
    survivor._commit(Word(said.group, "write", step, parts, 1), {6: both_parts(6)})
    outcome = json.loads((tmp_path / SURVIVORS / "outcome.json").read_text())
    assert outcome["problem"] == f"rank 1 is asked for parts of step {step} that it does not hold"
    assert files.committed(tmp_path) == []


def test_a_survivor_that_falls_silent_while_it_writes_keeps_the_others_from_committing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cardialign.pretrain.training.checkpoints.survivors.listening.HURRY_SECONDS", 0.3)
    write_trace(tmp_path, 6)
    writing, _ = alone(tmp_path, 6)
    writing.patience, writing.writers = 0.3, {0, 1}
    writing.run()
    assert writing.error is not None and "rank 0: nothing was written" in writing.error.problem
    assert files.committed(tmp_path) == [] and list(files.checkpoints_folder(tmp_path).iterdir()) == []


def test_a_controller_asks_nobody_where_no_rank_listens_or_another_start_holds_the_run(tmp_path: Path) -> None:
    assert ask_survivors(tmp_path, START) == ""
    fence.take_start(tmp_path, fence.Mark(START))
    fence.take_group(tmp_path, MARK)
    assert ask_survivors(tmp_path, START) == ""
    word.enlist(tmp_path, MARK.label, 0, 2, None)
    assert ask_survivors(tmp_path, "b" * 32) == "" and (tmp_path / SURVIVORS).exists()


@pytest.mark.parametrize(
    ("offers", "committed", "told"),
    [
        ({2: {5: [1, 2]}}, None, "nobody holds the part of rank 0; no answer of rank 0, 1 within 0 s"),
        ({0: {}, 2: {}}, None, "there were no copies so far"),
        ({0: {}, 1: {}, 2: {}}, None, "there were no copies so far"),
        ({0: {4: [0, 2]}, 2: {5: [1, 2]}}, None, "no step is whole; no answer of rank 1 within 0 s"),
        ({0: {5: [0, 2]}, 2: {5: [1, 2]}}, 5, "the checkpoint of step 5 is as new as their copies"),
    ],
)
def test_why_nothing_is_written_is_told(
    offers: word.Offers, committed: int | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word, "OFFER_SECONDS", 0.3)
    fence.take_start(tmp_path, fence.Mark(START))
    fence.take_group(tmp_path, MARK)
    for rank in range(3):
        word.enlist(tmp_path, MARK.label, rank, 3, offers.get(rank))
    if committed is not None:
        write_checkpoint(tmp_path, committed)
    assert ask_survivors(tmp_path, START) == f"survivors committed nothing: {told}"
    assert [step for step, _ in files.committed(tmp_path)] == ([] if committed is None else [committed])


def test_survivors_that_do_not_get_on_are_told_to_give_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word, "STILL_SECONDS", 0.3)
    fence.take_start(tmp_path, fence.Mark(START))
    fence.take_group(tmp_path, MARK)
    word.enlist(tmp_path, MARK.label, 1, 2, {5: [0, 1]})
    said: list[Word] = []
    say = word._say
    monkeypatch.setattr(word, "_say", lambda run_dir, each: (said.append(each), say(run_dir, each)))
    assert ask_survivors(tmp_path, START).startswith("survivors committed nothing: nothing was written for")
    assert [each.says for each in said] == ["offer", "write", "give-up"]


def test_what_survivors_left_half_done_is_swept_away_by_the_next_start(tmp_path: Path) -> None:
    writing, _ = alone(tmp_path, 6)
    open_behind(tmp_path, writing.folder)
    assert writing.folder.is_dir()
    files.sweep(tmp_path)
    assert list(files.checkpoints_folder(tmp_path).iterdir()) == []


@pytest.mark.parametrize(("every", "world", "group"), [(0, 2, 1), (5, 1, 1), (5, 2, 0)])
def test_no_copies_are_kept_that_nobody_asked_for_or_could_ask_for(
    every: int, world: int, group: int, tmp_path: Path
) -> None:
    fence.take_start(tmp_path, fence.Mark(START, group))
    training = TrainingConfig(steps=9, neighbour_copy_every=every)
    neighbours = Neighbours(None, tmp_path, Workers(0, world, torch.device("cpu")), training)
    with neighbours:
        assert not neighbours.due(5) and neighbours.host_bytes == 0
        assert not (tmp_path / SURVIVORS).exists()


def test_ranks_that_give_no_answer_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word, "OFFER_SECONDS", 0.3)
    fence.take_start(tmp_path, fence.Mark(START))
    fence.take_group(tmp_path, MARK)
    for rank in (0, 1):
        word.enlist(tmp_path, MARK.label, rank, 2, None)
    assert ask_survivors(tmp_path, START) == "survivors committed nothing: no answer of rank 0, 1 within 0 s"
    assert not (tmp_path / SURVIVORS).exists()
