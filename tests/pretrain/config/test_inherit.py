"""A recipe that extends another: what it says counts, what it leaves out is that one's, and nothing else is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.config import load_config


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_it_says_counts_and_all_else_is_that_of_the_other(tmp_path: Path) -> None:
    mine = write(
        tmp_path, "lower-rate.yaml", "extends: cardialign-tiny\noptimizer: {lr: 1.0e-4}\nencoder: {drop_path: 0.3}\n"
    )
    found, base = load_config(mine).resolved(), load_config("cardialign-tiny").resolved()
    assert found["name"] == "lower-rate", "called like its file, not like what it extends"
    assert (found["optimizer"]["lr"], found["encoder"]["drop_path"]) == (1e-4, 0.3)
    base["name"] = "lower-rate"
    base["optimizer"]["lr"], base["encoder"]["drop_path"] = 1e-4, 0.3
    assert found == base
    assert "extends" not in found


def test_a_section_of_another_name_counts_whole(tmp_path: Path) -> None:
    mine = write(
        tmp_path, "a.yaml", "extends: cardialign-tiny\nname: b\nencoder: {name: resnet1d, embedding_dim: 64}\n"
    )
    found = load_config(mine)
    assert (found.name, found.encoder.name, found.encoder.embedding_dim) == ("b", "resnet1d", 64)
    same = write(tmp_path, "c.yaml", "extends: cardialign-tiny\nencoder: {name: cardialign, drop_path: 0.2}\n")
    assert load_config(same).encoder.size == "tiny"  # type: ignore[attr-defined]


def test_lists_are_taken_whole_and_rows_of_recipes_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "family/base.yaml", "extends: simclr-tiny\noptimizer: {betas: [0.9, 0.95]}\nseed: 3\n")
    mine = write(tmp_path, "mine.yaml", "extends: family/base.yaml\nseed: 4\ndata: {folds: [1, 2]}\n")
    found = load_config(mine)
    assert (found.seed, found.optimizer.betas, found.data.folds, found.method.name) == (
        4,
        (0.9, 0.95),
        (1, 2),
        "simclr",
    )
    assert load_config(mine, "seed=5").seed == 5, "what is set beside it counts most"


def test_mistakes_name_both_files_and_what_was_set(tmp_path: Path) -> None:
    mine = write(tmp_path, "mine.yaml", "extends: cardialign-tiny\noptimizer: {learning_rate: 1}\n")
    with pytest.raises(UsageError, match=r"mine\.yaml \(which extends cardialign-tiny\) has 1 mistake") as caught:
        load_config(mine)
    assert "optimizer.learning_rate" in caught.value.problem


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("cardialign-huge", "there is no such recipe"),
        ("/etc/hostname", "leads out of the folder"),
        ("../base.yaml", "leads out of the folder"),
        ("a/../../base.yaml", "leads out of the folder"),
        ("~/base.yaml", "leads out of the folder"),
        ("[cardialign-tiny]", "no recipe"),
        ("''", "no recipe"),
        ("7", "no recipe"),
        ('"a\\0b"', "extends 'a\\x00b'"),
        ("x" * 5000, "(5000 characters)"),
        ("outside.yaml", "a link out of the folder"),
        ("http://somewhere/base.yaml", "there is no such recipe"),
    ],
)
def test_a_recipe_reads_no_file_outside_its_folder(tmp_path: Path, word: str, told: str) -> None:
    folder = tmp_path / "recipes"
    write(tmp_path, "base.yaml", "seed: 9\n")
    mine = write(folder, "mine.yaml", f"extends: {word}\n")
    (folder / "outside.yaml").symlink_to(tmp_path / "base.yaml")
    with pytest.raises(UsageError) as caught:
        load_config(mine)
    assert told in caught.value.problem and len(caught.value.problem) < 600
    assert "cardialign-tiny" in caught.value.remedy


def test_circles_and_long_rows_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    with pytest.raises(UsageError, match=r"a\.yaml extends b\.yaml extends a\.yaml: a circle"):
        load_config(tmp_path / "a.yaml")
    itself = write(tmp_path, "c.yaml", "extends: c.yaml\n")
    with pytest.raises(UsageError, match="a circle"):
        load_config(itself)
    for number in range(9):
        write(tmp_path, f"r{number}.yaml", f"extends: r{number + 1}.yaml\n")
    write(tmp_path, "r9.yaml", "seed: 1\n")
    assert load_config(tmp_path / "r2.yaml").seed == 1
    with pytest.raises(UsageError, match="more than 8 recipes in a row"):
        load_config(tmp_path / "r1.yaml")


def test_old_words_in_any_of_them_are_understood(tmp_path: Path) -> None:
    write(tmp_path, "old.yaml", "model: {name: resnet1d, embedding_dim: 32}\n")
    mine = write(tmp_path, "mine.yaml", "extends: old.yaml\nencoder: {embedding_dim: 48}\n")
    assert (load_config(mine).encoder.name, load_config(mine).encoder.embedding_dim) == ("resnet1d", 48)


def test_a_resolved_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    mine = write(tmp_path, "mine.yaml", "extends: cardialign-small\nseed: 11\n")
    whole = write(tmp_path, "whole.yaml", yaml.safe_dump(load_config(mine).resolved()))
    assert load_config(whole) == load_config(mine)
