"""The tutorial's three commands for a stranger's folder of WFDB files and a CSV."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.config import load_config
from tests.support.readme import SITE, TUTORIAL, block_with, blocks, run
from tests.support.wfdb_files import ecg_counts, write_record

RESEARCHER = f"{SITE}/users/researcher.md"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """40 records of 30 patients, with two labels in one cell of the table."""
    folder = tmp_path / "mine"
    rows = ["path,patient,age,sex,report,dx"]
    for number in range(40):
        name = f"day{number % 3}/rec{number:02d}"
        write_record(folder / name, ecg_counts(5000, seed=number))
        told = ("Sinus rhythm", "Atrial fibrillation", "Left bundle branch block")[number % 3]
        dx = "AF;LBBB" if number % 3 else "NORM"
        rows.append(f"{name},p{number % 30},{40 + number},{'MF'[number % 2]},{told},{dx}")
    (folder / "records.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.slow
def test_a_strangers_folder_becomes_a_set_with_its_reports_labels_and_patients(
    mine: Path, tmp_path: Path, shell: dict[str, str]
) -> None:
    block = block_with('"$MINE"', page=TUTORIAL)
    printed = run(block[: block.index("cardialign pretrain")], tmp_path, {**shell, "MINE": str(mine)})
    assert (tmp_path / "work" / "three.png").is_file() and "40" in printed
    made = ShardSet.open(tmp_path / "work" / "mine")
    assert len(made) == 40
    record = next(made.read_record(row) for row in range(40) if made.read_record(row).statements[0] != "Sinus rhythm")
    assert sorted(record.labels["labels"]) == ["AF", "LBBB"] and record.sex in ("male", "female")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(700)
def test_a_strangers_folder_becomes_a_registered_encoder(mine: Path, tmp_path: Path, shell: dict[str, str]) -> None:
    run(block_with('"$MINE"', page=TUTORIAL), tmp_path, {**shell, "MINE": str(mine)})
    assert (tmp_path / "work" / "my-run" / "export" / "model.safetensors").is_file()
    (tmp_path / "work" / "mine").rename(tmp_path / "work" / "shards")
    (tmp_path / "my-recipe.yaml").write_text(blocks("yaml", RESEARCHER)[0])
    printed = run(block_with("recipes diff", page=RESEARCHER), tmp_path, shell)
    assert "optimizer.lr" in printed and (tmp_path / "work" / "my-recipe" / "export").is_dir()


def test_the_researchers_recipe_says_what_is_other_than_in_the_one_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "my-recipe.yaml").write_text(blocks("yaml", RESEARCHER)[0])
    own, other = load_config(tmp_path / "my-recipe.yaml").resolved(), load_config("cardialign-tiny").resolved()
    assert (
        own["name"] == "my-recipe"
        and own["optimizer"]["lr"] == 5e-4 != other["optimizer"]["lr"]
        and own["training"]["global_batch"] == 32
    )
    assert own["method"] == other["method"] and own["encoder"] == other["encoder"]
