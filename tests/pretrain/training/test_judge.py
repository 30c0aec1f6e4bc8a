"""A start is judged before anything is changed: "none that serves" is not "none", and a refusal changes nothing."""

import errno
import grp
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import CONFIG, EARLIER, METRICS, RESULT, START, STARTED_OVER
from cardialign.pretrain.run.layout import RunDirectoryError, writing
from cardialign.pretrain.run.restart import move_aside
from cardialign.pretrain.run.trace import TraceWriter
from cardialign.pretrain.training.checkpoints import condition, files, load
from cardialign.pretrain.training.checkpoints.condition import Finding, examine, newest_sound
from cardialign.pretrain.training.checkpoints.files import CheckpointError
from cardialign.pretrain.training.checkpoints.judge import Facts, Resume, Verdict, judge
from cardialign.pretrain.training.checkpoints.load import take_over
from cardialign.pretrain.training.checkpoints.retention import prune
from cardialign.pretrain.training.engine import Workers
from tests.support.checkpoints import SELECTION, flip, nothing_changes, snapshot, write_checkpoint

CONFIGURATION = RunConfig(training={"steps": 100, "checkpoint_every": 20, "global_batch": 8})
FACTS = Facts(SELECTION, 80, 1)


def run_with(run_dir: Path, *steps: int) -> Path:
    """A run with checkpoints at these steps and a trace up to the last of them."""
    for step in steps:
        write_checkpoint(run_dir, step, CONFIGURATION)
    with TraceWriter(run_dir, 0) as trace:
        for step in range(1, max(steps, default=0) + 1):
            trace.write(step, {"loss": 1.0})
    (run_dir / CONFIG).write_text(json.dumps(CONFIGURATION.resolved()))
    (run_dir / RESULT).write_text("{}")
    return run_dir


def verdict(run_dir: Path, resume: Resume = "same", config: RunConfig = CONFIGURATION) -> Verdict:
    return judge(run_dir, config, FACTS, resume)


def test_an_empty_or_absent_directory_is_a_fresh_start(tmp_path):
    for run_dir in (tmp_path, tmp_path / "absent"):
        with nothing_changes(tmp_path):
            assert verdict(run_dir) == Verdict(((0, 100),))


def test_the_newest_sound_checkpoint_is_found_and_a_damaged_one_on_the_way_is_still_in_its_place(tmp_path):
    run_with(tmp_path, 20, 40)
    flip(files.committed_path(tmp_path, 40) / "engine/model.pt")
    with nothing_changes(tmp_path):
        found = verdict(tmp_path)
    assert found.state is not None and found.state.step == 20
    assert [one.step for one in found.damaged] == [40]


def all_flipped(run_dir: Path) -> None:
    for path in (run_dir / "checkpoints").glob("step-*"):
        flip(path / "engine/model.pt")


def all_newer(run_dir: Path) -> None:
    for path in (run_dir / "checkpoints").glob("step-*"):
        manifest = json.loads((path / files.MANIFEST).read_text())
        (path / files.MANIFEST).write_text(json.dumps({**manifest, "version": 99, "self": "of another kind"}))


def all_in_quarantine(run_dir: Path) -> None:
    for path in (run_dir / "checkpoints").glob("step-*"):
        files.quarantine(path, "a bad disk")


def all_gone(run_dir: Path) -> None:
    for path in (run_dir / "checkpoints").glob("step-*"):
        files.remove(path)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (all_flipped, ["step-00000040: damaged (engine/model.pt: content changed", "step-00000020: damaged"]),
        (all_newer, ["step-00000040: newer (format version 99", "step-00000020: newer"]),
        (all_in_quarantine, ["quarantine/step-00000040: put aside (a bad disk)", "quarantine/step-00000020"]),
        (all_gone, ["the loss trace has 40 steps"]),
    ],
)
def test_where_checkpoints_existed_and_none_serves_the_start_ends_naming_each_and_why(
    tmp_path: Path, harm: Callable[[Path], None], said: list[str]
) -> None:
    harm(run_with(tmp_path, 20, 40))
    with nothing_changes(tmp_path), pytest.raises(CheckpointError) as caught:
        verdict(tmp_path)
    for text in said:
        assert text in caught.value.problem
    assert "--start-over" in caught.value.remedy
    with nothing_changes(tmp_path):
        assert verdict(tmp_path, "start-over").start_over


