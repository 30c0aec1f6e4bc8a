"""A build killed before any one of its file operations, and run again: the same bytes, or an error, never another
set."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.record import SignalSpec
from tests.data_shards.build.test_build import digests
from tests.support.small_source import SmallSource

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
EVERY = [13, pytest.param(1, marks=pytest.mark.slow)]
"""Of the file operations of a build, the test kills before every so many; 1 takes a minute."""


def build(out: Path, records: int, overwrite: bool = False) -> None:
    build_shards(
        SmallSource(records, samples=20),
        out,
        SetPlan(SignalSpec(500, 0.04), records_per_shard=4),
        workers=1,
        overwrite=overwrite,
    )


def killed_before(operation: int, out: Path, records: int, overwrite: bool) -> bool:
    """The build in a forked process that dies just before its n-th operation on a file below `out`; False when it had
    fewer and ended well."""
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event in OPERATIONS and str(arguments[0]).startswith(str(out)):
                seen += 1
                if seen == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            build(out, records, overwrite)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the build failed by itself"
    return os.WIFSIGNALED(status)


def problem_of(out: Path, records: int) -> str:
    """Why the same build will not go on in `out`; "" when it did."""
    try:
        build(out, records)
    except DataError as error:
        return error.problem
    return ""


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("before", ["nothing", "a larger set", "an unfinished build"])
def test_a_build_killed_before_any_file_operation_ends_in_the_same_bytes(
    tmp_path: Path, before: str, every: int
) -> None:
    build(tmp_path / "wanted", 6)
    build(tmp_path / "larger", 9)
    wanted, larger = digests(tmp_path / "wanted"), digests(tmp_path / "larger")
    out, overwrite = tmp_path / "set", before != "nothing"
    operation, kills = 1 + (before != "nothing"), 0
    while True:
        if before == "a larger set":
            shutil.copytree(tmp_path / "larger", out)
        elif before == "an unfinished build":
            assert killed_before(40, out, 9, False) and (out / ".build/plan.json").exists()
        if not killed_before(operation, out, 6, overwrite):
            break
        kills += 1
        problem = problem_of(out, 6)
        if problem:
            assert "already holds a finished" in problem or "another plan" in problem, operation
            if (out / "manifest.json").exists():
                whole = {name: digest for name, digest in digests(out).items() if not name.startswith(".build")}
                assert whole in (wanted, larger), operation
            build(out, 6, overwrite=True)
        assert digests(out) == wanted, operation
        shutil.rmtree(out)
        operation += every
    assert digests(out) == wanted and kills > 3
