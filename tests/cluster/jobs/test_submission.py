"""A command becomes a job: what is refused before anything is sent, what is sent, and whose names are whose."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.jobs.job import first_id
from tests.support.jobs_server import Dashboard

RUN = ["--", "pretrain", "--recipe", "simclr-tiny", "--shards", "/shared/set", "--run-dir", "/shared/runs/a"]
Command = Callable[..., Any]


def submit(cardialign: Command, board: Dashboard, *words: object, name: str = "one", inner: Any = RUN) -> Any:
    """Where nothing else is said, the nodes have the package: making its archive takes time."""
    words = words if "--wheel" in words else (*words, "--wheel", "image")
    return cardialign("submit", "--address", board.address, "--json", "--name", name, *words, *inner, plain=True)


def result_of(answer: Any) -> dict[str, Any]:
    return dict(json.loads(answer.out.splitlines()[-1]))


def test_the_job_is_known_at_once_and_runs_the_same_words_inside(cardialign: Command, board: Dashboard) -> None:
    answer = submit(cardialign, board, "--cpus", "2", "--memory", "4GiB")
    told = result_of(answer)
    assert answer.code == 0 and told["continues"] is None
    job = board.jobs[told["job"]]
    assert job["entrypoint"].endswith(
        " -m cardialign pretrain --recipe simclr-tiny --shards /shared/set --run-dir /shared/runs/a --address auto "
        '--tracking-uri "${MLFLOW_TRACKING_URI:-sqlite:////shared/runs/mlflow.db}"'
    )
    assert job["entrypoint"].startswith("exec "), "signals of the job reach the driver"
    facts = {"name": "one", "user": "ada", "run_dir": "/shared/runs/a", "command": " ".join(RUN[1:])}
    assert facts.items() <= job["metadata"].items() and job["metadata"]["version"]
    assert int(job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 600, "a checkpoint may take minutes"


def test_what_travels_is_the_package_and_nothing_beside_it(
    cardialign: Command, board: Dashboard, tmp_path: Path
) -> None:
    recipe = tmp_path / "my own.yaml"
    recipe.write_text("name: mine\nencoder: {name: cardialign, size: tiny}\nmethod: {name: simclr}\n")
    words = ["--", "pretrain", "--recipe", recipe, *RUN[4:]]
    given = ["submit", "--address", board.address, "--json", "--name"]
    told = result_of(cardialign(*given, "one", *words, plain=True))
    sent = {name: zipfile.ZipFile(io.BytesIO(content)).namelist() for name, content in board.packages.items()}
    package, files = sorted(sent.values(), key=len, reverse=True)
    assert {"cardialign/__init__.py", "cardialign/cluster/main.py", "cardialign/py.typed"} <= set(package)
    assert "cardialign/pretrain/recipes/simclr-tiny.yaml" in package and "cardialign/cluster/pages/page.css" in package
    assert all(re.fullmatch(r"cardialign/[\w/.-]+", name) for name in package)
    assert not [name for name in package if ".git" in name or "venv" in name or name.endswith((".pyc", ".db", ".npy"))]
    assert files == ["0/my own.yaml"] and told["files"] == len(package) + 1
    assert told["bytes"] == sum(map(len, board.packages.values())) < 3_000_000
    entrypoint = board.jobs[told["job"]]["entrypoint"]
    assert "--recipe \"$CARDIALIGN_FILES\"/'0/my own.yaml'" in entrypoint and str(tmp_path) not in entrypoint
    cardialign(*given, "two", *words[:-1], "/shared/runs/b", plain=True)
    assert [path for method, path in board.asked if method == "PUT"] == [
        f"/api/packages/gcs/{name}" for name in board.packages
    ], "what is there is not sent again"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "no command is given"),
        (["status", "x"], "`status` cannot be submitted"),
        (["pretrian"], "pretrian"),
        ([*RUN[1:], "--address", "auto"], "--address auto stands in the submitted command"),
        (RUN[1:-2], "--run-dir"),
        ([*RUN[1:-1], "runs/a"], "--run-dir runs/a is relative"),
        ([*RUN[1:-1], "~/a"], "~/a means the home folder of this machine"),
        ([*RUN[1:4], "--shards", "set", *RUN[-2:]], "--shards set is relative"),
        ([*RUN[1:4], "--mixture", "set=1", *RUN[-2:]], "--mixture set is relative"),
        (["cardialign", *RUN[1:]], "begins with cardialign"),
        (["/usr/bin/python3.11", "-m", "cardialign", *RUN[1:]], "begins with /usr/bin/python3.11"),
        (["demo"], "--out demo, which nobody gave, is relative"),
        (
            ["evaluate", "grid", "--encoder", "models:/a@b", "--sets", "csn=work/csn", "--out", "/s/g"],
            "--sets work/csn is relative",
        ),
        ([*RUN[1:], "--stepps", "3"], "unknown option --stepps"),
        ([*RUN[1:], "--lr", "fast"], "optimizer.lr"),
        ([*RUN[1:], "--gpu-kind", "H100", "--device", "cpu"], "exclude each other"),
        ([*RUN[1:], "--tracking-uri", "https://me:hunter2xyz@mlflow.example"], "holds a user or a password"),
        ([*RUN[1:], "--experiment", "with hunter2-token"], "the value of MY_API_TOKEN stands in the words"),
        ([*RUN[1:], "--run-dir", "a\0b"], "NUL"),
    ],
)
def test_words_are_judged_before_anything_is_sent(
    cardialign: Command, board: Dashboard, words: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "hunter2-token")
    answer = submit(cardialign, board, inner=["--", *words])
    assert answer.code == 2 and problem in result_of(answer)["problem"]
    assert "hunter2" not in answer.out + answer.err
    assert not board.asked


def test_a_command_that_names_no_place_of_this_machine_is_taken(cardialign: Command, board: Dashboard) -> None:
    answer = submit(cardialign, board, inner=["--", "doctor"])
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("words", "problem"), [(("--name", " "), "is empty"), (("--name", "a", "--wheel", "/no/x.whl"), "/no/x.whl cannot")]
)
def test_what_is_wrong_on_every_cluster_is_told_without_one(
    cardialign: Command, words: tuple[str, ...], problem: str
) -> None:
    answer = cardialign("submit", "--address", "http://127.0.0.1:1", "--json", *words, "--", "doctor", plain=True)
    assert answer.code == 2 and problem in result_of(answer)["problem"]


def test_a_command_that_stands_before_the_dashes_is_told_to_stand_behind_them(cardialign: Command) -> None:
    answer = cardialign("submit", "--name", "a", "pretrain", "--recipe", "cardialign-tiny")
    assert answer.code == 2 and "behind --: cardialign submit ... -- pretrain" in answer.json["remedy"]


@pytest.mark.parametrize("place", ["/tmp/runs/a", "/dev/shm/a", "HOME/runs/a"])
def test_a_folder_of_this_machine_alone_is_refused_for_a_cluster_elsewhere(
    cardialign: Command, board: Dashboard, place: str, tmp_path: Path
) -> None:
    answer = submit(cardialign, board, inner=[*RUN[:-1], place.replace("HOME", str(tmp_path / "home"))])
    assert answer.code == 2 and "which is this machine's alone" in result_of(answer)["problem"]
    assert not board.jobs and not board.packages


def test_a_name_continues_its_run_and_is_nobody_elses(
    cardialign: Command, board: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = result_of(submit(cardialign, board))["job"]
    again = submit(cardialign, board)
    assert again.code == 2 and first in result_of(again)["problem"] and "cardialign stop" in result_of(again)["remedy"]
    same_folder = submit(cardialign, board, name="two")
    assert f"/shared/runs/a is in use by job {first} of ada" in result_of(same_folder)["problem"]
    board.end(first, "FAILED", 75)
    other_folder = submit(cardialign, board, inner=[*RUN[:-1], "/shared/runs/b"])
    assert "belongs to the work in /shared/runs/a" in result_of(other_folder)["problem"]
    second = result_of(submit(cardialign, board))
    assert second["continues"] == first and second["job"] != first

    monkeypatch.setenv("CARDIALIGN_USER", "bob")
    theirs = result_of(submit(cardialign, board, inner=[*RUN[:-1], "/shared/runs/c"]))
    assert theirs["continues"] is None and theirs["job"].rpartition("-")[0] != first.rpartition("-")[0]
    mine = cardialign("list", "--address", board.address)
    assert [(job["name"], job["user"], job["run_dir"]) for job in mine.json["jobs"]] == [
        ("one", "bob", "/shared/runs/c")
    ]
    everybody = cardialign("list", "--all", "--address", board.address, plain=True)
    assert len(everybody.out.splitlines()) == 4 and "ada" in everybody.out


@pytest.mark.parametrize("name", ["Größe λ 心电图", "a/b c\\d", "x" * 300, "../../etc", "$(reboot) `id` '\"", "🫀"])
def test_names_of_any_kind_make_safe_ids_and_are_shown_as_given(
    cardialign: Command, board: Dashboard, name: str
) -> None:
    job = result_of(submit(cardialign, board, name=name))["job"]
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{1,63}", job)
    assert board.jobs[job]["metadata"]["name"] == name
    assert cardialign("status", name, "--address", board.address).json["job"] == job


def test_ids_of_two_names_or_users_differ_even_where_their_letters_do_not() -> None:
    ids = {first_id(name, user) for name in ("a b", "a-b", "A/b", "ä-b") for user in ("ada", "bob", "a")}
    assert len(ids) == 12


def test_a_job_that_another_shell_gave_in_the_same_moment_is_not_doubled(
    cardialign: Command, board: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cardialign.cluster.jobs import submission

    job = result_of(submit(cardialign, board))["job"]
    seen = submission.list_jobs
    answers = iter([list[Any]()])
    monkeypatch.setattr(submission, "list_jobs", lambda client: next(answers, None) or seen(client))
    second = submit(cardialign, board)
    assert second.code == 2 and job in result_of(second)["problem"] and list(board.jobs) == [job]


@pytest.mark.parametrize(
    ("spec", "runtime"),
    [("image", {}), ("cardialign==0.1.0", {"pip": {"packages": ["cardialign==0.1.0"], "pip_check": False}})],
)
def test_a_wheel_that_the_nodes_have_or_install_is_named_only(
    cardialign: Command, board: Dashboard, spec: str, runtime: dict[str, Any]
) -> None:
    told = result_of(submit(cardialign, board, "--wheel", spec))
    job = board.jobs[told["job"]]
    given = {key: value for key, value in job["runtime_env"].items() if key != "env_vars"}
    assert given == runtime and told["files"] == 0 and not board.packages
    assert "CARDIALIGN_COMMIT" not in job["runtime_env"]["env_vars"], "the commit of this checkout is not theirs"


def test_a_wheel_that_was_built_again_is_sent_again(cardialign: Command, board: Dashboard, tmp_path: Path) -> None:
    wheel = tmp_path / "cardialign-0.1.0-py3-none-any.whl"
    for number, content in enumerate((b"PKone", b"PKtwo", b"PKtwo")):
        wheel.write_bytes(content)
        submit(cardialign, board, "--wheel", wheel, name=str(number), inner=[*RUN[:-1], f"/shared/runs/{number}"])
    assert sorted(board.packages.values()) == [b"PKone", b"PKtwo"]
    assert all(re.fullmatch(r"cardialign-0\.1\.0-0\w+-py3-none-any\.whl", name) for name in board.packages)
    wheel.write_text("no wheel")
    assert "is no wheel" in result_of(submit(cardialign, board, "--wheel", wheel, name="x"))["problem"]


def test_a_cluster_of_an_older_ray_is_refused(cardialign: Command, board: Dashboard) -> None:
    board.ray_version = "2.9.3"
    answer = submit(cardialign, board, "--wheel", "cardialign==0.1.0")
    assert answer.code == 1 and "runs Ray 2.9.3; this package wants 2.60" in result_of(answer)["problem"]


def test_a_head_that_has_just_started_is_asked_again(
    cardialign: Command, board: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cardialign.cluster.jobs import job

    monkeypatch.setattr(job, "AGAIN_SECONDS", 0.0)
    board.starting = 3
    assert submit(cardialign, board).code == 0 and len(board.jobs) == 1
    monkeypatch.setattr(job, "STARTING_SECONDS", 0.0)
    board.starting = 99
    answer = submit(cardialign, board, name="two", inner=[*RUN[:-1], "/shared/runs/b"])
    assert answer.code == 1 and "takes no job" in result_of(answer)["problem"]
    assert "--dashboard-agent-listen-port" in result_of(answer)["remedy"]
