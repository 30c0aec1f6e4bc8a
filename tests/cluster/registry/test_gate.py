"""Production takes only what shows that it is fit: real stores, real files, every missing piece by name."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.cluster.registry import promotion
from cardialign.cluster.registry.gate import examine
from cardialign.cluster.registry.promotion import Demands, history, promote, rollback
from cardialign.cluster.registry.registry import register
from cardialign.cluster.registry.requirements import Policy, Requirement
from cardialign.cluster.tracking.mlflow_store import experiment_id, open_client
from cardialign.data_shards.errors import UsageError, UserError
from tests.support.registered import COMMIT, NAME, clone, evaluated, export_of, registered
from tests.support.scored_records import scored_records

WANTED = Demands(require=("clean-v2:ptb-xl-super",))


UNSCORED, WORSE, EQUAL, BETTER = 2, 3, 4, 5
"""Versions of every model here; 1 is in production."""
SIGNALS = {1: 1.5, WORSE: 0.6, EQUAL: 1.5, BETTER: 2.5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, exported: Path) -> tuple[str, Path]:
    """A store with the model `template`, and the folder of its exports."""
    folder = tmp_path_factory.mktemp("gate")
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for version in (1, UNSCORED, WORSE, EQUAL, BETTER):
        export = folder / str(version)
        assert registered(exported, export, "template", uri, steps=version) == version
        if version in SIGNALS:
            evaluated(f"template/{version}", export, uri, scored_records(SIGNALS[version]))
        if version == 1:
            promote("template/1", "production", uri, WANTED)
    return uri, folder


@pytest.fixture(scope="module")
def store(made: tuple[str, Path]) -> str:
    return made[0]


@pytest.fixture
def name(store: str, request: pytest.FixtureRequest) -> str:
    """A model of its own with these versions."""
    clone(store, "template", request.node.name)
    return str(request.node.name)


@pytest.fixture
def score(made: tuple[str, Path], name: str) -> Callable[..., None]:
    def log(version: int, scored: Any, **how: Any) -> None:
        evaluated(f"{name}/{version}", made[1] / str(version), made[0], scored, **how)

    return log


def state(store: str, name: str) -> tuple[Any, ...]:
    client = open_client(store)
    model = client.get_registered_model(name)
    versions = [client.get_model_version(name, str(number)).tags for number in sorted({*model.aliases.values()})]
    return dict(model.aliases), dict(model.tags), versions


def refused(reference: str, store: str, demands: Demands = WANTED) -> str:
    """What is missing; and that the refusal changed nothing."""
    name = reference.partition("/")[0].partition("@")[0]
    before = state(store, name)
    with pytest.raises(UserError, match="missing or wrong") as raised:
        promote(reference, "production", store, demands)
    assert state(store, name) == before
    assert "--force REASON" in raised.value.remedy
    return raised.value.problem


def test_everything_that_a_bare_encoder_lacks_is_named_at_once(store: str, exported: Path) -> None:
    register(exported, "bare", store)
    told = refused("bare@candidate", store)
    assert "4 things" in told
    for piece in ("fingerprint of the shards", "records in their order", "commit of the code"):
        assert piece in told
    assert f"no evaluation {NAME} of bare/1" in told
    assert (
        "evaluate zero-shot --encoder models:/bare/1 --shards SHARDS --protocol clean-v2:ptb-xl-super --track" in told
    )
    assert "nothing says which this model needs" in refused("bare@candidate", store, Demands())


def test_the_first_with_all_of_it_passes_and_leaves_a_record(name: str, store: str) -> None:
    (move,) = history(open_client(store).get_registered_model(name).tags, "production")
    assert (move["from"], move["to"]) == (None, 1) and len(move["evidence"]) == 64 and "forced" not in move


def by_pairs(signal: float) -> float:
    scored = scored_records(signal)
    columns = [(scored.scores[0][:, c], scored.truth[:, c]) for c in range(2)]
    return float(np.mean([(scores[has][:, None] > scores[~has]).mean() for scores, has in columns]))


def test_a_worse_candidate_is_refused_with_the_paired_figure(name: str, store: str) -> None:
    told = refused(f"{name}/{WORSE}", store)
    assert "1 thing " in told and "worse than production" in told and "on 200 records of 100 patients, margin 0" in told
    mine, theirs = by_pairs(0.6), by_pairs(1.5)
    assert f"{mine:.3f}, production ({name}/1) {theirs:.3f}, paired difference {mine - theirs:+.4f}" in told
    assert promote(f"{name}/{WORSE}", "production", store, replace(WANTED, margin=0.4))["version"] == WORSE
    assert history(open_client(store).get_registered_model(name).tags, "production")[-1]["margin"] == 0.4


@pytest.mark.parametrize("version", [EQUAL, BETTER], ids=["equal", "better"])
def test_an_equal_or_better_candidate_passes(name: str, store: str, version: int) -> None:
    moved = promote(f"{name}/{version}", "production", store, WANTED)
    assert (moved["before"], moved["version"], moved["forced"]) == (1, version, [])
    (found,) = moved["compared"]
    assert found["difference"] == pytest.approx(by_pairs(SIGNALS[version]) - by_pairs(1.5), abs=1e-12)
    assert found["high"] >= 0 and found["records"] == 200


def test_scores_of_other_records_are_no_comparison(name: str, store: str, score: Callable[..., None]) -> None:
    score(UNSCORED, scored_records(3.0, records="s" * 64))
    told = refused(f"{name}/{UNSCORED}", store)
    assert f"of production, {name}/1, is on other records" in told
    assert f"--encoder models:/{name}/1 --shards SHARDS --protocol clean-v2:ptb-xl-super --track" in told
    score(1, scored_records(2.9, records="s" * 64))
    assert promote(f"{name}/{UNSCORED}", "production", store, WANTED)["version"] == UNSCORED


def test_a_figure_of_its_own_training_records_is_no_evidence(name: str, store: str, score: Callable[..., None]) -> None:
    score(UNSCORED, scored_records(3.0), trained_on="found")
    assert "scored on records that it was trained on" in refused(f"{name}/{UNSCORED}", store)
    assert "scored on records that it was trained on" in refused(f"{name}/{UNSCORED}", store, Demands())


def test_what_was_tried_beside_good_evidence_is_told_and_keeps_nobody_out(
    name: str, store: str, score: Callable[..., None]
) -> None:
    score(BETTER, scored_records(3.0, records="t" * 64), trained_on="found")
    score(BETTER, scored_records(3.0, records="u" * 64), trained_on="found", name="zero-shot:curious")
    score(1, scored_records(1.5), name="zero-shot:older")
    moved = promote(f"{name}/{BETTER}", "production", store, WANTED)
    assert moved["version"] == BETTER and len(moved["compared"]) == 1
    assert [f"{told} of {name}/{BETTER} was scored on records that it was trained on" in " ".join(moved["remarks"])
            for told in (NAME, "zero-shot:curious")] == [True, True]  # fmt: skip
    assert any(f"was also measured by zero-shot:older; {name}/{BETTER} was not" in each for each in moved["remarks"])
    promote(f"{name}/1", "production", store, replace(WANTED, force="back"))
    score(BETTER, scored_records(3.0, records="v" * 64), trained_on="found", name="zero-shot:older")
    assert "zero-shot:older" in refused(f"{name}/{BETTER}", store), "production shows it on records it has not seen"


def test_a_change_of_the_signal_contract_is_told_to_consumers_first(
    name: str, store: str, exported: Path, tmp_path: Path
) -> None:
    contract = {"sampling_rate": 250.0, "units": "uV"}
    version = registered(exported, tmp_path / "other", name, store, contract=contract)
    evaluated(f"{name}/{version}", tmp_path / "other", store, scored_records(1.5))
    told = refused(f"{name}@candidate", store)
    assert "sampling rate 100.0 -> 250.0; units mV -> uV" in told and "--acknowledge-contract" in told
    assert promote(f"{name}/{version}", "production", store, replace(WANTED, acknowledge_contract=True))["before"] == 1


def test_what_is_forced_is_kept_with_who_when_why_and_what_was_missing(name: str, store: str) -> None:
    with pytest.raises(UsageError, match="no reason"):
        Demands(force="  ")
    moved = promote(f"{name}/{UNSCORED}", "production", store, replace(WANTED, force="clinic waits\x1b[2J"))
    assert moved["version"] == UNSCORED and len(moved["forced"]) == 1
    client = open_client(store)
    move = history(client.get_registered_model(name).tags, "production")[-1]
    kept = json.loads(client.get_model_version(name, str(UNSCORED)).tags["forced.production"])
    for told in (move, kept):
        assert told["forced"].startswith("clinic waits") and told["by"] and told["time"]
        assert told["missing"] == [f"no evaluation {NAME} of {name}/{UNSCORED}"]


def artifacts(store: str, name: str, version: int) -> Path:
    """The folder of the run behind a version."""
    client = open_client(store)
    run = client.get_run(client.get_model_version(name, str(version)).run_id)
    return Path(run.info.artifact_uri.removeprefix("file://"))


@contextlib.contextmanager
def changed(path: Path) -> Iterator[None]:
    """With one bit of its last byte turned; a JSON stays one."""
    content = path.read_bytes()
    last = max(content.rfind(b"0"), content.rfind(b"1")) if path.suffix == ".json" else len(content) - 1
    path.write_bytes(content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :])
    try:
        yield
    finally:
        path.write_bytes(content)


def test_damaged_files_are_let_through_by_no_force_and_no_rollback(name: str, store: str) -> None:
    (weights,) = artifacts(store, name, BETTER).rglob("model.safetensors")
    with changed(weights), pytest.raises(UserError, match=r"model\.safetensors: content changed") as told:
        promote(f"{name}/{BETTER}", "production", store, replace(WANTED, force="now"))
    assert told.value.problem.startswith(f"{name}/{BETTER} is not as it was written"), "no folder of ours is named"
    assert int(open_client(store).get_registered_model(name).aliases["production"]) == 1
    promote(f"{name}/{BETTER}", "production", store, WANTED)
    (config,) = artifacts(store, name, 1).rglob("config.json")
    with changed(config), pytest.raises(UserError, match=r"config\.json: content changed"):
        rollback(name, store)
    assert int(open_client(store).get_registered_model(name).aliases["production"]) == BETTER


def test_a_promotion_that_somebody_else_overtook_is_judged_again(
    name: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_client(store)

    def examined(*given: Any) -> Any:
        verdict = examine(*given)
        client.set_registered_model_alias(name, "production", str(BETTER))  # while the scores were compared
        return verdict

    monkeypatch.setattr(promotion, "examine", examined)
    with pytest.raises(UserError, match=f"was moved to version {BETTER} meanwhile"):
        promote(f"{name}/{EQUAL}", "production", store, WANTED)
    assert int(client.get_registered_model(name).aliases["production"]) == BETTER


@pytest.mark.parametrize("file", ["scores.safetensors", "evidence.json"])
def test_changed_evidence_is_named_and_none(name: str, store: str, file: str) -> None:
    (path,) = artifacts(store, name, EQUAL).rglob(file)
    with changed(path):
        told = refused(f"{name}/{EQUAL}", store)
        assert f"{NAME} of {name}/{EQUAL} cannot be used: its files are not as they were written" in told
        assert f"no evaluation {NAME}" in told


def test_evidence_of_one_encoder_is_none_of_another(name: str, store: str) -> None:
    client = open_client(store)
    ours, theirs = (artifacts(store, name, version) / "evidence" for version in (1, UNSCORED))
    shutil.copytree(ours, theirs, dirs_exist_ok=True)
    for key, value in client.get_model_version(name, "1").tags.items():
        if key.startswith("evidence."):
            client.set_model_version_tag(name, str(UNSCORED), key, value)
    told = refused(f"{name}/{UNSCORED}", store)
    assert "it is of another encoder" in told and f"no evaluation {NAME} of {name}/{UNSCORED}" in told


@pytest.mark.slow
def test_tags_of_others_are_words_not_evidence(name: str, store: str) -> None:
    client = open_client(store)
    hostile = ["{", "[]", '{"digest": "../../etc", "name": "x"}', '{"digest": 5}', "[" * 4000, "null", "\x1b[2J"]
    for number, value in enumerate(hostile):
        for version in (UNSCORED, EQUAL):
            client.set_model_version_tag(name, str(version), f"evidence.{number}", value)
        client.set_registered_model_tag(name, f"promotion.production.9999-{number}", value)
    assert "1 thing " in refused(f"{name}/{UNSCORED}", store)
    assert promote(f"{name}/{EQUAL}", "production", store, WANTED)["version"] == EQUAL
    assert rollback(name, store)["version"] == 1


@pytest.mark.slow
def test_the_registry_itself_says_what_a_model_needs_and_no_option_weakens_it(name: str, store: str) -> None:
    client = open_client(store)
    client.set_registered_model_tag(name, "gate.require", "linear-probe:clean-v2:csn@10, clean-v2:ptb-xl-super")
    client.set_registered_model_tag(name, "gate.margin", "0.01")
    told = refused(f"{name}/{WORSE}", store, Demands(margin=0.4))
    assert (
        "no evaluation linear-probe:clean-v2:csn@10" in told and "--protocol clean-v2:csn --shares 10 --track" in told
    )
    assert "worse than production" in told and "margin 0.01" in told
    for tag, junk in (("gate.margin", "-1"), ("gate.margin", "nan"), ("gate.require", "a@b@c")):
        client.set_registered_model_tag(name, tag, junk)
        with pytest.raises(UserError, match=r"gate\.margin|names no evaluation"):
            promote(f"{name}/{EQUAL}", "production", store, WANTED)
        client.set_registered_model_tag(name, "gate.margin", "0.01")


def test_policies_add_up_and_the_smallest_margin_counts(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("require: [clean-v2:ptb-xl-sub]\nmargin: 0.02\n")
    policy = Policy.of(["clean-v2:csn"], 0.05, file, {"gate.require": "virtual-findings-v2", "gate.margin": "0.01"})
    assert [each.name for each in policy.required] == [
        "zero-shot:clean-v2:csn",
        "zero-shot:clean-v2:ptb-xl-sub",
        "zero-shot:virtual-findings-v2",
    ]
    assert policy.margin == 0.01 and Policy.of([], None, None, {}).margin == 0
    for text, wrong in (
        ("require: all", "require is 'all', no list of words"), ("margin: -1", "margin is '-1'"),
        ("margin: .nan", "'.nan' cannot be read"), ("[1]", "no keys"), ("requires: [a]", "unknown key 'requires'"),
        ("require: [1]", "no list of words"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(UserError, match=wrong):
            Policy.of([], None, file, {})
    with pytest.raises(UserError, match="cannot be read"):
        Policy.of([], None, tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clean-v2:ptb-xl-super", ""),
        ("clean-v2:ptb-xl-super:val", ""),
        ("linear-probe:clean-v2:csn@10", ""),
        ("virtual-findings-v2", ""),
        ("clean-v2:ptbxl-super", "protocol clean-v2 has no task 'ptbxl-super'; choose one of clean-v2:ptb-xl-super"),
        ("fine-tune:klean:csn", "klean"),
    ],
)
def test_a_requirement_that_nothing_here_can_fulfil_says_so(text: str, told: str) -> None:
    said = Requirement.parse(text).unknown()
    assert told in said and bool(told) == bool(said)


def test_words_of_the_command_are_judged_without_a_store(cardialign: Callable[..., Any], tmp_path: Path) -> None:
    words = ("registry", "promote", "a@candidate", "--tracking-uri", f"sqlite:///{tmp_path / 'none.db'}")
    told = cardialign(*words, "--require", "a@b@c")
    assert told.code == 2 and "names no evaluation" in told.json["problem"]
    absent = cardialign(*words, "--policy", tmp_path / "no.yaml").json["problem"]
    assert absent.endswith("no.yaml cannot be read: No such file or directory")


@pytest.mark.parametrize("text", ["", "a@b@c", "clean-v2:x@10", "linear-probe:x@0", "linear-probe:x@101", "a\nb"])
def test_words_that_name_no_evaluation_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no evaluation"):
        Requirement.parse(text)


def test_the_command_has_two_forms_and_one_gate_and_other_aliases_are_free(
    store: str, exported: Path, tmp_path: Path, cardialign: Callable[..., Any]
) -> None:
    register(export_of(exported, tmp_path / "a"), "doors", store)
    uri = ("--tracking-uri", store)
    for words in (("doors@candidate", "--to", "production"), ("doors", 1), ("doors", 1, "--alias", "Production")):
        answer = cardialign("registry", "promote", *words, *uri)
        assert answer.code == 1 and "commit of the code" in answer.json["problem"]
    assert open_client(store).get_registered_model("doors").aliases.keys() == {"candidate"}
    free = cardialign("registry", "promote", "doors@candidate", "--to", "staging", *uri, plain=True)
    assert free.code == 0 and "staging of doors: nothing -> version 1" in free.out
    asked = cardialign("registry", "promote", "doors/1", "--to", "staging", "--require", "virtual-findings-v2", *uri)
    assert asked.code == 1 and "--prompts virtual-findings-v2 --track" in asked.json["problem"]
    for words in (("doors",), ("doors/1", 1), ("doors@candidate", 1), ("doors/1", "--margin", "-1")):
        assert cardialign("registry", "promote", *words, *uri).code == 2
    with pytest.raises(UsageError, match="nothing is registered as production"):
        register(exported, "doors", store, alias="production")


def test_rollback_goes_back_and_again_and_then_says_that_there_is_nothing(
    name: str, store: str, cardialign: Callable[..., Any]
) -> None:
    for version in range(1, 5):
        promote(f"{name}/{version}", "eu", store)
    client = open_client(store)

    def back() -> Any:
        return cardialign("registry", "rollback", f"{name}@eu", "--tracking-uri", store)

    assert (back().json["version"], back().json["version"]) == (3, 2)
    promote(f"{name}/4", "eu", store)  # 1, 2, 4
    client.set_registered_model_alias(name, "eu", "3")  # somebody else, outside
    assert (back().json["version"], back().json["version"]) == (4, 2)
    client.delete_model_version(name, "1")
    last = back()
    assert last.code == 1 and "deleted since: version 1" in last.json["problem"]
    assert int(client.get_registered_model(name).aliases["eu"]) == 2
    with pytest.raises(UserError, match="points at nothing"):
        rollback(f"{name}@us", store)
    with pytest.raises(UsageError, match="is a version"):
        rollback(f"{name}/1", store)


@pytest.mark.slow
def test_the_commit_may_come_from_mlflow_and_a_run_without_one_is_named(
    store: str, exported: Path, tmp_path: Path
) -> None:
    export = export_of(exported, tmp_path / "a")
    client = open_client(store)
    run = client.create_run(experiment_id(client, store)).info.run_id
    register(export, "commit", store, run)
    evaluated("commit/1", export, store, scored_records(1.5))
    assert f"set the tag git.commit of MLflow run {run}" in refused("commit/1", store)
    client.set_tag(run, "mlflow.source.git.commit", COMMIT)
    assert promote("commit/1", "production", store, WANTED)["version"] == 1
