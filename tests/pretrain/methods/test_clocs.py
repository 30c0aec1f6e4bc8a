"""CLOCS: the paper's formula by loops in float64, an example on paper, what a view is, and positives across ranks."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.clocs import Clocs
from cardialign.pretrain.methods.parts.draws import Draws
from tests.pretrain.methods.test_views import batch as views_batch
from tests.support.processes import run_ranks
from tests.support.small_encoder import small_config

LEADS = ["I", "aVF", "V6"]
PATIENTS = [7, 3, 7, 5, 7, 3]  # of the first three, records 0, 2 and 4 are of one patient, 1 and 5 of another


def make(pairs: str = "cmsc", **more: Any) -> Clocs:
    torch.manual_seed(0)
    config = small_config(method={"name": "clocs", "pairs": pairs, "leads": LEADS, **more})
    made = create_method(config, SignalSpec(100, 5))
    assert isinstance(made, Clocs)
    return made.double()


def unit(views: int, rows: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, views, 4, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()


def given(there: torch.Tensor, patients: list[int] | None = None) -> dict[str, torch.Tensor]:
    return {"there": there, "patient": torch.tensor(PATIENTS if patients is None else patients)}


def asked(a: torch.Tensor, b: torch.Tensor, tau: float, i: int, k: int, of: list[int]) -> torch.Tensor:
    """-log s_ik, the formula as it stands."""
    return -torch.log(torch.exp(a[i] @ b[k] / tau) / torch.stack([torch.exp(a[i] @ b[j] / tau) for j in of]).sum())


def agree(loss: torch.Tensor, by_hand: torch.Tensor, of: torch.Tensor) -> None:
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-9)
    found, wanted = (torch.autograd.grad(each, of)[0] for each in (loss, by_hand))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("pairs", "count"), [("cmsc", 2), ("cmlc", 3), ("cmsmlc", 6)])
def test_the_loss_is_the_papers_four_terms_averaged_over_pairs_of_views(pairs: str, count: int) -> None:
    h, rows = unit(count), range(6)
    method = make(pairs, temperature=0.4)
    assert len(method.parts) == count
    value = method.loss({"views": h}, given(torch.ones(6, count, dtype=torch.bool)), None)
    alike = [(i, k) for i in rows for k in rows if i != k and PATIENTS[i] == PATIENTS[k]]
    assert len(alike) == 3 * 2 + 2 * 1
    of_pairs = []
    for one, other in combinations(range(count), 2):
        terms = []
        for a, b in ((h[:, one], h[:, other]), (h[:, other], h[:, one])):
            terms.append(torch.stack([asked(a, b, 0.4, i, i, list(rows)) for i in rows]).mean())
            terms.append(torch.stack([asked(a, b, 0.4, i, k, list(rows)) for i, k in alike]).mean())
        of_pairs.append(torch.stack(terms).sum())
    agree(value.loss, torch.stack(of_pairs).mean(), h)
    assert value.metrics["same_record"] + value.metrics["same_patient"] == pytest.approx(value.loss.item() / 2)
    assert value.chance is not None and value.chance.loss == pytest.approx(4 * math.log(6), rel=1e-5)


def test_what_a_record_lacks_is_neither_asked_for_nor_told_from() -> None:
    h = unit(3)
    there = torch.ones(6, 3, dtype=torch.bool)
    there[0, 1] = there[2, 1] = there[3, 0] = there[5, :2] = False
    value = make("cmlc").loss({"views": h}, given(there), None)
    record, patient = [], []
    for a in range(3):
        for b in range(3):
            of = [j for j in range(6) if there[j, b]]
            for i in range(6):
                for k in of:
                    if a != b and there[i, a] and PATIENTS[i] == PATIENTS[k]:
                        (record if i == k else patient).append(asked(h[:, a], h[:, b], 0.1, i, k, of))
    agree(value.loss, 2 * (torch.stack(record).mean() + torch.stack(patient).mean()), h)
    gradient = torch.autograd.grad(make("cmlc").loss({"views": h}, given(there), None).loss, h)[0]
    assert not gradient[~there].any() and (gradient[there].abs().sum(dim=-1) > 0).sum() >= 11
    nobody = torch.zeros_like(there)
    nothing = make("cmlc").loss({"views": h}, given(nobody), None)
    assert nothing.loss == 0 and not torch.autograd.grad(nothing.loss, h)[0].any()


def test_an_example_on_paper() -> None:
    """Both halves of the first record are (1, 0), those of the second (0, 1); tau 1. Finding one's own half costs
    -ln(e / (e + 1)) = 0.31326169, and the half of the patient's other record -ln(1 / (e + 1)) = 1.31326169."""
    h = torch.eye(2, dtype=torch.float64)[:, None].expand(2, 2, 2)
    method, there = make(temperature=1.0), torch.ones(2, 2, dtype=torch.bool)
    strangers = method.loss({"views": h}, given(there, [4, 9]), None)
    assert strangers.loss.item() == pytest.approx(2 * 0.31326169, abs=5e-8) and strangers.metrics["same_patient"] == 0
    assert strangers.chance is not None and strangers.chance.loss == pytest.approx(2 * math.log(2))
    one = method.loss({"views": h}, given(there, [4, 4]), None)
    assert one.loss.item() == pytest.approx(2 * (0.31326169 + 1.31326169), abs=5e-8)


