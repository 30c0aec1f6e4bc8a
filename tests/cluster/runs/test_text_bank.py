"""What a method reads of its reports is there before its run starts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.commands.text_bank import build
from cardialign.cluster.runs import lifecycle
from cardialign.cluster.runs.text_bank import find_text_bank
from cardialign.data_shards.text.bank import TextBank
from cardialign.pretrain.config import load_config
from tests.support.tiny_shards import make_shards


def test_a_run_makes_the_table_of_distant_reports_that_its_method_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards(tmp_path / "shards")
    config = load_config("d-beta", [f"data.shards={shards}", "method.distant=3", "text.max_tokens=128"])
    commands: list[list[str]] = []

    def in_this_process(words: list[str]) -> dict[str, Any]:
        commands.append(words)
        parser = argparse.ArgumentParser()
        build.add_arguments(parser)
        return build.run(parser.parse_args(words[2:]))

    monkeypatch.setattr("cardialign.cluster.cli.subcommand.run_command", in_this_process)
    assert find_text_bank(shards, config.text) is not None, "the bank is there, and the table is not"
    assert find_text_bank(shards, config.text, distant=3) is None
    for _ in range(2):
        assert lifecycle._bank(config.data.parts[0], config)["path"] == str(TextBank.open(shards).path)
    assert len(commands) == 1, "what is there is not made again"
    bank = TextBank.open(shards)
    assert bank.distant(3).shape == (len(bank), 3)
    plain = load_config("d-beta", ["method.replaced=0", "method.distant=5", f"data.shards={shards}"])
    assert plain.method.distant_reports == 0, "a method that replaces no report needs no table"
