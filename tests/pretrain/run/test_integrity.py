"""An encoder is replaced only where nothing but an encoder lies; its digest is that of its content."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.integrity import (
    DIGESTS,
    NEEDED,
    folder_beside,
    refuse_to_replace,
    replace_export,
    verify_export,
    write_digests,
)
from tests.support.checkpoints import nothing_changes


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).write_text(name)
    write_digests(folder)
    return folder


def test_an_encoder_alone_may_be_replaced(encoder):
    refuse_to_replace(encoder, overwrite=True)
    with pytest.raises(UserError, match="exists already"):
        refuse_to_replace(encoder, overwrite=False)
    refuse_to_replace(encoder.parent / "absent", overwrite=False)
    (encoder.parent / "empty").mkdir()
    refuse_to_replace(encoder.parent / "empty", overwrite=False)


@pytest.mark.parametrize("name", ["thesis.tex", "notes/a.txt", ".git/HEAD", "model.safetensors.bak"])
def test_what_lies_beside_an_encoder_is_named_and_nothing_is_replaced(encoder, name):
    (encoder / name).parent.mkdir(exist_ok=True)
    (encoder / name).write_text("years of work")
    with nothing_changes(encoder), pytest.raises(UserError, match="holds more than an encoder") as caught:
        refuse_to_replace(encoder, overwrite=True)
    assert name in caught.value.problem


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": 5}', "[" * 100_000, "{nope"])
def test_a_list_that_is_none_makes_no_encoder(encoder, text):
    (encoder / DIGESTS).write_text(text)
    with pytest.raises(UserError, match="no encoder; it is left alone"):
        refuse_to_replace(encoder, overwrite=True)
    with pytest.raises(UserError, match="is not an exported encoder"):
        verify_export(encoder)


def test_whoever_names_the_run_is_told_where_its_encoder_is(encoder, tmp_path):
    run = tmp_path / "a-run"
    shutil.copytree(encoder, run / "export")
    with pytest.raises(UserError, match="is not an exported encoder") as caught:
        verify_export(run)
    assert caught.value.remedy == f"give {run / 'export'}"


def test_a_file_or_a_link_to_nothing_in_its_place_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("")
    os.symlink("/nowhere", tmp_path / "link")
    for name in ("file", "link"):
        with pytest.raises(UserError, match="left alone"):
            refuse_to_replace(tmp_path / name, overwrite=True)


@pytest.mark.parametrize("name", [".DS_Store", "._config.json", "Thumbs.db", ".nfs00000000000123ab00000001"])
def test_what_file_managers_leave_changes_neither_digest_nor_verdict(encoder, name):
    before = verify_export(encoder)
    (encoder / name).write_bytes(b"x")
    assert verify_export(encoder) == before
    refuse_to_replace(encoder, overwrite=True)


def test_any_other_file_is_still_named(encoder):
    (encoder / "evil.py").write_text("")
    with pytest.raises(UserError, match=r"evil\.py: not part of the export") as raised:
        verify_export(encoder)
    assert raised.value.remedy.startswith("move what is no part of it")
    (encoder / "config.json").write_text("{}")
    with pytest.raises(UserError) as raised:
        verify_export(encoder)
    assert raised.value.remedy == "fetch it again"


def test_equal_files_have_equal_digests_whenever_they_were_written(encoder):
    copy = shutil.copytree(encoder, encoder.parent / "copy")
    (copy / DIGESTS).unlink()
    write_digests(copy)
    values = json.loads((copy / DIGESTS).read_text())
    (copy / DIGESTS).write_text(json.dumps(values | {"created": "1999-01-01T00:00:00+00:00"}))
    assert verify_export(copy) == verify_export(encoder)
    (copy / "config.json").write_text("other")
    write_digests(copy)
    assert verify_export(copy) != verify_export(encoder)


MAKER = """
import os, sys, time
from pathlib import Path
from cardialign.pretrain.run.integrity import folder_beside
out = Path(sys.argv[1])
with folder_beside(out) as folder:
    (folder / "new").mkdir()
    (folder / "new" / "model.safetensors").write_bytes(b"half")
    if len(sys.argv) > 2:
        os.replace(out, folder / "replaced")  # killed between the two renames
    print(folder, flush=True)
    time.sleep(60)
"""


def begun(out: Path, *words: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that makes an encoder, and its folder, old enough to be looked at."""
    maker = subprocess.Popen([sys.executable, "-c", MAKER, str(out), *words], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    folder = Path(maker.stdout.readline().strip())
    os.utime(folder, (1, 1))
    return maker, folder


def test_what_a_killed_export_left_is_swept_and_what_a_living_one_makes_is_not(encoder: Path) -> None:
    """A run that is killed while it exports, again and again, must not fill the disk, nor stand in its own way: in
    containers every start has the same process number."""
    killed, left = begun(encoder)
    living, at_work = begun(encoder)
    killed.kill()
    killed.wait()
    with folder_beside(encoder) as folder:
        assert not left.exists() and at_work.is_dir() and list(folder.iterdir()) == []
        shutil.copytree(encoder, folder / "new")
        (folder / "new" / "config.json").write_text("of the new one")
        replace_export(folder / "new", encoder, folder)
    assert (encoder / "config.json").read_text() == "of the new one"
    assert sorted(path.name for path in encoder.parent.iterdir()) == sorted([at_work.name, "encoder"])
    living.kill()
    living.wait()


def test_an_encoder_whose_replacement_was_killed_has_its_name_again(encoder: Path) -> None:
    digest = verify_export(encoder)
    killed, left = begun(encoder, "replace")
    killed.kill()
    killed.wait()
    assert not encoder.exists()
    with folder_beside(encoder):
        assert verify_export(encoder) == digest and not left.exists()


def test_an_encoder_stays_when_the_new_one_cannot_take_its_name(encoder: Path) -> None:
    digest = verify_export(encoder)
    with pytest.raises(FileNotFoundError), folder_beside(encoder) as folder:
        replace_export(folder / "never made", encoder, folder)
    assert verify_export(encoder) == digest and [path.name for path in encoder.parent.iterdir()] == ["encoder"]
