"""The card says what a version is, what was measured and what was not; words of others do not act in it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.registry.card import BEGIN, DEVICE_FIGURE, END, SPEED, markdown, read_card
from cardialign.cluster.registry.registry import register
from cardialign.cluster.tracking.mlflow_store import experiment_id, open_client
from cardialign.pretrain.export.missing_card import add_card, sealed
from cardialign.pretrain.export.model_card import said
from cardialign.pretrain.run.integrity import verify_export
from tests.support.registered import COMMIT, NAME, evaluated, export_of, registered
from tests.support.scored_records import scored_records


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, exported: Path, empty_store: Path) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("cards")
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    registered(exported, folder / "export", "carded", uri)
    return uri, folder


def test_a_card_is_written_when_an_encoder_is_registered_and_again_with_each_evaluation(
    store: tuple[str, Path], cardialign: Callable[..., Any]
) -> None:
    uri, folder = store
    client = open_client(uri)
    before = client.get_model_version("carded", "1").description
    for words in (
        "Not a medical device",
        "not measured",
        "| leads | I, II, III, aVR",
        "| sampling rate | 100 |",
        COMMIT,
    ):
        assert words in before
    assert f"| ptb-xl | 800 | 700 | {said({'folds': [1, 2], 'split': None})} | {'f' * 64} | CC BY 4.0 |" in before
    client.update_model_version("carded", "1", f"Ask Ann before use.\n\n{before}\n\nSeen by Bob.")
    evaluated("carded/1", folder / "export", uri, scored_records(1.5))
    version = client.get_model_version("carded", "1")
    assert version.description.startswith("Ask Ann before use.") and version.description.endswith("Seen by Bob.")
    assert version.description.count(BEGIN) == version.description.count(END) == 1
    shown = cardialign("registry", "show", "carded@candidate", "--tracking-uri", uri, plain=True)
    (line,) = [line for line in shown.out.splitlines() if NAME in line]
    assert line in version.description and line.endswith("| 200 | 100 | none |")
    (text,) = Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://")).rglob("card.md")
    assert text.read_text() == shown.out
    assert cardialign("registry", "show", "carded/1", "--tracking-uri", uri).json["evaluations"][0]["n"] == 200


@pytest.mark.parametrize("names", [(SPEED, DEVICE_FIGURE), ("records_per_second", "data_device_wait_seconds")])
def test_the_cost_is_the_time_of_every_step_at_the_speed_that_was_logged(
    store: tuple[str, Path], exported: Path, names: tuple[str, str]
) -> None:
    """Under today's names, and under those of a run that an earlier release logged."""
    name = f"cost-{len(names[0])}"
    uri, _ = store
    client = open_client(uri)
    run = client.create_run(experiment_id(client, uri)).info.run_id
    for key, value in (("training.global_batch", 100), ("workers", 2)):
        client.log_param(run, key, value)
    for step, speed in ((20, 50.0), (10, 100.0)):  # 10 steps of 100 at 100/s: 10 s; 10 more at 50/s: 20 s
        client.log_metric(run, names[0], speed, step=step)
    register(exported, name, uri, run)
    cost = read_card(f"{name}/1", uri)["cost"]
    assert cost["core_hours"] == pytest.approx(2 * 30 / 3600) and cost["gpu_hours"] == 0
    assert cost["records_per_second"] == pytest.approx(2000 / 30)
    client.log_metric(run, names[1], 0.1)
    assert read_card(f"{name}/1", uri)["cost"]["gpu_hours"] == pytest.approx(2 * 30 / 3600)
    assert read_card("carded/1", uri)["cost"] is None
    client.log_param(run, "cpus_per_worker", 4)
    placed = read_card(f"{name}/1", uri)["cost"]
    assert placed["core_hours"] == pytest.approx(4 * 2 * 30 / 3600)
    assert placed["gpu_hours"] == pytest.approx(2 * 30 / 3600), "one GPU for each worker, whatever its cores"


def test_words_of_others_act_neither_on_markdown_nor_on_a_terminal(
    store: tuple[str, Path], exported: Path, tmp_path: Path, cardialign: Callable[..., Any]
) -> None:
    assert said("a|b\n<script>x</script>\x1b[2J[l](u)`c`") == (r"a\|b\\n\<script\>x\</script\>\\x1b\[2J\[l\](u)\`c\`")
    uri, name = store[0], "Ärzte | <b>x<b> _y_"
    export = export_of(exported, tmp_path / "a", digest="<img src=x>|\n# not a title")
    register(export, name, uri)
    client = open_client(uri)
    client.set_model_version_tag(
        name, "1", "evidence.x", '{"digest": "' + "0" * 64 + '", "name": "| \\u001b[2J\\n# x"}'
    )
    shown = cardialign("registry", "show", name, "--tracking-uri", uri, plain=True)
    assert shown.code == 0 and "\x1b" not in shown.out and not re.search(r"(?<!\\)[<`]", shown.out)
    assert [line for line in shown.out.splitlines() if line.startswith("# ")] == [
        r"# Ärzte \| \<b\>x\<b\> \_y\_, version 1"
    ]
    assert all(line.count(" | ") == 5 for line in shown.out.splitlines() if "\\x1b" in line)


def test_a_long_card_fits_a_description_and_says_where_the_rest_is(store: tuple[str, Path], exported: Path) -> None:
    uri, _ = store
    register(exported, "long", uri)
    client = open_client(uri)
    for number in range(12):
        value = {"digest": f"{number:064d}", "name": f"zero-shot:{'w' * 500}", "macro": 0.5}
        client.set_model_version_tag("long", "1", f"evidence.{number}", json.dumps(value))
    register(exported, "long", uri)
    described = client.get_model_version("long", "1").description
    assert len(described) <= 5000 and "the rest is in card.md" in described and described.endswith(END)
    assert len("\n".join(markdown(read_card("long/1", uri)))) > 6000


def test_a_missingness_card_of_the_export_stands_in_the_card_of_its_version(
    store: tuple[str, Path], exported: Path, tmp_path: Path, cardialign: Callable[..., Any]
) -> None:
    lost = {"value": 0.021, "low": 0.0141, "high": 0.029}
    measured = {"measure": "zero-shot", "on": "p", "records": 9, "surfaces": [{"cells": []}]}
    export = Path(shutil.copytree(exported, tmp_path / "measured"))
    add_card(
        export, sealed({**measured, "presets": [{"leads": ["I", "II", "V2"], "lost": lost}]}, verify_export(export))
    )
    register(export, "measured", store[0])
    shown = cardialign("registry", "show", "measured/1", "--tracking-uri", store[0], plain=True)
    assert "## points of macro AUROC lost with leads missing, p (9 records, zero-shot)" in shown.out
    assert "| only I, II, V2 | -2.1 (1.4 to 2.9) |" in shown.out
    assert read_card("carded/1", store[0])["missing_leads"] is None


def test_what_is_no_encoder_of_ours_has_no_card(store: tuple[str, Path], cardialign: Callable[..., Any]) -> None:
    client = open_client(store[0])
    client.create_registered_model("theirs")
    client.create_model_version("theirs", source=(store[1] / "nothing").as_uri())
    answer = cardialign("registry", "show", "theirs", "--tracking-uri", store[0])
    assert answer.code == 1 and "theirs/1: its artifacts cannot be fetched" in answer.json["problem"]
