"""The loss is the formula, part after part and record after record; the adversary's gradient is turned round."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import load_config
from cardialign.pretrain.methods.astcl import Astcl, denoised
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.views import viewed
from tests.support.processes import run_ranks
from tests.support.small_encoder import small_config

B, T, D = 6, 200, 5
PATIENTS = np.array([7, 3, 7, 4, 5, 7])
THERE = [[True] * 4, [True] * 3 + [False], [True] * 4, [False] * 4, [False, False, True, True], [True] * 4]
ENCODER = {"name": "vit1d", "width": 8, "depth": 1, "heads": 2, "patch_ms": 100, "embedding_dim": 8}
METHOD = {"name": "astcl", "hidden_dim": 6, "projection_dim": D, "adversary": 0.3, "patient": 0.7}


def make(**more: Any) -> Astcl:
    torch.manual_seed(0)
    made = create_method(small_config(encoder=ENCODER, method={**METHOD, **more}), SignalSpec(100, 2))
    assert isinstance(made, Astcl)
    return made.double()


def batch() -> Batch:
    """Record 1 has limb leads alone, 2 ends early, 3 has no lead, 4 one sample; 0, 2 and 5 are of one patient."""
    generator, rows = np.random.default_rng(0), np.arange(B)
    mask = np.ones((B, 12), dtype=bool)
    mask[1, 6:], mask[3] = False, False
    valid = np.full(B, T, dtype=np.int32)
    valid[2], valid[4] = 95, 1
    signal = generator.normal(size=(B, 12, T)).astype(np.float32)
    return Batch(
        1, rows, signal, mask, valid, rows, np.zeros(B, np.float32), np.zeros(B, np.int8), rows, patient=PATIENTS
    )


def asked(method: Astcl, given: Batch | None = None, rows: slice = slice(0, B)) -> dict[str, torch.Tensor]:
    return method.inputs(given or batch(), None, Draws(0, 3, rows))


def test_cleaning_takes_out_an_offset_and_hum_and_leaves_a_beat() -> None:
    """By loops: means of what was recorded, at the borders of fewer samples."""
    signal = torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    valid = torch.tensor([40, 23])
    found = denoised(signal, valid, 3, 9)
    for row, lead, t in ((0, 0, 0), (0, 3, 20), (0, 11, 39), (1, 5, 1), (1, 7, 22)):
        one = signal[row, lead, : valid[row]]
        near, far = (one[max(0, t - k) : t + k + 1].mean() for k in (1, 4))
        assert found[row, lead, t].item() == pytest.approx((near - far).item())
    assert not found[1, :, 23:].any()
    time = torch.arange(5000, dtype=torch.float64) / 500
    hum, beat = torch.sin(2 * torch.pi * 50 * time), torch.exp(-(((time % 1 - 0.5) / 0.05) ** 2))
    given = (2.0 + 0.2 * hum + beat).expand(1, 12, -1)
    clean = denoised(given, torch.tensor([5000]), 11, 501)[0, 0, 500:-500]
    assert abs(clean.mean()) < 0.01
    left = clean - denoised(beat.expand(1, 12, -1), torch.tensor([5000]), 11, 501)[0, 0, 500:-500]
    assert left.abs().max() < 0.03, "of a hum of 0.2 an eleventh, and no offset"
    assert clean.max() > 0.8, "a beat of 1, less its mean over a second"


def test_the_student_sees_half_the_parts_with_noise_the_teacher_the_others_and_draws_belong_to_the_row() -> None:
    method = make()
    inputs = asked(method)
    assert inputs["there"].tolist() == THERE
    many = Draws(0, 0, slice(0, 4000)).uniform("noisy parts", 4) < 0.5
    assert np.abs(many.mean(axis=0) - 0.5).max() < 0.03
    noise, clean = method.versions(inputs)[0][0], method.versions(inputs)[1][0]
    shown: dict[str, list[tuple[torch.Tensor, ...]]] = {"student": [], "teacher": []}
    for name, module in (("student", method.ecg), ("teacher", method.teacher)):
        module.register_forward_pre_hook(lambda _, given, name=name: shown[name].append(given))  # type: ignore[misc]
    method(inputs)
    for name, noisy in (("student", inputs["noisy"]), ("teacher", ~inputs["noisy"])):
        for part, (signal, leads, valid) in enumerate(shown[name]):
            for row in (0, 2, 5):
                whole, length = (noise if noisy[row, part] else clean)[row], int(batch().valid_samples[row])
                first, end = ((0, length // 2), (length // 2, length // 2 * 2), (0, length), (0, length))[part]
                assert valid[row] == end - first
                assert torch.equal(signal[row, :, : end - first], whole[:, first:end]), (name, part)
                assert leads[row].tolist() == [part < 2 or (lead < 6) == (part == 2) for lead in range(12)]
    parts = []
    for rank in range(3):
        rows, full = local_slice(B, rank, 3), batch()
        names = ("rows", "signal", "lead_mask", "valid_samples", "report", "age_years", "sex", "patient")
        own = {name: getattr(full, name)[rows] for name in names}
        parts.append(asked(method, dataclasses.replace(full, **own), rows))
    for name, whole in inputs.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), whole), name


def features(rows: slice = slice(0, B)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = [F.normalize(torch.randn(B, 4, D, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)]
    count = torch.tensor(THERE).sum(dim=1, keepdim=True).double()
    versions = torch.cat([torch.rand(B, 1, generator=generator, dtype=torch.float64) * count, count], dim=1)
    return {
        "queries": made[0][rows].clone().requires_grad_(),
        "keys": made[1][rows].clone(),
        "versions": versions[rows].clone().requires_grad_(),
        "right": versions[rows].clone(),
    }


def given_rows(rows: slice = slice(0, B)) -> dict[str, torch.Tensor]:
    return {"there": torch.tensor(THERE)[rows], "patient": torch.from_numpy(PATIENTS)[rows]}


def contrast(queries: torch.Tensor, keys: torch.Tensor) -> dict[str, torch.Tensor]:
    """Record after record, squared distances of unit vectors."""
    found: dict[str, list[torch.Tensor]] = {"time": [], "space": [], "patient": []}
    for a, b, name in ((0, 1, "time"), (1, 0, "time"), (2, 3, "space"), (3, 2, "space")):
        for i in range(B):
            for k in range(B):
                if PATIENTS[i] == PATIENTS[k] and THERE[i][a] and THERE[k][b]:
                    found[name if i == k else "patient"].append((queries[i, a] - keys[k, b]).square().sum())
    return {name: torch.stack(each).mean() for name, each in found.items()}


def test_the_loss_is_the_formula_over_parts_and_patients() -> None:
    made = features()
    raw = made["queries"].detach().requires_grad_()
    made["queries"] = F.normalize(raw, dim=-1)  # a squared distance is 2 - 2 cos on the sphere alone
    found = make().loss(made, given_rows(), None)
    means = contrast(made["queries"], made["keys"])
    told = made["versions"][:, 0].sum() / made["versions"][:, 1].sum()
    expected = means["time"] + means["space"] + 0.7 * means["patient"] + told
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-9) and found.chance is None
    for name, value in means.items():
        assert found.metrics[name].item() == pytest.approx(value.item(), rel=1e-9), name
    of = [raw, made["versions"]]
    (a, versions), (b, told_of) = (torch.autograd.grad(x, of, retain_graph=True) for x in (found.loss, expected))
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(versions[:, 0], told_of[:, 0], rtol=1e-7, atol=1e-12)


def test_gradients_are_those_of_the_contrast_and_against_the_discriminator_which_learns_itself() -> None:
    """The encoder: d contrast - 0.3 d error of the discriminator. The discriminator: d error. The teacher: nothing."""
    method = make()
    with torch.no_grad():
        for buffer in method.teacher.buffers():  # a teacher that has gone another way
            if buffer.is_floating_point():
                buffer.mul_(1.1)
    inputs = {name: each.double() if each.is_floating_point() else each for name, each in asked(method).items()}
    found = method.loss(method(inputs), inputs, None)
    noise, clean = viewed(inputs["signal"], inputs, "noisy")[0], method.versions(inputs)[1][0]
    errors, queries, keys = [], torch.zeros(B, 4, D).double(), torch.zeros(B, 4, D).double()
    for row in range(B):
        for part in range(4):
            if not THERE[row][part]:
                continue
            length = int(batch().valid_samples[row])
            half = length // 2
            at = (slice(0, half), slice(half, 2 * half), slice(0, length), slice(0, length))[part]
            leads = torch.from_numpy(batch().lead_mask[row]).clone()
            leads[slice(6, 12) if part == 2 else slice(0, 6) if part == 3 else slice(0, 0)] = False
            both = [(each[row, :, at], leads) for each in (noise, clean)]
            mine, other = both if inputs["noisy"][row, part] else both[::-1]
            h = embedded(method.ecg, *mine)
            queries[row, part] = F.normalize(method.predictor(method.projector(h))[0], dim=0)
            keys[row, part] = F.normalize(method.teacher_projector(embedded(method.teacher, *other))[0], dim=0)
            share = torch.sigmoid(method.discriminator(h))[0, 0]
            errors.append(-torch.log(share if inputs["noisy"][row, part] else 1 - share))
    means, told = contrast(queries, keys.detach()), torch.stack(errors).mean()
    alone = means["time"] + means["space"] + 0.7 * means["patient"]
    assert found.loss.item() == pytest.approx((alone + told).item(), rel=1e-5)
    assert found.metrics["versions"].item() == pytest.approx(told.item(), rel=1e-5)
    for module, strength in ((method.ecg, -0.3), (method.projector, 0.0), (method.discriminator, 1.0)):
        parameters = list(module.parameters())
        got, of, against = (
            torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True)
            for each in (found.loss, alone, told)
        )
        assert any(each is not None and each.abs().max() > 1e-4 for each in got)
        for g, a, b in zip(got, of, against, strict=True):
            parts = [weight * each for weight, each in ((1.0, a), (strength, b)) if each is not None]
            if parts and g is not None:
                torch.testing.assert_close(g, torch.stack(parts).sum(dim=0), rtol=1e-4, atol=1e-6)
            assert (g is None) == (not parts)


def embedded(encoder: torch.nn.Module, signal: torch.Tensor, leads: torch.Tensor) -> torch.Tensor:
    """Of one part as a record of its own, cut where it ends and padded as the encoder reads it."""
    whole = torch.zeros(1, 12, T, dtype=signal.dtype)
    whole[0, :, : signal.shape[1]] = signal
    found: torch.Tensor = encoder(whole, leads[None], torch.tensor([signal.shape[1]])).embedding
    return found


def test_the_teacher_follows_the_student_and_learns_nothing_else() -> None:
    method = make(momentum=0.9)
    assert not list(method.teacher.parameters())
    before = {name: each.clone() for name, each in method.teacher.named_buffers()}
    with torch.no_grad():
        for parameter in [*method.ecg.parameters(), *method.projector.parameters()]:
            parameter.add_(torch.randn_like(parameter))
    modules = {"ecg.": method.ecg, "projector.": method.projector}
    method.after_update(0, lambda prefix: dict(modules[prefix].named_parameters()))
    now, projector = dict(method.teacher.named_buffers()), dict(method.teacher_projector.named_buffers())
    for name, parameter in method.ecg.named_parameters():
        torch.testing.assert_close(now[name], 0.9 * before[name] + 0.1 * parameter.detach())
    assert not torch.equal(projector["0.weight"], method.projector[0].weight)


def test_what_was_not_recorded_says_nothing() -> None:
    method, given = make(), batch()
    signal = given.signal.copy()
    signal[1, 6:], signal[2, :, 95:], signal[3], signal[4, :, 1:] = np.nan, np.nan, np.nan, 50.0
    made, other = (method(asked(method, each)) for each in (given, dataclasses.replace(given, signal=signal)))
    there = torch.tensor(THERE)
    for name in ("queries", "keys"):
        assert other[name][there].isfinite().all()
        torch.testing.assert_close(made[name][there], other[name][there], rtol=0, atol=0)
    torch.testing.assert_close(made["versions"], other["versions"], rtol=0, atol=0)
    assert made["versions"][:, 1].tolist() == [4, 3, 4, 0, 2, 4] and not made["versions"][3].any()


def on_ranks(rank: int, world: int) -> tuple[float, dict[str, np.ndarray]]:
    torch.set_num_threads(1)
    own = local_slice(B, rank, world)
    made = features(own)
    loss = make().loss(made, given_rows(own), None).loss
    gradients = torch.autograd.grad(loss, [made["queries"], made["versions"]])
    return float(loss.detach()), {"queries": gradients[0].numpy(), "versions": gradients[1][:, :1].numpy()}


@pytest.mark.processes
def test_every_rank_has_the_loss_of_the_global_batch_and_its_own_part_of_the_gradient() -> None:
    two, (one,) = run_ranks(2, on_ranks), run_ranks(1, on_ranks)
    assert [each[0] for each in two] == pytest.approx([one[0]] * 2, rel=1e-9)
    for name, whole in one[1].items():
        joined = np.concatenate([each[1][name] for each in two])
        np.testing.assert_allclose(joined, whole, rtol=1e-7, atol=1e-10, err_msg=name)


def test_its_recipes_load_and_say_what_depends_on_the_micro_batch() -> None:
    for size in ("tiny", "published"):
        config = load_config(f"astcl-{size}")
        assert config.method.name == "astcl" and config.depends_on_micro_batch
        assert config.data.patient_disjoint is False, "records of one patient are positives"
