"""What of a machine travels with a submitted command: no secret, and no place that only this machine has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cardialign.cluster.jobs import words
from cardialign.cluster.jobs.submission import RAYS_PYTHON
from cardialign.cluster.jobs.travel import travelling
from cardialign.cluster.jobs.words import Inner, on_this_machine

SECRETS = {
    "HF_TOKEN": "hf_x",
    "HUGGING_FACE_HUB_TOKEN": "hf_x",
    "CARDIALIGN_SALT": "sixteen-letters-x",
    "HTTPS_PROXY": "http://me:word@proxy:3128",
    "AWS_SECRET_ACCESS_KEY": "x",
    "MLFLOW_TRACKING_URI": "https://me:word@mlflow.example",
}
PLACES = {"HF_HOME": "/home/me/hf", "CARDIALIGN_CACHE": "~/cache", "MLFLOW_REGISTRY_URI": "sqlite:///mlflow.db"}
PLAIN = {
    "NCCL_DEBUG": "INFO",
    "NO_PROXY": "10.0.0.0/8",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_ENDPOINT": "https://mirror.example",
    "MLFLOW_EXPERIMENT_NAME": "ours",
}


def test_secrets_and_places_of_this_machine_stay_and_are_named() -> None:
    environment = {**SECRETS, **PLACES, **PLAIN, "CARDIALIGN_PASS_ENV": "AWS_*", "PATH": "/bin", "SECRET_OF_MINE": "x"}
    goes, stays = travelling(environment)
    assert goes == PLAIN
    assert stays == {**dict.fromkeys(SECRETS, "a secret"), **dict.fromkeys(PLACES, "a place on this machine")}


def test_what_opens_stores_here_and_does_not_travel_is_named() -> None:
    needed = {"AWS_SECRET_ACCESS_KEY": "x", "MLFLOW_TRACKING_PASSWORD": "y", "AWS_REGION": "eu-1"}
    goes, stays = travelling({**needed, "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json", "EDITOR": "vi"})
    assert goes == {} and set(stays) == {*needed, "GOOGLE_APPLICATION_CREDENTIALS"}
    assert stays["MLFLOW_TRACKING_PASSWORD"] == "a secret" and "CARDIALIGN_PASS_ENV" in stays["AWS_REGION"]
    assert travelling({"AWS_REGION": "eu-1", "CARDIALIGN_PASS_ENV": "AWS_*"}) == ({"AWS_REGION": "eu-1"}, {})


def test_a_store_beside_the_run_is_the_last_choice_of_a_job(tmp_path: Path) -> None:
    odd = f'{tmp_path}/it\'s "$HOME" `id` }}/run'
    inner = Inner("pretrain", (), ("pretrain", "--run-dir", odd), run_dir=odd, tracks=True)
    line = inner.entrypoint("printf '%s\\n'").replace("exec ", "")
    for store in ("", "http://mlflow:5000"):
        said = subprocess.run(["sh", "-c", line], env={"MLFLOW_TRACKING_URI": store}, capture_output=True, text=True)
        beside = f"sqlite:///{Path(odd).parent}/mlflow.db"
        assert said.stdout.splitlines()[2:] == ["pretrain", "--run-dir", odd, "--tracking-uri", store or beside]


def test_files_that_travel_are_named_where_they_lie_in_the_job(tmp_path: Path) -> None:
    inner = Inner(
        "study", (), ("study", "0-a b.yaml", "--recipe=1-x.yaml"), files={"0-a b.yaml": tmp_path, "1-x.yaml": tmp_path}
    )
    line = inner.entrypoint("printf '%s\\n'").replace("exec ", "")
    said = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout.splitlines()[3:] == [f"{tmp_path}/0-a b.yaml", f"--recipe={tmp_path}/1-x.yaml"]


def test_the_python_of_a_job_is_that_of_ray_where_the_shell_has_another(tmp_path: Path) -> None:
    """The parent of the shell has a library mapped that lies where Ray's lies in an environment."""
    library = tmp_path / "lib" / "python3.11" / "site-packages" / "ray" / "_raylet.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\0" * 4096)
    program = (
        "import mmap, subprocess, sys\n"
        f"file = open({str(library)!r}, 'rb'); held = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)\n"
        "print(subprocess.run(['sh', '-c', sys.argv[1]], capture_output=True, text=True).stdout.strip())"
    )

    def found() -> str:
        words = ["python3", "-c", program, f"echo {RAYS_PYTHON}"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    assert found() == "python", "an environment without a Python of its own"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    assert found() == str(tmp_path / "bin" / "python")


def test_the_head_is_this_machine_where_its_session_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert not on_this_machine("session_x") and not on_this_machine("") and not on_this_machine("../x")
    (tmp_path / "ray" / "session_x").mkdir(parents=True)
    assert on_this_machine("session_x")


def test_a_home_on_a_network_is_no_place_of_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert "this machine's alone" in words._not_there(Path("/home/me/run"), here=False)
    assert not words._not_there(Path("/home/me/run"), here=True)
    mounts = "/dev/sda1 / ext4 rw 0 0\nfiler:/home /home nfs4 rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda path, **_: mounts)
    assert not words._not_there(Path("/home/me/run"), here=False)
    assert "this machine's alone" in words._not_there(Path("/tmp/run"), here=False)