def batch() -> Batch:
    """Records of 311 and 500 samples; record 0 has leads I, II, III alone, record 1 none, record 2 one sample."""
    made = dataclasses.replace(views_batch(), patient=np.arange(24) // 2)
    made.lead_mask[1], made.valid_samples[2] = False, 1
    return made


@torch.no_grad()
def test_halves_follow_each_other_leads_stand_alone_and_what_is_missing_is_no_view() -> None:
    inputs = make("cmsmlc").inputs(batch(), None, Draws(0, 2, slice(0, 24)))
    assert inputs["there"].shape == (24, 6) and torch.equal(inputs["patient"], torch.arange(24) // 2)
    assert inputs["there"][0].tolist() == [True, False, False] * 2, "of I, aVF and V6 it has I"
    assert not inputs["there"][1:3].any() and inputs["there"][3:].all()
    assert make("cmlc").inputs(batch(), None, Draws(0, 2, slice(0, 24)))["there"][2].all(), "one sample is a time"
    method, heard = make("cmsmlc"), []

    class Listening(torch.nn.Module):
        reads_age = False

        def forward(self, *signals: torch.Tensor) -> Any:
            heard.append(signals)
            return type("Output", (), {"embedding": F.normalize(signals[0][:, 0, :8] + 9, dim=-1)})

    method.ecg = Listening()  # type: ignore[assignment]
    features = method(inputs)
    assert len(heard) == 6 and features["views"].shape == (24, 6, 8)
    whole = batch()
    for (half, lead), (signal, leads, valid) in zip(method.parts, heard, strict=True):
        assert half is not None and lead in (0, 5, 11)
        for row in range(3, 24):
            n = int(whole.valid_samples[row]) // 2
            assert valid[row] == n and leads[row].nonzero().tolist() == [[lead]]
            np.testing.assert_array_equal(signal[row, :, :n], whole.signal[row, :, half * n : half * n + n])
    assert torch.equal(features["ecg"], features["views"][:, 0])


@torch.no_grad()
@pytest.mark.parametrize("pairs", ["cmsc", "cmlc", "cmsmlc"])
def test_features_are_those_of_the_parts_as_records_of_their_own(pairs: str) -> None:
    """A half is the record cut there; a lead alone is the record without the others. All is finite."""
    method, whole = make(pairs).eval(), batch()
    inputs = method.inputs(whole, None, Draws(0, 2, slice(0, 24)))
    views = method({name: x.double() if x.is_floating_point() else x for name, x in inputs.items()})["views"]
    assert views.isfinite().all()
    for number, (half, lead) in enumerate(method.parts):
        for row in (3, 4):
            n = int(whole.valid_samples[row])
            start, n = (0, n) if half is None else (half * (n // 2), n // 2)
            signal = np.zeros((1, 12, 500))
            signal[0, :, :n] = whole.signal[row, :, start : start + n]
            mask = torch.tensor([[lead is None or each == lead for each in range(12)]])
            alone = method.ecg(torch.from_numpy(signal), mask, torch.tensor([n])).embedding
            torch.testing.assert_close(views[row, number], alone[0], rtol=1e-6, atol=1e-7)


def on_ranks(rank: int, world: int) -> tuple[float, np.ndarray]:
    """Loss and gradient at this rank's share of five records; the first patient's three lie on both ranks."""
    torch.set_num_threads(1)
    own = local_slice(5, rank, world)
    h = unit(3, 6, seed=4).detach()[own].requires_grad_()
    there = torch.ones(5, 3, dtype=torch.bool)
    there[1, 2] = there[4, 0] = False
    inputs = {name: each[own] for name, each in given(there, [7, 3, 7, 5, 7]).items()}
    value = make("cmlc").loss({"views": h}, inputs, None)
    assert value.metrics["same_patient"] > 0
    return float(value.loss.detach()), torch.autograd.grad(value.loss, h)[0].numpy()


@pytest.mark.processes
def test_records_of_one_patient_find_each_other_across_ranks_and_gradients_are_whole() -> None:
    two, (one,) = run_ranks(2, on_ranks), run_ranks(1, on_ranks)
    assert [each[0] for each in two] == pytest.approx([one[0]] * 2, rel=1e-9)
    np.testing.assert_allclose(np.concatenate([each[1] for each in two]), one[1], rtol=1e-7, atol=1e-10)


def test_leads_are_the_twelve_each_once_and_records_of_a_patient_may_meet_in_its_recipes() -> None:
    for name in ("clocs-tiny", "clocs-published"):
        config = load_config(name)
        assert config.method.name == "clocs" and not config.data.patient_disjoint
    assert parse_config({"method": {"name": "clocs"}}).method.model_dump()["leads"] == STANDARD_LEADS
    with pytest.raises(UsageError, match=r"method\.leads: lead V1 stands there twice"):
        parse_config({"method": {"name": "clocs", "leads": ["V1", "II", "V1"]}})
    with pytest.raises(UsageError, match=r"method\.leads"):
        parse_config({"method": {"name": "clocs", "leads": ["V1"]}})
