"""A run on other reports than its set's own: it reads them, its resume holds it to them, its export says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.build.overlay import write_overlay
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.data import open_bank, open_data
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.tiny_shards import HashingEncoder, config_for, make_shards


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shards`, and three folders of reports: `same` says what the set says, `more` and `else` say more, each of other
    records."""
    root = tmp_path_factory.mktemp("other")
    plain = ShardSet.open(make_shards(root / "shards"))
    table = [tuple(each) for each in plain.reports.column("statements").to_pylist()]
    own = [table[number] for number in plain.report.tolist()]
    for name, words in (("same", ()), ("more", ("Tall T", "")), ("else", ("", "Tall T"))):
        said = [(*s, *filter(None, words[k % 2 : k % 2 + 1])) if words else s for k, s in enumerate(own)]
        write_overlay(plain, root / name, [said], {"kind": name})
    return root


def with_reports(root: Path, name: str | None, **training: Any) -> dict[str, Any]:
    values = config_for(root / "shards", **training).resolved()
    values["data"]["reports"] = None if name is None else str(root / name)
    return {**values, "method": {"name": "fg_clep"}, "collapse": {"enabled": False}}


def jobs(rank: int, world: int, root: Path, out: Path, wanted: list[tuple[str, str | None, int]]) -> None:
    for name, reports, steps in wanted:
        train(parse_config(with_reports(root, reports, steps=steps)), out / name, NullObserver())


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in read_trace(run_dir)]


@pytest.mark.slow
@pytest.mark.processes
def test_the_reports_that_are_named_are_the_ones_that_teach_and_a_resume_takes_no_others(
    root: Path, tmp_path: Path
) -> None:
    for name in ("same", "more", "else"):
        build_text_bank(ShardSet.open(root / "shards", reports=root / name), HashingEncoder())
    wanted: list[tuple[str, str | None, int]] = [("plain", None, 6), ("same", "same", 6), ("more", "more", 6)]
    run_ranks(1, jobs, root, tmp_path, wanted, init=False, deadline=100)
    assert losses(tmp_path / "plain") == losses(tmp_path / "same"), "the same words by another door"
    assert losses(tmp_path / "plain") != losses(tmp_path / "more")

    config = parse_config(with_reports(root, "else", steps=6))
    with pytest.raises(UserError, match="was trained with another text bank"):
        train(config, tmp_path / "more", NullObserver())
    moved = tmp_path / "moved"
    shutil.copytree(root / "more", moved)
    values = with_reports(root, "more", steps=6)
    values["data"]["reports"] = str(moved)
    assert train(parse_config(values), tmp_path / "more", NullObserver()).resumed_from == 6

    told = export_run(tmp_path / "more", program=False)
    export = Path(told["path"])
    provenance = json.loads((export / "provenance.json").read_text())
    overlay = ShardSet.open(root / "shards", reports=root / "more").overlay
    assert overlay is not None
    assert provenance["training"]["reports"] == [{"digest": overlay.digest, "made": [{"kind": "more"}]}]
    assert provenance["trained_on"]["unknown"] == [] and provenance["bias"] < 0
    assert str(root) not in (export / "config.json").read_text()


def test_the_order_and_the_selection_are_those_of_the_set(root: Path) -> None:
    (_, one, first), (_, two, second) = (open_data(parse_config(with_reports(root, n))) for n in (None, "more"))
    assert one.fingerprint == two.fingerprint
    assert all((first.batch(step) == second.batch(step)).all() for step in range(4))


def test_without_their_bank_they_are_refused_with_the_command_that_builds_it(root: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(root / "more", bare, ignore=shutil.ignore_patterns("text_bank"))
    values = {**with_reports(root, "more")}
    values["data"]["reports"] = str(bare)
    with pytest.raises(UserError) as caught:
        open_bank(parse_config(values))
    assert caught.value.remedy.endswith(f"--encoder minilm --reports {bare}")


def test_a_method_without_reports_a_mixture_and_a_relative_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="method simclr reads no reports"):
        open_data(parse_config({**with_reports(root, "more"), "method": {"name": "simclr"}}))
    with pytest.raises(UsageError, match="give each part its own"):
        parse_config({"data": {"reports": "x", "mixture": [{"shards": "a"}]}})
    monkeypatch.chdir(tmp_path)
    placed = load_config("fg-clep", ["data.shards=a", "data.reports=b"]).data
    assert placed.reports == tmp_path / "b"
    both = load_config("fg-clep", ["data.mixture=[{shards: a, reports: b}, {shards: c}]"])
    assert [part.reports for part in both.data.parts] == [tmp_path / "b", None]
