"""An encoder with the age gate leaves with a contract that asks for the age, and what is no age in years is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.cohort.generate import Cohort, make_cohort
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import open_source
from cardialign.pretrain.benchmarks.counts import count_encoder
from cardialign.pretrain.evaluation.features import EmbedOptions, embed_set
from cardialign.pretrain.export.loaded import LoadedEncoder, load_encoder
from cardialign.pretrain.export.program import save_program
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.run.integrity import CONTRACT, write_digests
from tests.support.small_encoder import SPEC, small_config

ENCODER = {
    "size": "tiny", "width": 16, "depth": 1, "heads": 2, "embedding_dim": 8, "rhythm": True,
    "patches": [{"kernel_ms": 200, "stride_ms": 200}],
}  # fmt: skip
MONTHS = np.array([0.25, 5, 30]) / 12


def exported(folder: Path, **encoder: object) -> LoadedEncoder:
    """As if the gates had learnt something."""
    config = small_config(encoder={**ENCODER, **encoder})
    torch.manual_seed(1)
    model = create_method(config, SPEC)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "gate" in name:
            parameter.data.normal_(std=0.3, generator=generator)
    export_encoder(config, model.state_dict(), folder, training={}, spec=SPEC, program=False)
    return load_encoder(folder)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    return exported(tmp_path_factory.mktemp("gated") / "export", age_gate=True)


def ecg() -> tuple[np.ndarray, np.ndarray]:
    signal = np.random.default_rng(0).normal(0, 0.3, (3, 12, SPEC.samples)).astype(np.float32)
    return signal, np.ones((3, 12), dtype=bool)


def test_the_contract_says_that_years_are_read_and_other_contracts_stay_as_they_were(
    gated: LoadedEncoder, tmp_path: Path
) -> None:
    plain = exported(tmp_path / "export")
    assert gated.contract.age == "years" and "365.25" in gated.contract.to_dict()["meaning"]["age"]
    told = plain.contract.to_dict()
    assert "age" not in told and "age" not in told["meaning"] and not plain.reads_age
    with pytest.raises(UserError, match="does not read the age"):
        plain.encode(*ecg(), age=MONTHS)
    with pytest.raises(UserError, match="does not read the age"):
        plain.embed(ecg()[0], sampling_rate=100, age=3)
    contract = tmp_path / "export" / CONTRACT
    contract.write_text(json.dumps({**json.loads(contract.read_text()), "age": "years"}))
    (tmp_path / "export" / "digests.json").unlink()
    write_digests(tmp_path / "export")
    with pytest.raises(UserError, match="age"):
        load_encoder(tmp_path / "export")


def test_ages_are_read_by_encode_and_embed_alike_and_without_them_the_gate_is_open(
    gated: LoadedEncoder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated, "_told_of_age", False)  # other tests read without ages, too
    signal, leads = ecg()
    with_age = gated.encode(signal, leads, age=MONTHS)
    np.testing.assert_allclose(
        gated.embed(signal, sampling_rate=100, age=MONTHS), with_age.embedding.numpy(), atol=1e-6
    )
    one = gated.embed(signal[1], sampling_rate=100, age=MONTHS[1])
    np.testing.assert_allclose(one[0], with_age.embedding[1].numpy(), atol=1e-6)
    with caplog.at_level(logging.WARNING):
        without = gated.encode(signal, leads)
        gated.encode(signal, leads)
    assert caplog.text.count("age=unknown") == 1
    assert (with_age.embedding - without.embedding).abs().amax(dim=1).min() > 1e-4
    some = gated.encode(signal, leads, age=[MONTHS[0], None, MONTHS[2]])
    assert torch.equal(some.embedding[1], without.embedding[1])
    assert torch.equal(some.features[2], with_age.features[2])


@pytest.mark.parametrize(
    ("age", "problem", "remedy"),
    [
        ([-0.1, 1, 2], "before birth", "a newborn is 0"),
        ([float("nan"), 1, 2], "NaN", "None where it is not known"),
        ([1, 2, 216], "216 years", "months / 12"),
        ([1, 2], r"shape \(2,\) for 3 records", "one age in years per record"),
        (["4 mo", 1, 2], "no number", "years since birth"),
    ],
)
def test_what_is_no_age_in_years_is_told_with_the_way_out(
    gated: LoadedEncoder, age: list[float], problem: str, remedy: str
) -> None:
    for call in (
        lambda: gated.encode(*ecg(), age=age),
        lambda: gated.embed(ecg()[0], sampling_rate=100, age=age),
    ):
        with pytest.raises(UserError, match=problem) as caught:
            call()
        assert remedy in caught.value.remedy


def test_the_ages_of_a_shard_set_reach_the_encoder_whatever_embeds_it(gated: LoadedEncoder, tmp_path: Path) -> None:
    made = make_cohort(tmp_path / "cohort", Cohort(6, 6, "lifespan", 1, 100))
    source = open_source("zzu-pecg", made.path)
    shards = ShardSet.open(build_shards(source, tmp_path / "set", SetPlan(SPEC), workers=1).path)
    rows = np.arange(len(shards.age_years))
    (embedded,) = embed_set([gated], shards, rows, EmbedOptions(with_features=True))
    records = [shards.read_record(int(row)) for row in rows]
    signal, leads = np.stack([each.millivolts() for each in records]), np.stack([each.lead_mask for each in records])
    by_hand = gated.encode(signal, leads, age=shards.age_years)
    np.testing.assert_allclose(embedded.embedding, by_hand.embedding.numpy(), atol=1e-5)
    assert np.abs(embedded.embedding - gated.encode(signal, leads).embedding.numpy()).max() > 1e-3


def test_the_gate_is_counted() -> None:
    """32 hidden units: 64 of the first layer, (2 x 32 + 2) per channel of the second; a block, a rhythm, a scale, 4
    groups."""
    counted = [count_encoder(small_config(encoder={**ENCODER, "age_gate": on}).encoder, SPEC) for on in (False, True)]
    (plain, before), (gate, flop) = counted
    channels = 16 + 4 * 16 + 1 + 4
    assert gate - plain == 4 * 64 + channels * (2 * 32 + 2)
    runs = 4 * 16 + 4 * 16 + 1 + 4  # that behind a block once per lead group
    assert flop - before == 2 * 2 * 32 * runs, "a product per hidden unit and channel, for gamma and for beta"


@pytest.mark.slow
def test_the_program_takes_the_age_as_its_fourth_tensor(gated: LoadedEncoder, tmp_path: Path) -> None:
    save_program(gated.ecg, tmp_path / "encoder.pt2")
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    signal, leads = (torch.as_tensor(each) for each in ecg())
    valid, ages = torch.full((3,), SPEC.samples), torch.tensor([0.02, torch.nan, 50.0])
    wanted = gated.encode(signal, leads, age=[0.02, None, 50.0]).embedding
    torch.testing.assert_close(program(signal, leads, valid, ages), wanted, atol=2e-5, rtol=1e-4)
