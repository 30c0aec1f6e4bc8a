"""A checkpoint is committed or it does not exist; a damaged one is found before anything reads it."""

import logging
import os

import pytest

from cardialign.pretrain.training.checkpoints import files as checkpoint
from cardialign.pretrain.training.checkpoints.files import MANIFEST, CheckpointError


def write(run_dir, step, content=b"weights"):
    folder = checkpoint.temporary_path(run_dir, step)
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "model.pt").write_bytes(content * 100)
    (folder / "trainer_state.json").write_text(f'{{"step": {step}}}')
    entries = checkpoint.seal(folder, checkpoint.files_below(folder))
    return checkpoint.commit(run_dir, step, entries, {"world_size": 2})


def test_a_committed_checkpoint_verifies_and_is_listed(tmp_path):
    path = write(tmp_path, 120)
    assert path.name == "step-00000120"
    checkpoint.verify(path)
    (info,) = checkpoint.list_checkpoints(tmp_path)
    assert (info.step, info.path, info.summary) == (120, path, {"world_size": 2})
    assert info.bytes == 700 + len('{"step": 120}')
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


@pytest.mark.parametrize("name", ["engine/model.pt", "trainer_state.json", MANIFEST])
def test_a_flipped_byte_in_any_file_is_found_and_the_file_named(tmp_path, name):
    path = write(tmp_path, 1)
    raw = bytearray((path / name).read_bytes())
    raw[len(raw) // 2] ^= 0x40
    (path / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.verify(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "engine/model.pt").unlink(), "engine/model.pt: missing"),
        (lambda p: os.truncate(p / "engine/model.pt", 600), "engine/model.pt: 600 bytes instead of 700"),
        (lambda p: (p / "engine/other.pt").write_bytes(b"x"), "engine/other.pt: not part of this checkpoint"),
        (lambda p: (p / MANIFEST).unlink(), "manifest.json cannot be read"),
    ],
)
def test_other_damage_is_named_too(tmp_path, damage, message):
    path = write(tmp_path, 1)
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.verify(path)


def test_falls_back_to_the_previous_one_and_quarantines_the_bad_one(tmp_path, caplog):
    good, bad = write(tmp_path, 3), write(tmp_path, 6)
    raw = bytearray((bad / "engine/model.pt").read_bytes())
    raw[5] ^= 1
    (bad / "engine/model.pt").write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.newest_verified(tmp_path) == good
    (line,) = [record.getMessage() for record in caplog.records]
    assert "action=quarantine" in line and "engine/model.pt: content changed" in line
    kept = tmp_path / "checkpoints" / "quarantine" / "step-00000006"
    assert (kept / "engine/model.pt").read_bytes() == bytes(raw)
    assert not bad.exists()
    assert [info.step for info in checkpoint.list_checkpoints(tmp_path)] == [3]


def test_two_bad_ones_of_the_same_step_are_both_kept(tmp_path):
    for _ in range(2):
        os.truncate(write(tmp_path, 6) / "engine/model.pt", 1)
        assert checkpoint.newest_verified(tmp_path) is None
    assert len(list((tmp_path / "checkpoints" / "quarantine").iterdir())) == 2


def test_what_was_never_committed_is_not_seen_and_is_swept(tmp_path):
    good = write(tmp_path, 3)
    unfinished = checkpoint.temporary_path(tmp_path, 6)
    unfinished.mkdir()
    (unfinished / MANIFEST).write_text("{}")
    assert checkpoint.newest_verified(tmp_path) == good
    checkpoint.sweep(tmp_path)
    assert not unfinished.exists() and good.exists()


def test_prune_keeps_the_newest(tmp_path):
    for step in (2, 10, 9, 100):
        write(tmp_path, step)
    removed = checkpoint.prune(tmp_path, 2)
    assert [path.name for path in removed] == ["step-00000002", "step-00000009"]
    assert [info.step for info in checkpoint.list_checkpoints(tmp_path)] == [10, 100]