def test_a_run_that_died_before_its_first_checkpoint_begins_again(tmp_path):
    run_with(tmp_path)
    with TraceWriter(tmp_path, 0) as trace:
        for step in range(1, 21):  # step 20 is written down before its checkpoint is committed
            trace.write(step, {"loss": 1.0})
    assert verdict(tmp_path) == Verdict(((0, 100),))
    often = CONFIGURATION.model_copy(
        update={"training": CONFIGURATION.training.model_copy(update={"checkpoint_every": 5})}
    )
    assert verdict(tmp_path, config=often) == Verdict(((0, 100),)), "what counts is what the run was told that wrote it"


@pytest.mark.parametrize(("writing", "most"), [("background", 40), ("step", 20)])
def test_a_run_that_died_while_its_first_checkpoint_was_on_its_way_begins_again(tmp_path, writing, most):
    """Behind the steps it is written while they go on, and the second waits for it; in the step nothing goes on."""
    config = CONFIGURATION.model_copy(
        update={"training": CONFIGURATION.training.model_copy(update={"checkpoint_writing": writing})}
    )
    run_with(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config.resolved()))
    with TraceWriter(tmp_path, 0) as trace:
        for step in range(1, most + 1):
            trace.write(step, {"loss": 1.0})
        assert verdict(tmp_path, config=config) == Verdict(((0, 100),))
        trace.write(most + 1, {"loss": 1.0})
        with pytest.raises(CheckpointError, match=f"the loss trace has {most + 1} steps"):
            verdict(tmp_path, config=config)


def test_a_run_whose_only_checkpoint_is_lost_does_not_begin_again_however_young(tmp_path):
    all_gone(run_with(tmp_path, 20))
    with pytest.raises(CheckpointError, match="the loss trace has 20 steps"):
        verdict(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="the loss trace has 20 steps"):
        verdict(tmp_path)
    (tmp_path / METRICS).unlink()
    with nothing_changes(tmp_path), pytest.raises(CheckpointError, match="says that one was committed"):
        verdict(tmp_path)
    assert verdict(tmp_path, "start-over").start_over


def test_another_configuration_is_refused_before_a_damaged_checkpoint_is_moved(tmp_path):
    run_with(tmp_path, 20, 40)
    flip(files.committed_path(tmp_path, 40) / "engine/model.pt")
    other = CONFIGURATION.model_copy(update={"seed": 7})
    with nothing_changes(tmp_path), pytest.raises(UserError, match="seed was 0, now 7"):
        verdict(tmp_path, config=other)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: (p / "checkpoints").write_text(""), "checkpoints is a file, where a folder is wanted"),
        (lambda p: os.symlink("/nowhere", p / "checkpoints"), "checkpoints is a link to /nowhere, which is not there"),
        (lambda p: (p / METRICS).mkdir(), "metrics.jsonl is no file, where a file is wanted"),
        (lambda p: (p / CONFIG).mkdir(), "config.resolved.json is no file"),
        (lambda p: (p / "quarantine.jsonl").mkdir(), "quarantine.jsonl is no file"),
        (lambda p: (p / "workers").write_text(""), "workers is a file, where a folder is wanted"),
        (lambda p: (p / "logs").write_text(""), "logs is a file, where a folder is wanted"),
        (lambda p: os.symlink("/nowhere", p / "logs"), "logs is a link to /nowhere, which is not there"),
        (lambda p: os.symlink("ray", p / "ray"), "ray is a link to ray, which is not there"),
        (lambda p: (p / EARLIER).write_text(""), "earlier is a file, where a folder is wanted"),
        (lambda p: (p / "attempt.json").mkdir(), "attempt.json is no file, where a file is wanted"),
        (lambda p: (p / STARTED_OVER).mkdir(), "started-over.json is no file"),
        (lambda p: (p / "STOP").mkdir(), "STOP is no file"),
    ],
)
def test_a_file_where_a_folder_is_wanted_and_the_other_way_round_are_named(tmp_path, spoil, said):
    spoil(tmp_path)
    with nothing_changes(tmp_path), pytest.raises(UserError) as caught:
        verdict(tmp_path)
    assert said in caught.value.problem and "same command" in caught.value.remedy


