"""From files to shards and back by command, and what each command says when it is given something wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Call = Callable[..., Any]


def build(cardialign: Call, root: Path, out: Path, *more: object) -> Any:
    return cardialign(
        "shards",
        "build",
        "mimic-iv-ecg",
        "--root",
        root,
        "--out",
        out,
        "--sampling-rate",
        100,
        "--seconds",
        2.5,
        "--workers",
        1,
        *more,
    )


def header_of(cohort: Path, number: int) -> Path:
    return sorted(cohort.rglob("*.hea"))[number]


def test_cohort_then_shards_then_verify_then_picture(cardialign: Call, tmp_path: Path) -> None:
    made = cardialign("cohort", tmp_path / "cohort", "--patients", 6, "--sampling-rate", 100)
    assert made.code == 0 and made.json["patients"] == 6 and made.json["records"] >= 6
    built = build(cardialign, tmp_path / "cohort", tmp_path / "shards", "--labels", tmp_path / "cohort" / "truth.csv")
    assert built.code == 0 and built.json["records"] == made.json["records"] and built.json["rejected"] == {}
    assert cardialign("shards", "verify", tmp_path / "shards").json["problems"] == []
    inspected = cardialign("shards", "inspect", tmp_path / "shards").json
    assert inspected["label_sets"] == ["finding"] and inspected["fingerprint"] == built.json["fingerprint"]
    drawn = cardialign("shards", "inspect", tmp_path / "shards", "--row", 0, "--out", tmp_path / "ecg.png").json
    assert Path(drawn["picture"]).read_bytes().startswith(b"\x89PNG")
    vectors = cardialign("shards", "inspect", tmp_path / "shards", "--row", 0, "--out", tmp_path / "ecg.svg").json
    assert "<svg" in Path(vectors["picture"]).read_text() and vectors["measured"] == drawn["measured"]
    assert 30 < drawn["measured"]["rate"] < 220 and 50 < drawn["measured"]["qrs"] < 220
    views = ("--views", "simclr-tiny", "--out", tmp_path / "views.svg")
    refused = cardialign("shards", "inspect", tmp_path / "shards", "--row", 0, *views)
    assert refused.code == 2 and "views.svg" in refused.json["problem"] and not (tmp_path / "views.svg").exists()


def test_plain_arrays_with_a_table_by_command_and_a_wrong_unit_is_shown(cardialign: Call, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((12, 2000))
    np.save(tmp_path / "one.npy", noise * 300)
    np.save(tmp_path / "two.npy", noise * 5)  # not in uV, as the options will say
    table = tmp_path / "table.csv"
    table.write_text("id,years,text\none,54,Sinus rhythm\ntwo,61,Sinus rhythm\n")
    words = ["--record-rate", 500, "--unit", "uV", "--table", table, "--key-column", "id", "--age-column", "years"]
    out = tmp_path / "out"
    built = cardialign(
        "shards", "build", "arrays", "--root", tmp_path, "--out", out, "--seconds", 4, "--workers", 1, *words
    )
    assert built.code == 0 and built.json["records"] == 2
    assert built.json["quality"] == {"gain-suspect": 1}
    assert cardialign("shards", "inspect", out).json["quality"] == {"gain-suspect": 1}
    assert cardialign("shards", "inspect", out, "--key", "arrays-one").json["age_years"] == 54.0


def test_same_seed_same_bytes_by_command(cardialign: Call, cohort: Path, tmp_path: Path) -> None:
    again = cardialign(
        "cohort", tmp_path / "cohort", "--patients", 30, "--seed", 3, "--sampling-rate", 100, "--workers", 2
    )
    assert again.code == 0
    for path in sorted(p for p in cohort.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "cohort" / path.relative_to(cohort)).read_bytes(), path.name


def test_missing_root_is_named(cardialign: Call, tmp_path: Path) -> None:
    answer = build(cardialign, tmp_path / "nowhere", tmp_path / "out")
    assert answer.code in (1, 2) and "nowhere" in answer.json["problem"] and answer.json["remedy"]


def test_wrong_layout_is_named(cardialign: Call, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "notes.txt").write_text("not a data set")
    answer = build(cardialign, tmp_path / "root", tmp_path / "out")
    assert answer.code in (1, 2) and "record_list.csv" in answer.json["problem"] + answer.json["remedy"]


def test_unknown_source_and_option_list_the_known_ones(cardialign: Call, cohort: Path, tmp_path: Path) -> None:
    answer = cardialign("shards", "build", "mimic", "--root", cohort, "--out", tmp_path / "out")
    assert answer.code == 2 and "mimic-iv-ecg" in answer.json["problem"] + answer.json["remedy"]
    answer = build(cardialign, cohort, tmp_path / "out", "--option", "pepper=1")
    assert answer.code == 2 and "pepper" in answer.json["problem"] and "salt" in answer.json["remedy"]


def test_bad_records_are_counted_by_reason_and_listed(cardialign: Call, cohort: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(cohort, root)
    header_of(root, 0).write_text("this is no header\n")
    signal = header_of(root, 1).with_suffix(".dat")
    signal.write_bytes(signal.read_bytes()[:100])
    unknown_leads = header_of(root, 2)
    lines = unknown_leads.read_text().splitlines()
    unknown_leads.write_text(
        "\n".join([lines[0], *(line.rsplit(" ", 1)[0] + f" X{k}" for k, line in enumerate(lines[1:13])), *lines[13:]])
        + "\n"
    )
    nan_gain = header_of(root, 3)
    lines = nan_gain.read_text().splitlines()
    fields = [line.split(" ") for line in lines]
    for row in fields[1:13]:
        row[2] = "nan/mV"
    nan_gain.write_text("\n".join(" ".join(row) for row in fields) + "\n")

    answer = build(cardialign, root, tmp_path / "out")
    assert answer.code == 0
    assert sum(answer.json["rejected"].values()) == 4
    assert {"truncated-signal", "unknown-leads"} <= set(answer.json["rejected"])
    rejects = (tmp_path / "out" / "rejects.csv").read_text()
    assert all(header_of(root, number).stem in rejects for number in range(4))


def test_empty_report_table_is_named(cardialign: Call, cohort: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(cohort, root)
    (root / "machine_measurements.csv").write_text("")
    answer = build(cardialign, root, tmp_path / "out")
    assert answer.code in (1, 2) and "machine_measurements.csv" in answer.json["problem"]


def test_finished_shard_set_is_not_replaced_unless_asked(cardialign: Call, cohort: Path, tmp_path: Path) -> None:
    first = build(cardialign, cohort, tmp_path / "out", "--limit", 5)
    answer = build(cardialign, cohort, tmp_path / "out", "--limit", 5)
    assert answer.code == 1 and str(tmp_path / "out") in answer.json["problem"] and "overwrite" in answer.json["remedy"]
    again = build(cardialign, cohort, tmp_path / "out", "--limit", 5, "--overwrite")
    assert again.code == 0 and again.json["fingerprint"] == first.json["fingerprint"]


def test_existing_cohort_folder_is_refused(cardialign: Call, cohort: Path) -> None:
    answer = cardialign("cohort", cohort, "--patients", 2)
    assert answer.code == 1 and "exists" in answer.json["problem"]


def test_flipped_byte_in_a_shard_is_found_and_fails(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(shards, damaged)
    shard = damaged / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    answer = cardialign("shards", "verify", damaged)
    assert answer.code == 1 and any("shard-000000" in problem for problem in answer.json["problems"])
    (damaged / "notes.txt").write_text("of somebody")
    plain = cardialign("shards", "verify", damaged, plain=True)
    assert plain.code == 1 and "problems" in plain.out and "note: notes.txt (11 bytes): belongs to nothing" in plain.out


def test_three_mistakes_in_a_recipe_are_reported_at_once(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("training: {epochs: 1, zero_stage: 7}\noptimizer: {lr: -1}\nencoder: {widht: 64}\n")
    answer = cardialign("pretrain", "--recipe", recipe, "--shards", shards, "--run-dir", tmp_path / "run")
    assert answer.code == 2
    for key in ("training.zero_stage", "optimizer.lr", "encoder.widht"):
        assert key in answer.json["problem"]
    assert "width" in answer.json["problem"] and not (tmp_path / "run").exists()


def test_options_have_the_words_of_the_recipe(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    answer = cardialign(
        "pretrain",
        "--recipe",
        "cardialign-demo",
        "--shards",
        shards,
        "--run-dir",
        tmp_path,
        "--zero-stage",
        9,
        "--set",
        "optimizer.lr=-2",
    )
    assert (
        answer.code == 2
        and "training.zero_stage" in answer.json["problem"]
        and "optimizer.lr" in answer.json["problem"]
    )


def test_encoder_refuses_eight_leads_and_another_rate_with_the_option_that_allows_it(
    cardialign: Call, exported: Path, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    np.save(tmp_path / "eight.npy", generator.normal(size=(8, 250)).astype(np.float32))
    np.save(tmp_path / "fast.npy", generator.normal(size=(12, 625)).astype(np.float32))
    eight = (
        "embed",
        tmp_path / "eight.npy",
        "--encoder",
        exported,
        "--sampling-rate",
        100,
        "--leads",
        "I,II,V1,V2,V3,V4,V5,V6",
    )
    refused = cardialign(*eight)
    assert refused.code == 1 and "III" in refused.json["problem"] and "--derive-limb-leads" in refused.json["remedy"]
    assert cardialign(*eight, "--derive-limb-leads").code == 0
    np.save(tmp_path / "eight.npy", generator.normal(size=(8, 250), scale=1000))
    refused = cardialign(*eight, "--derive-limb-leads")
    assert refused.code == 1 and "give --units uV;" in refused.json["remedy"]
    assert cardialign(*eight, "--derive-limb-leads", "--units", "uV").code == 0

    fast = ("embed", tmp_path / "fast.npy", "--encoder", exported, "--sampling-rate", 250)
    refused = cardialign(*fast)
    assert refused.code == 1 and "250" in refused.json["problem"] and "--resample" in refused.json["remedy"]
    embedded = cardialign(*fast, "--resample", "--out", tmp_path / "embedding.npy")
    assert embedded.code == 0 and embedded.json["dimensions"] == len(embedded.json["embedding"])
    assert np.linalg.norm(np.load(tmp_path / "embedding.npy")) == pytest.approx(1.0, abs=1e-4)
    plain = cardialign(*fast, "--resample", "--out", tmp_path / "embedding").json["out"]
    assert plain == str(tmp_path / "embedding") and np.load(plain).shape == (len(embedded.json["embedding"]),)
    refused = cardialign(*fast, "--resample", "--out", tmp_path)
    assert refused.code == 2 and "is a folder; name a file in it" in refused.json["problem"]
    refused = cardialign(*fast, "--resample", "--out", tmp_path / "fast.npy" / "e.npy")
    assert refused.code == 1 and "cannot be written" in refused.json["problem"]


def test_the_same_record_embeds_alike_from_wfdb_and_from_shards(
    cardialign: Call, exported: Path, cohort: Path, shards: Path
) -> None:
    header = header_of(cohort, 0)
    options = ("--encoder", exported, "--resample", "--crop", "--allow-missing-leads")
    from_file = cardialign("embed", header.with_suffix(""), *options)
    from_shards = cardialign("embed", "--shards", shards, "--key", f"mimic-{header.stem.removeprefix('s')}", *options)
    assert from_file.code == 0 and from_shards.code == 0
    np.testing.assert_allclose(from_file.json["embedding"], from_shards.json["embedding"], atol=0.02)


def test_encoder_with_a_flipped_byte_is_refused(cardialign: Call, exported: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "encoder"
    shutil.copytree(exported, damaged)
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    np.save(tmp_path / "ecg.npy", np.zeros((12, 250), dtype=np.float32))
    answer = cardialign("embed", tmp_path / "ecg.npy", "--encoder", damaged, "--sampling-rate", 100)
    assert answer.code == 1 and "model.safetensors" in answer.json["problem"]


def test_checkpoint_with_a_flipped_byte_is_named_and_not_exported(cardialign: Call, tmp_path: Path) -> None:
    from cardialign.pretrain.training.checkpoints.files import commit, files_below, seal, temporary_path

    run_dir = tmp_path / "run"
    folder = temporary_path(run_dir, 20)
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(200)))
    (folder / "trainer_state.json").write_text("{}")
    path = commit(run_dir, 20, seal(folder, files_below(folder)), {"world_size": 2})
    assert cardialign("checkpoints", "list", run_dir).json["checkpoints"][0]["step"] == 20
    assert cardialign("checkpoints", "verify", run_dir).json["verified"] == 1

    content = bytearray((path / "weights.bin").read_bytes())
    content[100] ^= 1
    (path / "weights.bin").write_bytes(content)
    answer = cardialign("checkpoints", "verify", run_dir)
    assert answer.code == 1 and "weights.bin" in answer.json["checkpoints"][0]["problems"][0]
    (run_dir / "config.resolved.json").write_text(json.dumps({"training": {"steps": 20}}))
    refused = cardialign("export", run_dir)
    assert refused.code == 1 and "no verified checkpoint" in refused.json["problem"]
    assert path.is_dir(), "looking at a run moves nothing"


def test_run_directory_that_does_not_exist_is_named(cardialign: Call, tmp_path: Path) -> None:
    for command in (("checkpoints", "list"), ("checkpoints", "verify"), ("export",), ("tracking", "sync")):
        answer = cardialign(*command, tmp_path / "nothing")
        assert answer.code == 1 and "nothing" in answer.json["problem"], command


def test_a_mixture_is_given_by_sets_with_weights(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    start = ("pretrain", "--recipe", "cardialign-demo", "--run-dir", tmp_path / "run")
    assert cardialign(*start, "--mixture", f"{shards}=1", "--shards", shards).code == 2
    wrong = cardialign(*start, "--mixture", shards)
    assert wrong.code == 2 and "SHARDS=WEIGHT" in wrong.json["problem"]
    answer = cardialign(*start, "--mixture", f"{shards}=0.5", "--mixture", f"{tmp_path / 'gone'}=-1")
    assert answer.code == 2 and "data.mixture.1.weight" in answer.json["problem"]
    answer = cardialign(*start, "--mixture", f"{shards}=0.5", "--mixture", f"{tmp_path / 'gone'}=1.5")
    assert answer.code == 1 and str(tmp_path / "gone") in answer.json["problem"]
    assert cardialign(*start).code == 2 and not (tmp_path / "run").exists()
