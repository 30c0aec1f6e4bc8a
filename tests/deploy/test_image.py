"""`deploy/image/`: what the Containerfile promises, and the image itself where one can be built."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from cardialign.data_shards.files import write_json
from cardialign.data_shards.shown import SECRET_NAME
from cardialign.pretrain.run.files import LOCK, STOP, WORKERS
from cardialign.pretrain.run.lock import locked_run
from tests.support.kubernetes import objects, pods
from tests.support.readme import ROOT

IMAGE = ROOT / "deploy" / "image"
BUILD = "CARDIALIGN_IMAGE_BUILD"


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of every instruction, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (IMAGE / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def installs(text: str) -> list[str]:
    """The words behind `pip install`, line by line; which extras, and whether editable, is each one's own."""
    found = [line.strip() for line in re.findall(r"(?:\$\(PIP\)|python -m pip) (install [^\n]*?)(?:&&|\n|$)", text)]
    return [re.sub(r'(-e )?"\.\[.*\]"', "THE PACKAGE", line) for line in found]


def rest_of(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def test_the_packages_come_as_the_makefile_brings_them() -> None:
    makefile = installs((ROOT / "Makefile").read_text())
    assert len(makefile) == 4 and "THE PACKAGE" in makefile[-1] and "deepspeed" in makefile[-2]
    assert installs("\n".join(rest_of("RUN"))) == makefile
    assert all("-c constraints.txt" in line for line in makefile[1:])


def test_nothing_is_fetched_by_name_and_no_secret_stays() -> None:
    words = {word for word, _ in instructions()}
    assert "ADD" not in words
    text = "\n".join(rest for _, rest in instructions())
    assert not re.search(r"https?://|\bcurl\b|\bwget\b|\bgit clone\b", text)
    assert all(rest.split()[0] in ("${BASE}", "${RUN_BASE}") for rest in rest_of("FROM"))
    variables = [pair.partition("=")[0] for rest in [*rest_of("ENV"), *rest_of("ARG")] for pair in shlex.split(rest)]
    assert variables and not [name for name in variables if SECRET_NAME.search(name)]
    assert "--mount=type=secret,id=pip" in text, "an index with a password is reached without leaving it behind"


def test_it_runs_as_nobody_and_writes_to_two_folders() -> None:
    last = max(number for number, (word, _) in enumerate(instructions()) if word == "FROM")
    final = instructions()[last:]
    user = next(rest for word, rest in final if word == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number: Kubernetes can tell that it is not root"
    manifests = [one for path in (ROOT / "deploy").glob("*/*.yaml") for one in objects(path) if "kind" in one]
    securities = [pod["securityContext"] for manifest in manifests for pod in pods(manifest)]
    assert securities and {f"{one['runAsUser']}:{one['runAsGroup']}" for one in securities} == {user}
    variables = dict(pair.split("=", 1) for word, rest in final if word == "ENV" for pair in shlex.split(rest))
    writable = json.loads(next(rest for word, rest in final if word == "VOLUME"))
    assert writable == [variables["HOME"], variables["TMPDIR"]]
    places = [name for name in variables if re.search(r"HOME|DIR$", name)]
    assert len(places) >= 6 and all(any(variables[name].startswith(top) for top in writable) for name in places)


def test_a_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".containerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*" and "**/.*" in lines
    copied = [word for rest in rest_of("COPY") if "--from" not in rest for word in rest.split()[:-1]]
    assert {line[1:] for line in lines if line[0] == "!"} == set(copied)
    if (ROOT / "cardialign").is_dir():  # the wheel is tested where no checkout is
        assert not [name for name in copied if not (ROOT / name).exists()]


def script(name: str, *words: object, **variables: str) -> subprocess.Popen[str]:
    command = ["sh", str(IMAGE / name), *map(str, words)]
    return subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("codes", "ends", "starts"), [("75 75 0", 0, 3), ("75 2", 2, 2), ("1", 1, 1)])
def test_a_command_goes_on_after_75_and_only_then(codes: str, ends: int, starts: int, tmp_path: Path) -> None:
    (tmp_path / "codes").write_text(codes)
    take = 'read -r first rest <codes; echo "$rest" >codes; echo start >>starts; exit "$first"'
    command = ["sh", "-c", f"cd {tmp_path}; {take}"]
    process = script("keep-going", *command, PAUSE="0", TMPDIR=str(tmp_path))
    assert process.wait(timeout=30) == ends
    assert len((tmp_path / "starts").read_text().split()) == starts


def test_a_command_is_not_started_again_on_a_node_that_ends(tmp_path: Path) -> None:
    (tmp_path / "ending").touch()
    assert script("keep-going", "sh", "-c", "exit 75", PAUSE="0", TMPDIR=str(tmp_path)).wait(timeout=30) == 75


def test_a_node_that_goes_asks_its_own_runs_and_waits_for_them(tmp_path: Path) -> None:
    mine, other, ended = (tmp_path / "runs" / name for name in ("mine", "other", "ended"))
    for run, host in ((mine, os.uname().nodename), (other, "elsewhere"), (ended, os.uname().nodename)):
        (run / WORKERS).mkdir(parents=True)
        write_json(run / WORKERS / "rank-0.json", {"pid": 1, "host": host}, indent=1)
    (other / LOCK).write_text('{"pid": 7, "host": "elsewhere"}')
    with locked_run(mine):
        process = script("ask-to-stop", tmp_path / "runs", 60, TMPDIR=str(tmp_path))
        deadline = time.monotonic() + 30
        while not (mine / STOP).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert process.poll() is None, "it waits for the checkpoint"
    assert process.wait(timeout=30) == 0
    assert not (other / STOP).exists() and not (ended / STOP).exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_image_trains_as_nobody_on_a_read_only_root(tmp_path: Path) -> None:
    """CARDIALIGN_IMAGE_BUILD: `buildah ... build ...` with a BASE that is at hand, all but file, name and context."""
    build = shlex.split(os.environ.get(BUILD, ""))
    if not build or shutil.which(build[0]) is None:
        pytest.skip(
            f"{BUILD} names no command that builds on a base image at hand (buildah ... build --build-arg BASE=...); "
            "the same steps, in the same order, are those of `make install`"
        )
    subprocess.run([*build, "-f", IMAGE / "Containerfile", "-t", "cardialign-test", ROOT], check=True, timeout=3000)
    tool = build[: build.index("build")]

    def ask(*words: str) -> str:
        return subprocess.run([*tool, *words], check=True, capture_output=True, text=True, timeout=900).stdout.strip()

    container = ask("from", "--pull-never", "cardialign-test")
    try:
        root = ask("mount", container)
        assert not [path for path in Path(root).rglob(".git") if path.is_dir()]
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", INSIDE, "sh", root], text=True,
            capture_output=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0 and "trained" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    finally:
        ask("rm", container)


INSIDE = r"""
mount --bind "$1" "$1"
for place in tmp home/cardialign dev/shm; do mkdir -p "$1/$place"; done
mount --rbind /dev "$1/dev"; mount -t proc none "$1/proc"
mount -o remount,bind,ro "$1"
for place in tmp home/cardialign dev/shm; do mount -t tmpfs -o mode=1777 none "$1/$place"; done
if touch "$1/opt/a" 2>/dev/null; then echo "the root is not read-only"; exit 1; fi
exec chroot --userspec=10001:10001 "$1" /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/cardialign \
  TMPDIR=/tmp USER=cardialign XDG_CACHE_HOME=/home/cardialign/.cache MPLCONFIGDIR=/home/cardialign/.cache/m \
  HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 sh -ec '
    cd; id -u
    cardialign cohort work --patients 20 --sampling-rate 100
    cardialign shards build mimic-iv-ecg --root work --labels work/truth.csv --sampling-rate 100 --out shards
    cardialign pretrain --recipe simclr-tiny --shards shards --run-dir run --workers 1 \
      --set training.epochs=null --set training.steps=2 --set training.global_batch=16
    test -s run/export/model.safetensors; command -v serve-mlflow keep-going ask-to-stop; echo trained'
"""
