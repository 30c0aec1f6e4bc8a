"""The command line: quick help, one JSON object, readable errors, exit codes."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster import main as cli
from cardialign.cluster.commands import COMMANDS, GROUPS, module_of
from cardialign.data_shards.errors import DataError

HEAVY = (
    "torch",
    "pandas",
    "ray",
    "mlflow",
    "deepspeed",
    "transformers",
    "pyarrow",
    "scipy",
    "matplotlib",
    "numpy",
    "pydantic",
    "yaml",
    "jinja2",
)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from cardialign.cluster.main import main; main(['--help']); "
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().splitlines()[-1] == "HEAVY []"
    assert "pretrain" in done.stdout and "registry" in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = module_of(name)
    assert callable(module.run) and callable(module.add_arguments)
    assert cli.main([*name.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"cardialign {name}" in printed and "--json" in printed


@pytest.mark.parametrize("name", ["", *sorted(GROUPS)])
def test_every_group_lists_its_commands_as_they_are_written(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.main([*name.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    within = [told for command, told in COMMANDS.items() if command.rpartition(" ")[0] == name]
    assert within and all(f" {told}\n" in printed for told in within)


def test_every_group_has_a_line_of_help() -> None:
    assert {name.split()[0] for name in COMMANDS if " " in name} == set(GROUPS)


def test_a_working_folder_that_was_deleted_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch's mathematics ends the process there: "Cannot load libtorch_cpu.so"."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["recipes", "list"]) == 2
    assert "working folder of this command cannot be found" in capsys.readouterr().err


def test_module_and_command_are_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cardialign", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("cardialign ")


def test_unknown_command_is_wrong_usage_and_lists_the_known_ones(cardialign: Callable[..., Any]) -> None:
    answer = cardialign("shardz", "build")
    assert answer.code == 2 and answer.json["ok"] is False and answer.json["exit_code"] == 2
    assert "shardz" in answer.json["problem"] and "shards" in answer.json["problem"]


def test_unknown_option_is_wrong_usage(cardialign: Callable[..., Any]) -> None:
    answer = cardialign("shards", "verify", "somewhere", "--speed", "9", plain=True)
    assert answer.code == 2 and answer.out == ""
    assert "--speed" in answer.err and "cardialign shards verify --help" in answer.err


def _command_that(monkeypatch: pytest.MonkeyPatch, act: Callable[..., dict[str, Any]]) -> None:
    monkeypatch.setattr(module_of("registry list"), "run", act)


def test_user_error_is_one_message_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: Any) -> dict[str, Any]:
        raise DataError("shard 7 is torn", "build it again")

    _command_that(monkeypatch, fail)
    monkeypatch.delenv("CARDIALIGN_DEBUG", raising=False)
    assert cli.main(["registry", "list"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err == "cardialign: shard 7 is torn\n  remedy: build it again\n"

    assert cli.main(["registry", "list", "--json"]) == 1
    out, _ = capsys.readouterr()
    assert json.loads(out) == {
        "ok": False,
        "command": "registry list",
        "problem": "shard 7 is torn",
        "remedy": "build it again",
        "exit_code": 1,
    }

    assert cli.main(["registry", "list", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("CARDIALIGN_DEBUG", "1")
    assert cli.main(["registry", "list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(args: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    _command_that(monkeypatch, interrupt)
    assert cli.main(["registry", "list"]) == 130
    assert capsys.readouterr().err == "cardialign: interrupted\n"


def test_json_is_the_last_line_and_knows_numpy_paths_and_nan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pathlib import Path

    import numpy as np

    def noisy(args: Any) -> dict[str, Any]:
        sys.stdout.write("a library talks\n")
        return {
            "path": Path("a/b"),
            "count": np.int64(3),
            "figures": np.array([1.0, np.nan]),
            "share": float("inf"),
            "_table": "hidden",
        }

    _command_that(monkeypatch, noisy)
    assert cli.main(["registry", "list", "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["ok"] is True and values["seconds"] >= 0
    assert (values["path"], values["count"], values["figures"], values["share"]) == ("a/b", 3, [1.0, None], None)
    assert "_table" not in values


def test_stopped_at_a_checkpoint_is_75_and_not_ok(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command_that(monkeypatch, lambda args: {"exit_code": 75, "encoders": []})
    assert cli.main(["registry", "list", "--json"]) == 75
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize("threshold", [(700, 10, 10), (0, 10, 10), (200_000, 5, 5)])
def test_a_command_looks_for_garbage_rarely_and_leaves_the_collector_as_it_was(
    threshold: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, within = gc.get_threshold(), []
    monkeypatch.setattr(cli, "_main", lambda words, interrupts: within.append(gc.get_threshold()) or 7)
    try:
        gc.set_threshold(*threshold)
        assert cli.main(["recipes", "list"]) == 7 and gc.get_threshold() == threshold
        assert within[0][0] >= 100_000 or threshold[0] == within[0][0] == 0, "an import of torch is not gone through"
        monkeypatch.setattr(cli, "_main", lambda words, interrupts: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main([])
        assert gc.get_threshold() == threshold
    finally:
        gc.set_threshold(*before)
