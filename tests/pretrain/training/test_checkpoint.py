"""A checkpoint is committed or it does not exist; what is wrong with one is told apart before it is read."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from cardialign.pretrain.training.checkpoints import condition, files
from cardialign.pretrain.training.checkpoints.condition import examine, newest_sound, verify
from cardialign.pretrain.training.checkpoints.files import MANIFEST, CheckpointError
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.checkpoints.retention import fates, prune
from tests.support.checkpoints import flip, nothing_changes, write_checkpoint


def reseal(path: Path, **values: object) -> None:
    """A manifest with other values and the digest that belongs to them."""
    manifest = json.loads((path / MANIFEST).read_text()) | values
    del manifest["self"]
    manifest["self"] = files._manifest_digest(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_a_committed_checkpoint_verifies_and_is_listed(tmp_path):
    path = write_checkpoint(tmp_path, 120)
    assert path.name == "step-00000120"
    verify(path)
    (info,) = files.list_checkpoints(tmp_path)
    assert (info.step, info.path, info.summary) == (120, path, {"world_size": 2})
    assert info.bytes == 700 + (path / "trainer_state.json").stat().st_size
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


@pytest.mark.parametrize("name", ["engine/model.pt", "trainer_state.json", MANIFEST])
def test_a_flipped_byte_in_any_file_is_found_and_the_file_named(tmp_path, name):
    path = write_checkpoint(tmp_path, 1)
    flip(path / name)
    with pytest.raises(CheckpointError, match=name):
        verify(path)
    assert examine(path).condition == "damaged"


@pytest.mark.parametrize(("content", "said"), [(None, "lists no model"), (b"x" * 40, "cannot be read"), (b"", "read")])
def test_weights_that_are_none_in_a_sealed_checkpoint_are_a_sentence(tmp_path, content, said):
    folder = files.temporary_path(tmp_path, 1)
    folder.mkdir(parents=True)
    (folder / files.STATE).write_text("{}")
    if content is not None:
        (folder / files.WEIGHTS).write_bytes(content)
    path = files.commit(tmp_path, 1, files.seal(folder, files.files_below(folder)), {})
    assert examine(path).condition == "verified"
    with pytest.raises(CheckpointError, match=said):
        load_weights(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "engine/model.pt").unlink(), "engine/model.pt: missing"),
        (lambda p: os.truncate(p / "engine/model.pt", 600), "engine/model.pt: 600 bytes instead of 700"),
        (lambda p: (p / MANIFEST).unlink(), "manifest.json cannot be read"),
        (lambda p: (p / MANIFEST).write_text("[" * 100_000), "nested too deeply"),
        (lambda p: (p / MANIFEST).write_text("5"), "manifest.json cannot be read"),
        (lambda p: (p / MANIFEST).write_bytes(b"\xff\xfe"), "manifest.json cannot be read"),
        (lambda p: reseal(p, files={"a": 1}), "its list of files"),
        (lambda p: reseal(p, files={}), "manifest.json lists no trainer_state.json"),
        (lambda p: reseal(p, files={"../../a": {"sha256": "", "bytes": 0}}), "its list of files"),
    ],
)
def test_other_damage_is_named_too(tmp_path, damage, message):
    path = write_checkpoint(tmp_path, 1)
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        verify(path)
    assert examine(path).condition == "damaged"
    assert [one.step for one in files.list_checkpoints(tmp_path)] == [1]


@pytest.mark.parametrize(
    "name", [".DS_Store", "._manifest.json", "engine/.nfs0000000000a1b2c3", "Thumbs.db", "engine/core", "rng/model.pt~"]
)
def test_a_file_that_the_manifest_does_not_list_says_nothing_about_the_checkpoint(tmp_path, name):
    path = write_checkpoint(tmp_path, 1)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_bytes(b"x")
    verify(path)
    folder = files.linked(path, examine(path).names)
    assert files.names_below(folder) == ["engine/model.pt", "trainer_state.json"], "readers are given what is listed"
    assert (folder / "engine/model.pt").read_bytes() == b"weights" * 100


def test_where_no_links_can_be_made_a_stray_file_is_named_and_without_one_the_checkpoint_is_read_itself(
    tmp_path, monkeypatch
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    path = write_checkpoint(tmp_path, 1)
    for name in ("link", "symlink"):
        monkeypatch.setattr(os, name, refuse)
    assert files.linked(path, examine(path).names) == path
    (path / "engine" / "mp_rank_07_model_states.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="mp_rank_07_model_states"):
        files.linked(path, examine(path).names)


def test_falls_back_to_the_previous_one_and_says_what_it_passed_over(tmp_path):
    good, bad = write_checkpoint(tmp_path, 3), write_checkpoint(tmp_path, 6)
    flip(bad / "engine/model.pt")
    with nothing_changes(tmp_path):
        found, passed = newest_sound(tmp_path)
    assert found is not None and found.path == good
    assert [(one.path, one.condition) for one in passed] == [(bad, "damaged")]
    assert "engine/model.pt: content changed" in passed[0].said()


def test_quarantine_keeps_every_byte_and_says_why(tmp_path, caplog):
    path = write_checkpoint(tmp_path, 6)
    with caplog.at_level(logging.WARNING):
        files.quarantine(path, "engine/model.pt: content changed")
    (line,) = [record.getMessage() for record in caplog.records]
    assert "action=quarantine" in line and "engine/model.pt: content changed" in line
    kept = tmp_path / "checkpoints" / "quarantine" / "step-00000006"
    assert (kept / "engine/model.pt").read_bytes() == b"weights" * 100 and not path.exists()
    assert (kept / "quarantine.txt").read_text() == "engine/model.pt: content changed\n"
    files.quarantine(write_checkpoint(tmp_path, 6), "again")
    assert sorted(p.name for p in kept.parent.iterdir()) == ["step-00000006", "step-00000006.1"], "both are kept"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.ELOOP])
def test_a_storage_that_does_not_answer_is_asked_again_and_then_named_never_taken_for_damage(
    tmp_path, monkeypatch, code
):
    write_checkpoint(tmp_path, 3)
    path = write_checkpoint(tmp_path, 6)
    asked = []
    opened = os.open

    def failing(file: str | Path, *words: int) -> int:
        if file == path / MANIFEST:
            asked.append(file)
            raise OSError(code, os.strerror(code), str(file))
        return opened(file, *words)

    monkeypatch.setattr(condition, "WAITS", [0.0, 0.0])
    with nothing_changes(tmp_path), monkeypatch.context() as patched:
        patched.setattr(os, "open", failing)
        assert examine(path).condition == "unreadable"
        with pytest.raises(CheckpointError, match=os.strerror(code)) as caught:
            newest_sound(tmp_path)
    assert "nothing was moved" in caught.value.remedy
    assert len(asked) == (2 if code in (errno.EACCES, errno.ELOOP) else 6), "a refusal is an answer, and so is a loop"


def test_a_storage_that_answers_the_second_time_is_no_trouble(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path, 6)
    troubles = [OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EMFILE, "Too many open files")]
    compare = condition.difference

    def sometimes(*words: object, **more: object) -> object:
        if troubles:
            raise troubles.pop()
        return compare(*words, **more)

    monkeypatch.setattr(condition, "WAITS", [0.0, 0.0])
    monkeypatch.setattr(condition, "difference", sometimes)
    assert examine(path).condition == "verified" and not troubles


def test_a_checkpoint_of_a_later_release_is_left_alone_and_named(tmp_path):
    old, new = write_checkpoint(tmp_path, 3), write_checkpoint(tmp_path, 6)
    reseal(new, version=99)
    assert examine(new).condition == "newer"
    with nothing_changes(tmp_path), pytest.raises(CheckpointError, match=r"later release.*step-00000006") as caught:
        newest_sound(tmp_path)
    assert "go on from step 3" in caught.value.remedy
    prune(tmp_path, 1)
    assert old.exists() and new.exists(), "only what this release can read is pruned"


def test_a_flipped_version_is_damage_not_a_later_release(tmp_path):
    path = write_checkpoint(tmp_path, 6)
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace('"version": 2', '"version": 6'))
    assert examine(path).condition == "damaged"


def test_what_only_has_the_name_of_a_checkpoint_is_foreign(tmp_path):
    good = write_checkpoint(tmp_path, 3)
    folder = good.parent
    (folder / "step-99999999").mkdir()
    (folder / "step-00000099").write_text("a file")
    (folder / "step-abc").mkdir()
    (folder / "step-\u00b2").mkdir()
    os.symlink("/nowhere", folder / "step-00000050")
    copy = folder / "step-00000007"
    copy.mkdir()
    for name in (MANIFEST, "trainer_state.json"):
        (copy / name).write_bytes((good / name).read_bytes())
    with nothing_changes(tmp_path):
        found, passed = newest_sound(tmp_path)
    assert found is not None and found.path == good
    assert {one.path.name: one.condition for one in passed} == dict.fromkeys(
        ("step-99999999", "step-00000050", "step-00000007"), "foreign"
    )


def test_what_was_never_committed_is_not_seen_and_is_swept(tmp_path):
    good = write_checkpoint(tmp_path, 3)
    unfinished = files.temporary_path(tmp_path, 6)
    unfinished.mkdir()
    (unfinished / MANIFEST).write_text("{}")
    assert newest_sound(tmp_path)[0].path == good
    files.sweep(tmp_path)
    assert not unfinished.exists() and good.exists()


def test_a_file_or_link_with_the_name_of_an_unfinished_checkpoint_is_kept_and_out_of_the_way(tmp_path):
    write_checkpoint(tmp_path, 3)
    files.temporary_path(tmp_path, 6).write_text("somebody's")
    os.symlink("/nowhere", files.temporary_path(tmp_path, 9))
    files.sweep(tmp_path)
    write_checkpoint(tmp_path, 6)
    write_checkpoint(tmp_path, 9)
    aside = tmp_path / "checkpoints" / "quarantine"
    assert (aside / ".tmp-step-00000006").read_text() == "somebody's" and (aside / ".tmp-step-00000009").is_symlink()


@pytest.mark.parametrize("put", [lambda p: p.write_text("mine"), lambda p: os.symlink("/nowhere", p)])
def test_what_stands_in_the_place_of_a_checkpoint_is_kept_when_that_is_committed(tmp_path, put):
    write_checkpoint(tmp_path, 3)
    put(files.committed_path(tmp_path, 6))
    verify(write_checkpoint(tmp_path, 6))
    assert os.path.lexists(tmp_path / "checkpoints" / "quarantine" / "step-00000006")


def test_prune_keeps_the_newest(tmp_path):
    for step in (2, 10, 9, 100):
        write_checkpoint(tmp_path, step)
    removed = prune(tmp_path, 2)
    assert [path.name for path in removed] == ["step-00000002", "step-00000009"]
    assert [info.step for info in files.list_checkpoints(tmp_path)] == [10, 100]


def test_prune_deletes_no_folder_that_is_a_checkpoint_by_its_digests_alone(tmp_path):
    for step in (3, 6, 9, 12, 15, 18):
        write_checkpoint(tmp_path, step)
    of = {step: files.committed_path(tmp_path, step) for step in (3, 6, 9, 12, 15)}
    (of[3] / "engine" / "thesis.tex").write_text("years of work")
    shutil.copytree(of[6], of[6].with_name("step-00000001"))
    folder = files.checkpoints_folder(tmp_path)
    foreign = folder / "step-00000002"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("sealed by hand")
    sealed = {"version": 2, "step": 2, "files": files.seal(foreign, ["notes.txt"])}
    (foreign / MANIFEST).write_text(json.dumps({**sealed, "self": files._manifest_digest(sealed)}))
    (of[9] / ".DS_Store").write_text("litter")
    flip(of[12] / "engine/model.pt")
    mine = folder / ".tmp-prune-step-00000006"
    mine.mkdir()
    (mine / "photo.png").write_text("mine")
    assert prune(tmp_path, 1) == [of[step] for step in (6, 9, 12, 15)]
    assert {path.name for path in folder.iterdir()} == {
        "quarantine", "step-00000001", "step-00000002", "step-00000003", "step-00000018",
    }  # fmt: skip
    assert (of[3] / "engine" / "thesis.tex").exists()
    assert (folder / "quarantine" / mine.name / "photo.png").exists()


def test_a_sweep_keeps_what_only_has_the_name_of_an_unfinished_checkpoint(tmp_path):
    write_checkpoint(tmp_path, 3)
    folder = files.checkpoints_folder(tmp_path)
    for name in (".tmp-mine", ".tmp-step-00000006", ".tmp-abc.1-step-00000006", ".tmp-prune-step-00000001"):
        (folder / name / "engine").mkdir(parents=True)
        (folder / name / "engine" / "model.pt").write_text("half")
    (folder / ".tmp-step-00000006" / "photo.png").write_text("mine")
    files.sweep(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"quarantine", "step-00000003"}
    assert {path.name for path in (folder / "quarantine").iterdir() if path.is_dir()} == {
        ".tmp-mine", ".tmp-step-00000006",
    }  # fmt: skip
    assert (folder / "quarantine" / ".tmp-step-00000006" / "photo.png").exists()


def stays(run_dir, keep, **more) -> dict[int, str]:
    return {each.step: each.why for each in fates(run_dir, keep, **more) if each.stays}


def test_prune_never_deletes_the_only_one_that_is_sound(tmp_path):
    paths = {step: write_checkpoint(tmp_path, step) for step in (3, 6, 9, 12)}
    for step in (9, 12):
        flip(paths[step] / "engine/model.pt")
    with nothing_changes(tmp_path):
        assert stays(tmp_path, 2) == {6: "only sound", 9: "newest", 12: "newest"}
        assert stays(tmp_path, 3) == {6: "newest", 9: "newest", 12: "newest"}, "a sound one is among them"
    assert prune(tmp_path, 2) == [paths[3]] and newest_sound(tmp_path)[0].step == 6
    flip(paths[6] / "engine/model.pt")
    assert stays(tmp_path, 2) == {9: "newest", 12: "newest"}


def test_the_checkpoint_that_is_best_so_far_stays_until_another_is_best(tmp_path):
    for step in (3, 6, 9, 12):
        write_checkpoint(tmp_path, step)
    mark = json.loads((files.committed_path(tmp_path, 6) / MANIFEST).read_text())["self"]
    (tmp_path / "best.json").write_text(json.dumps({"step": 6, "checkpoint": mark, "criterion": "a", "value": 0.5}))
    newest = files.committed_path(tmp_path, 12)
    assert stays(tmp_path, 2, written=newest) == {6: "best", 9: "newest", 12: "newest"}
    assert [path.name for path in prune(tmp_path, 2, written=newest)] == ["step-00000003"]
    for note in ({"step": 6, "checkpoint": "of an earlier run"}, {"step": 9, "checkpoint": mark}, [], {"step": None}):
        (tmp_path / "best.json").write_text(json.dumps(note))
        assert stays(tmp_path, 1, written=newest) == {12: "newest"}


def test_a_checkpoint_that_cannot_be_judged_now_keeps_all_of_them(tmp_path, monkeypatch):
    for step in (3, 6, 9):
        write_checkpoint(tmp_path, step)

    def fails(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(condition, "difference", fails)
    with nothing_changes(tmp_path), pytest.raises(CheckpointError, match="cannot be read now"):
        prune(tmp_path, 1)
