"""Storage that is away for a time, and a text bank that is not the one that a run began with: all ranks stop with one
sentence, nothing is counted as damaged, and the same command goes on to the same end.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set import storage
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import EMPTY_DIGEST, chain_digest
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.run.files import QUARANTINE
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.checkpoints.state import TrainerState, check_bank
from cardialign.pretrain.training.data import open_data
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.tiny_shards import HashingEncoder, config_for, make_shards

pytestmark = pytest.mark.processes
STEPS = 6


class OtherWeights(HashingEncoder):
    """As an encoder computes on another kind of machine: its fingerprint is the same, its numbers are not."""

    def embed(self, texts: list[str]) -> np.ndarray:
        return -super().embed(texts)


def config_of(shards: Path, **data) -> RunConfig:
    config = config_for(shards, zero_stage=1, log_every=1)
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 0x40
    file.write_bytes(content)


def refused(config: RunConfig, run_dir: Path) -> str:
    try:
        return f"trained to {train(config, run_dir, NullObserver()).steps}"
    except UserError as error:
        return str(error)


def old_lines(shards: Path, run_dir: Path) -> None:
    """What a release that took an outage for damage wrote of 20 healthy records, ten times what is allowed."""
    opened, (_, selection, _) = ShardSet.open(shards), open_data(config_of(shards))
    run_dir.mkdir()
    lines = [
        {"step": 1, "position": row % 13, "row": row, "key": opened.key(row), "shard": "shard-000001.tar",
         "offset": int(opened.offset[row]), "rank": 1, "substitute": 3, "selection": selection.fingerprint,
         "problem": f"record {opened.key(row)}: shard shard-000001.tar cannot be read at offset 0: [Errno 5] I/O error"}
        for row in range(20, 40)
    ]  # fmt: skip
    (run_dir / QUARANTINE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def two_workers(rank: int, world: int, root: Path) -> tuple[list[str], str]:
    import torch.distributed as dist

    storage.PAUSES = (0.01, 0.02)
    mine, run_dir = root / f"shards-{rank}", root / "run"
    config = config_of(mine)
    shard, bank = mine / "shard-000001.tar", next((mine / "text_bank").iterdir())
    said = []
    if rank == 0:
        old_lines(mine, run_dir)
    if rank == 1:  # one node's mount loses a shard
        shard.rename(root / "lost.tar")
    dist.barrier()
    said.append(refused(config, run_dir))
    if rank == 1:
        (root / "lost.tar").rename(shard)
    dist.barrier()
    result = train(config, run_dir, NullObserver())
    if rank == 0:
        flip(bank / "embeddings.npy")
    dist.barrier()
    said.append(refused(config, run_dir))
    dist.barrier()
    shutil.rmtree(mine / "text_bank")
    build_text_bank(ShardSet.open(mine), OtherWeights())
    dist.barrier()
    said.append(refused(config, run_dir))
    return said, result.digest


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("outage")
    make_shards(root / "shards-0")
    shutil.copytree(root / "shards-0", root / "shards-1")
    return root, run_ranks(2, two_workers, root, init=True, deadline=120)


@pytest.mark.slow
def test_a_lost_shard_of_one_rank_stops_all_with_one_sentence_and_poisons_nothing(runs):
    root, ((first, _), (second, _)) = runs
    assert first[0] == second[0] and f"shard shard-000001.tar of {root / 'shards-1'} is missing" in first[0]
    lines = [json.loads(line) for line in (root / "run" / QUARANTINE).read_text().splitlines()]
    assert not [line for line in lines if line.get("fault")], "nothing was written down as damaged"


def test_what_an_outage_left_in_the_quarantine_of_an_older_release_is_judged_again(runs):
    root, _ = runs
    lines = [json.loads(line) for line in (root / "run" / QUARANTINE).read_text().splitlines()]
    assert [line.get("released") for line in lines] == [None] * 20 + list(range(20, 40))


def test_the_same_command_then_trains_on_what_an_undisturbed_run_does(runs):
    root, ranks = runs
    _, _, order = open_data(config_of(root / "shards-0"))
    digest = EMPTY_DIGEST
    for step in range(STEPS):
        digest = chain_digest(digest, order.batch(step))
    assert [found for _, found in ranks] == [digest, digest]
    assert [line["data_quarantined"] for line in read_trace(root / "run")] == [0.0] * STEPS


def test_a_flipped_bit_in_a_text_bank_stops_every_rank_and_names_the_file_and_the_remedy(runs):
    root, ((first, _), (second, _)) = runs
    assert first[1] == second[1] and "embeddings.npy is not the one the bank was built with" in first[1]
    assert str(root / "shards-0" / "text_bank") in first[1] and "cardialign text-bank build" in first[1]


def test_another_bank_of_the_same_reports_and_encoder_continues_no_run(runs):
    root, ((first, _), (second, _)) = runs
    assert first[2] == second[2] and "was trained with another text bank (digest" in first[2]
    assert "put back the bank" in first[2] and str(root / "run") in first[2]


def test_a_checkpoint_from_before_banks_were_bound_goes_on(tmp_path):
    state = TrainerState(1, EMPTY_DIGEST, {}, "s", 1, 1)
    state.write(tmp_path)
    old = json.loads((tmp_path / "trainer_state.json").read_text())
    del old["bank_digest"]
    (tmp_path / "trainer_state.json").write_text(json.dumps(old))
    check_bank(TrainerState.read(tmp_path), "a" * 64, tmp_path)
    with pytest.raises(UserError, match=r"digest bbbbbbbbbbbb was, no text bank now"):
        check_bank(TrainerState(1, EMPTY_DIGEST, {}, "s", 1, 1, bank_digest="b" * 64), None, tmp_path)
