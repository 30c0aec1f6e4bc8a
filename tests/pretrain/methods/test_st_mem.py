"""What is hidden is what the publication hides, the loss is the mean over it, and it learns to fill it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.st_mem import StMem
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards

ENCODER = {"name": "vit1d", "width": 16, "depth": 1, "heads": 2, "patches": "lead", "patch_ms": 100, "embedding_dim": 8}
METHOD = {"name": "st_mem", "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
B, PATCHES, KEPT, K = 6, 20, 5, 10


def make(**method: Any) -> StMem:
    torch.manual_seed(0)
    made = create_method(small_config(encoder=ENCODER, method={**METHOD, **method}), SPEC)
    assert isinstance(made, StMem)
    return made.eval()


def batch() -> Batch:
    generator, rows = np.random.default_rng(0), np.arange(B)
    mask = np.ones((B, 12), dtype=bool)
    mask[1, 4:] = False
    valid = np.full(B, 200, dtype=np.int32)
    valid[2] = 95
    signal = generator.normal(size=(B, 12, 200)).astype(np.float32)
    return Batch(1, rows, signal, mask, valid, rows, np.zeros(B, np.float32), np.zeros(B, np.int8), rows)


def test_every_lead_keeps_the_same_number_of_patches_and_only_recorded_ones_are_asked_for() -> None:
    inputs = make().inputs(batch(), None, Draws(0, 1, slice(0, B)))
    kept, hidden = inputs["kept"], inputs["hidden"].unflatten(1, (12, PATCHES))
    assert kept.shape == (B, 12 * KEPT)
    for row in kept:
        places = [set((row[row // PATCHES == lead] % PATCHES).tolist()) for lead in range(12)]
        assert all(len(found) == KEPT for found in places) and len({tuple(sorted(p)) for p in places}) > 6
    asked = hidden.sum(dim=2)
    assert (asked[0] == PATCHES - KEPT).all()
    assert (asked[1, 4:] == 0).all() and (asked[1, :4] == PATCHES - KEPT).all()
    assert not hidden[2, :, 9:].any(), "patch 9 holds samples 90 to 99, of which 95 on are padding"
    shown = torch.zeros(B, 12 * PATCHES, dtype=torch.bool).scatter_(1, kept, True)
    assert not (shown & inputs["hidden"]).any()


def test_the_loss_is_the_mean_error_of_the_hidden_patches_each_normalised() -> None:
    method, given = make(), batch()
    inputs = method.inputs(given, None, Draws(0, 1, slice(0, B)))
    with torch.no_grad():
        features = method(inputs)
        loss = method.loss(features, inputs, None).loss
        patches = method.ecg.embed_patches(inputs["signal"], inputs["lead_mask"], inputs["valid_samples"])
        tokens = method.ecg.encode_patches(patches.keep(inputs["kept"]))
        decoded = method._decode(tokens, inputs["kept"], patches.seconds[:PATCHES], patches.mask).numpy()
    total, count = 0.0, 0
    for row, lead, n in np.argwhere(inputs["hidden"].unflatten(1, (12, PATCHES)).numpy()):
        samples = given.signal[row, lead, n * K : (n + 1) * K].astype(np.float64)
        wanted = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-6)
        total += np.square(decoded[row, lead * PATCHES + n] - wanted).mean()
        count += 1
    assert loss.item() == pytest.approx(total / count, rel=1e-4)
    assert features["reconstruction"][:, 1].tolist() == inputs["hidden"].sum(1).tolist()
    assert torch.equal(method.counts(inputs)["reconstruction"], features["reconstruction"][:, 1])


def test_hidden_samples_cannot_be_seen() -> None:
    """Other samples at hidden places change what is wanted, never what is decoded."""
    method, given = make(), batch()
    inputs = method.inputs(given, None, Draws(0, 1, slice(0, B)))
    hidden = torch.ones(B, 12 * PATCHES, dtype=torch.bool).scatter_(1, inputs["kept"], False)
    noise = torch.randn(B, 12 * PATCHES, K) * hidden[..., None]
    other = {**inputs, "signal": inputs["signal"] + noise.reshape(B, 12, PATCHES * K)}
    with torch.no_grad():
        assert torch.equal(method(other)["ecg"], method(inputs)["ecg"])
        assert not torch.allclose(method(other)["reconstruction"], method(inputs)["reconstruction"])


def test_what_was_not_recorded_of_a_record_is_no_part_of_what_is_drawn_of_it() -> None:
    """A record of 1 s in a set of 2 s is drawn as it is in a set of 1 s."""
    long, short = make(), StMem(small_config(encoder=ENCODER, method=METHOD), SignalSpec(SPEC.sampling_rate, 1)).eval()
    short.load_state_dict(long.state_dict())
    signal = torch.from_numpy(batch().signal)
    half, leads = PATCHES // 2, torch.ones(B, 12, dtype=torch.bool)
    leads[1, 4:] = False
    kept = torch.arange(12 * 3).reshape(12, 3) % 3 * 2
    drawn = []
    for method, patches, samples in ((long, PATCHES, 2 * half * K), (short, half, half * K)):
        given = signal[..., :samples].clone()
        given[..., half * K :] = 0.0
        everything = method.ecg.embed_patches(given, leads, torch.full((B,), half * K))
        places = (kept + torch.arange(12)[:, None] * patches).reshape(1, -1).expand(B, -1)
        with torch.no_grad():
            tokens = method.ecg.encode_patches(everything.keep(places))
            found = method._decode(tokens, places, everything.seconds[:patches], everything.mask)
        drawn.append(found.unflatten(1, (12, patches))[:, :, :half])
    there = leads[:, :, None, None].expand_as(drawn[0])
    torch.testing.assert_close(drawn[0][there], drawn[1][there], atol=1e-5, rtol=1e-5)
    assert all(torch.isfinite(each).all() for each in drawn)


def test_a_decoded_lead_sees_other_leads_through_the_encoder_alone() -> None:
    method, given = make(), batch()
    inputs = method.inputs(given, None, Draws(0, 1, slice(0, B)))
    tokens = torch.randn(B, 12 * KEPT, 16)
    changed = tokens.clone()
    changed[:, :KEPT] += 1.0  # those of lead I
    seconds = torch.arange(PATCHES) * 0.1
    with torch.no_grad():
        first, second = (
            method._decode(t, inputs["kept"], seconds).unflatten(1, (12, PATCHES)) for t in (tokens, changed)
        )
    assert torch.equal(first[:, 1:], second[:, 1:]) and not torch.allclose(first[:, 0], second[:, 0])


def test_the_draws_belong_to_the_row() -> None:
    method, whole = make(), make().inputs(batch(), None, Draws(0, 1, slice(0, B)))["kept"]
    parts = []
    for rank in range(3):
        rows, full = local_slice(B, rank, 3), batch()
        part = Batch(
            1,
            *(
                getattr(full, n)[rows]
                for n in ("rows", "signal", "lead_mask", "valid_samples", "report", "age_years", "sex")
            ),
            full.rows,
        )
        parts.append(method.inputs(part, None, Draws(0, 1, rows))["kept"])
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("encoder", "method", "message"),
    [
        ({"name": "cardialign", "size": "tiny"}, {}, "set encoder.name to vit1d and encoder.patches to lead"),
        ({**ENCODER, "patches": "record"}, {}, "set encoder.name to vit1d and encoder.patches to lead"),
        (ENCODER, {"mask_ratio": 0.99}, "leaves none of the 20 patches"),
    ],
)
def test_what_cannot_be_masked_is_refused(encoder: dict, method: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_method(small_config(encoder=encoder, method={**METHOD, **method}), SPEC)


def learn(rank: int, world: int, shards: Path, root: Path, wanted: dict[str, dict]) -> None:
    for name, training in wanted.items():
        base = config_for(shards, **{"steps": 40, "checkpoint_every": 40, "lead_dropout": 0.0, **training}).resolved()
        changed = {
            "encoder": {**ENCODER, "width": 32},
            "method": {**METHOD, "decoder_width": 32, "mask_ratio": 0.5},
            "optimizer": {"lr": 1e-2},
            "data": {**base["data"], "normalisation": "zscore"},
        }
        train(parse_config({**base, **changed}), root / name, NullObserver())


@pytest.mark.slow
@pytest.mark.processes
def test_it_learns_to_fill_in_alike_on_one_worker_and_two_and_exports_an_encoder(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    run_ranks(1, learn, shards, tmp_path, {"one": {}}, init=False, deadline=120)
    run_ranks(
        2, learn, shards, tmp_path, {"two": {"steps": 4, "micro_batch": 3, "zero_stage": 3}}, init=False, deadline=120
    )
    losses = [[line["loss"] for line in read_trace(tmp_path / name)] for name in ("one", "two")]
    np.testing.assert_allclose(losses[1][:1], losses[0][:1], rtol=1e-5)
    assert losses[0][0] > 0.9 and np.mean(losses[0][-5:]) < 0.8, "drawing the mean of every patch would give 1"
    encoder = load_encoder(export_run(tmp_path / "one")["path"])
    signal = np.random.default_rng(0).normal(size=(3, 12, 250)).astype(np.float32) * 0.3
    np.testing.assert_allclose(np.linalg.norm(encoder.embed(signal, sampling_rate=100), axis=1), 1, rtol=1e-5)
    assert encoder.head is None and not any("decoder" in name for name in encoder.ecg.state_dict())