def test_a_quarantine_that_is_a_file_is_named_and_once_it_is_away_the_run_goes_on(tmp_path):
    run_with(tmp_path, 20, 40)
    aside = tmp_path / "checkpoints" / "quarantine"
    aside.write_text("a file")
    with nothing_changes(tmp_path), pytest.raises(UserError, match=r"checkpoints/quarantine is a file"):
        verdict(tmp_path)
    aside.rename(tmp_path / "my-notes")
    state = verdict(tmp_path).state
    assert state is not None and state.step == 40


def test_a_run_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="run is a file, where a folder is wanted"):
        verdict(tmp_path / "run")


def test_a_run_directory_whose_name_is_no_text_is_named_before_weeks_of_training(tmp_path):
    run_dir = tmp_path / os.fsdecode(b"caf\xe9") / "run"
    run_dir.mkdir(parents=True)
    with pytest.raises(UserError, match="no UTF-8 text"):
        verdict(run_dir)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    run_with(tmp_path, 20)
    (tmp_path / "checkpoints").chmod(0o500)
    with pytest.raises(UserError, match=r"checkpoints may not be written"):
        verdict(tmp_path)
    (tmp_path / "checkpoints").chmod(0o700)


def test_a_state_of_wrong_types_in_a_sealed_checkpoint_is_a_sentence(tmp_path):
    for number, text in enumerate(("[]", '{"step": "x"}', "[" * 100_000, '{"nope": 1}')):
        run_dir = tmp_path / str(number)
        folder = files.temporary_path(run_dir, 20)
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(text)
        files.commit(run_dir, 20, files.seal(folder, ["trainer_state.json"]), {})
        with pytest.raises(CheckpointError, match="nothing that this release understands"):
            verdict(run_dir)


def test_starting_over_moves_the_run_aside_whole_and_deletes_nothing(tmp_path):
    run_with(tmp_path, 20, 40)
    (tmp_path / START).mkdir()
    (tmp_path / "thesis.tex").write_text("mine")
    before = snapshot(tmp_path)
    assert verdict(tmp_path, "start-over").start_over
    assert move_aside(tmp_path) == tmp_path / EARLIER / "1"
    moved = snapshot(tmp_path / EARLIER / "1")
    assert {name: before[name] for name in moved} == moved
    assert {name for name in before if name not in moved} == {START, "thesis.tex"}
    assert verdict(tmp_path) == Verdict(((0, 100),)), "what is left is no run"
    assert move_aside(run_with(tmp_path, 20)) == tmp_path / EARLIER / "2"
    assert snapshot(tmp_path / EARLIER / "1") == moved


def test_a_run_that_cannot_be_moved_whole_stays_whole_where_it_is(tmp_path, monkeypatch):
    """Its checkpoints may be a mount of their own: a rename of them fails, after everything else was moved."""
    run_with(tmp_path, 20, 40)
    before, real = snapshot(tmp_path), Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path == tmp_path / "checkpoints":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path), None, str(target))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(RunDirectoryError, match="checkpoints") as caught, writing(tmp_path):
        move_aside(tmp_path)
    assert "mount of its own" in caught.value.remedy
    assert snapshot(tmp_path) == {**before, EARLIER: None}


def test_the_same_command_repeated_goes_on_with_the_run_that_it_began(tmp_path):
    """A scheduler that repeats `--start-over` after a killed job must not lose the steps since."""
    move_aside(run_with(tmp_path, 20))
    run_with(tmp_path, 40)
    again = verdict(tmp_path, "start-over")
    assert not again.start_over and again.state is not None and again.state.step == 40
    write_checkpoint(tmp_path, 100, CONFIGURATION)
    assert verdict(tmp_path, "start-over").start_over, "a finished run gives way"
    other = CONFIGURATION.model_copy(update={"seed": 7})
    files.remove(files.committed_path(tmp_path, 100))
    assert verdict(tmp_path, "start-over", other).start_over, "and so does another run"
    assert (tmp_path / STARTED_OVER).is_file()


def goes_on(run_dir: Path) -> None:
    """What a run that lives does beside whoever looks: it commits another checkpoint and takes an older one away."""
    newest = max((step for step, _ in files.committed(run_dir)), default=0)
    with TraceWriter(run_dir, newest) as trace:
        for step in range(newest + 1, newest + 21):
            trace.write(step, {"loss": 1.0})
    write_checkpoint(run_dir, newest + 20, CONFIGURATION)
    prune(run_dir, 1, written=files.committed_path(run_dir, newest + 20))


def test_a_checkpoint_that_a_living_run_takes_away_while_it_is_looked_at_is_not_a_damaged_one(tmp_path, monkeypatch):
    run_with(tmp_path, 20)
    looked_at = []

    def examined(path: Path, *, quick: bool = False) -> Finding:
        looked_at.append(path.name)
        if len(looked_at) <= 2:
            goes_on(tmp_path)
        return examine(path, quick=quick)

    monkeypatch.setattr(condition, "examine", examined)
    found, passed = newest_sound(tmp_path)
    assert found is not None and found.step == 60 and passed == []
    assert looked_at == ["step-00000020", "step-00000040", "step-00000060"]


def test_a_start_goes_on_from_what_its_predecessor_committed_before_it_was_fenced_out(tmp_path, monkeypatch):
    run_with(tmp_path, 20)
    take = fence.of_this_process

    def taken_late(run_dir: Path) -> fence.Mark:
        goes_on(tmp_path)
        return take(run_dir)

    monkeypatch.setattr(fence, "of_this_process", taken_late)
    monkeypatch.setattr(load, "check_pickles", lambda *_: None)  # these engines are a few bytes
    point, mark = take_over(tmp_path, CONFIGURATION, FACTS, Workers(0, 1, torch.device("cpu")))
    assert point is not None and point.state.step == 40 and point.path == files.committed_path(tmp_path, 40)
    assert fence.held(tmp_path) == mark
    assert not (tmp_path / "checkpoints" / files.QUARANTINE).exists()


def writable(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def of_somebody_else(path: Path) -> None:
    os.chown(path, 4321, -1)


def of_a_team(path: Path) -> None:
    """A group that is not the private one of this user."""
    os.chown(path, -1, next(each.gr_gid for each in grp.getgrall() if each.gr_name == "games"))
    path.chmod(path.stat().st_mode | 0o020)


PLACES = ["", "checkpoints", "checkpoints/step-00000020", "checkpoints/step-00000020/engine"]
PLACES += [f"checkpoints/step-00000020/{name}" for name in ("engine/model.pt", "manifest.json", "trainer_state.json")]


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_others_may_write_is_not_gone_on_from_and_says_why_in_one_sentence(tmp_path, place, monkeypatch):
    run_with(tmp_path / "run", 20)
    writable(tmp_path / "run" / place)
    with nothing_changes(tmp_path), pytest.raises(UserError, match=r"every user may write.* run code") as caught:
        verdict(tmp_path / "run")
    assert "\n" not in caught.value.problem and "--trust-run-dir" in caught.value.remedy
    monkeypatch.setenv("CARDIALIGN_TRUST_RUN_DIR", "1")
    assert verdict(tmp_path / "run").state is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    ("give", "said"), [(of_somebody_else, "its owner is 4321"), (of_a_team, "the group games may write")]
)
def test_a_checkpoint_of_somebody_else_or_of_a_team_is_not_gone_on_from(tmp_path, give, said):
    run_with(tmp_path, 20)
    give(files.committed_path(tmp_path, 20) / "engine/model.pt")
    with pytest.raises(UserError, match=said):
        verdict(tmp_path)


def test_a_worker_group_goes_on_from_what_its_run_has_just_written_without_asking_again(tmp_path, monkeypatch):
    run_with(tmp_path, 20)
    writable(tmp_path)
    monkeypatch.setattr("cardialign.pretrain.run.fence._held", {tmp_path: fence.Mark("start", 2)})
    assert verdict(tmp_path).state is not None


def test_who_starts_over_or_begins_asks_nobody_who_may_write(tmp_path):
    writable(tmp_path)
    assert verdict(tmp_path).found is None
    run_with(tmp_path, 20)
    assert verdict(tmp_path, "start-over").start_over
