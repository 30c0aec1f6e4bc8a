"""The number of removed patches is exact, somebody always stays, and a draw belongs to its row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.scar.masker import LEADS, logistic_noise, random_scores, remove
from cardialign.pretrain.training.schedule import idle_parts
from tests.support.small_scar import ENCODER, MASKER, B, batch, doubled, inputs_of, make


def test_exactly_the_share_that_is_asked_is_removed_and_never_all() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, n = 400, 20
    recorded = torch.rand(rows, LEADS * n, generator=generator) < torch.rand(rows, 1, generator=generator)
    recorded[0], recorded[1] = False, False
    recorded[1, 17] = True
    share = torch.rand(rows, generator=generator)
    share[:4] = 1.0
    scores = torch.randn(rows, LEADS * n, generator=generator)
    removed, count, _ = remove(scores, recorded, share, torch.ones(rows))
    for i in range(rows):
        there = int(recorded[i].sum())
        wanted = min(round(float(share[i]) * there), max(there - 1, 0))
        assert int(removed[i].sum()) == int(count[i]) == wanted
        assert not (removed[i] & ~recorded[i]).any(), "what was not recorded cannot be removed"
        if there:
            kept = recorded[i] & ~removed[i]
            assert kept.unflatten(0, (LEADS, n)).any(dim=1).any(), "one lead at least is there, in part"
            assert not wanted or scores[i][removed[i]].min() >= scores[i][kept].max()


def test_a_masker_without_an_opinion_meets_its_budget_softly() -> None:
    """Logits of 0: the share of soft decisions above 1/2 is the share that is asked, of logistic noise."""
    rows, n = 200, 20
    noise = logistic_noise(Draws(0, 0, slice(0, rows)), n)
    recorded = torch.ones(rows, LEADS * n, dtype=torch.bool)
    for share in (0.1, 0.35, 0.6):
        soft = remove(noise, recorded, torch.full((rows,), share), torch.full((rows,), 0.3)).relaxed
        assert (soft > 0.5).float().mean().item() == pytest.approx(share, abs=0.01)
        near = remove(noise, recorded, torch.full((rows,), share), torch.full((rows,), 1e-3)).relaxed.mean().item()
        assert near == pytest.approx(share, abs=0.01), "cold, they are decisions"


def test_chance_removes_cells_whole_leads_and_whole_times() -> None:
    rows, n = 400, 20
    scores = random_scores(Draws(0, 0, slice(0, rows)), n)
    recorded = torch.ones(rows, LEADS * n, dtype=torch.bool)
    removed = remove(scores, recorded, torch.full((rows,), 0.5), torch.ones(rows)).removed.unflatten(1, (LEADS, n))
    leads, times = removed.all(dim=2).sum(dim=1), removed.all(dim=1).sum(dim=1)
    assert 0.15 < (leads >= 5).float().mean() < 0.35 and 0.15 < (times >= 8).float().mean() < 0.35
    assert ((leads == 0) & (times == 0)).float().mean() > 0.2
    shares = removed.float().mean(dim=(0, 2))
    assert (shares - 0.5).abs().max() < 0.08, "no lead is preferred"


def test_the_draws_belong_to_the_row() -> None:
    method = make({**MASKER, "reads_report": 0.5})
    whole = inputs_of(method)
    parts = [inputs_of(method, rows=local_slice(B, rank, 3)) for rank in range(3)]
    for name in ("share", "by_chance", "random_scores", "noise", "reads", "cooling"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name]), name


def test_rows_do_not_see_each_other_whatever_the_micro_batch() -> None:
    method = make(align="diagsim")
    whole = inputs_of(method)
    with torch.no_grad():
        together = method(whole)
        alone = [method({name: x[i : i + 1] for name, x in whole.items()}) for i in range(B)]
    for name, feature in together.items():
        if feature.ndim > 1:
            torch.testing.assert_close(torch.cat([each[name] for each in alone]), feature, atol=2e-6, rtol=1e-5)


def test_gradient_reaches_every_parameter_of_the_masker_and_none_of_its_reading() -> None:
    method = make({**MASKER, "reads_report": 1.0}).double()
    inputs = doubled(inputs_of(method))
    method.loss(doubled(method(inputs)), inputs).loss.backward()
    silent = [n for n, p in method.masker.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []
    method.zero_grad()
    features = method(inputs)
    (features["budget"][:, 0].sum() + features["smoothness"][:, 0].sum()).backward()
    others = [n for n, p in method.named_parameters() if p.grad is not None and not n.startswith("masker.")]
    assert [n for n in others if method.get_parameter(n).grad.abs().max() > 0] == [], "it reads, and teaches nothing"


def test_logits_differ_in_order_alone_however_far_they_grow() -> None:
    """Mean 0 and the spread that is set over what was recorded of each record; and a gradient at any size of them."""
    method = make({**MASKER, "spread": 2.0}, random_share=0.0).double()
    inputs = doubled(inputs_of(method))
    patches = method.ecg.embed_patches(inputs["signal"], inputs["lead_mask"], inputs["valid_samples"])
    logits = method.masker(patches.tokens, patches.seconds, patches.mask)
    with torch.no_grad():
        for part in (method.masker.lead, method.masker.time, method.masker.cell):
            part.weight *= 1000
    grown = method.masker(patches.tokens, patches.seconds, patches.mask)
    for each, there in zip(grown.detach(), patches.mask, strict=True):
        assert each[there].mean().item() == pytest.approx(0, abs=1e-9)
        assert each[there].std(correction=0).item() == pytest.approx(2.0, rel=1e-3)
    assert torch.equal(logits[0].argsort(), grown[0].argsort())
    method.loss(doubled(method(inputs)), inputs).loss.backward()
    assert method.masker.to_tokens.weight.grad.abs().max() > 1e-6


def test_the_players_take_turns_by_their_learning_rates() -> None:
    alternate, reversal, none = make({**MASKER, "turns": "alternate", "learning_rate": 3.0}), make(), make(None)
    even, odd = alternate.learning_rates(4), alternate.learning_rates(5)
    assert list(even) == list(odd) and even["masker."] == 0 and odd["masker."] == 3
    assert all(even[name] == 1 and odd[name] == 0 for name in even if name != "masker.")
    parts = tuple(even)
    assert all(name.startswith(parts) for name, _ in alternate.named_parameters()), "somebody would never rest"
    assert reversal.learning_rates(0) == {"masker.": 1.0} and none.learning_rates(7) == {}


def test_until_it_begins_chance_plays_alone_and_the_masker_rests() -> None:
    for turns in ("alternate", "reversal"):
        method = make({**MASKER, "turns": turns, "begins": 5})
        early, late = inputs_of(method, 4), inputs_of(method, 5)
        assert early["by_chance"].all() and not late["by_chance"].all()
        assert method.learning_rates(3)["masker."] == 0 and method.learning_rates(5)["masker."] == 1
        assert method.learning_rates(3).get("ecg.", 1.0) == 1, "its steps are the encoder's until then"
        own = [step for step in range(20) if method.learning_rates(step)["masker."]]
        for steps in range(20):
            assert method.masker_steps(steps) == sum(step < steps for step in own)
        assert idle_parts(method.learning_rates, 5) == ["masker"] and idle_parts(method.learning_rates, 20) == []
        assert early["cooling"][0] == late["cooling"][0] == 1.0 > inputs_of(method, 9)["cooling"][0]


def test_without_a_masker_everything_is_masked_by_chance() -> None:
    method = make(None)
    inputs = inputs_of(method)
    assert inputs["by_chance"].all() and "noise" not in inputs
    features = method(inputs)
    assert "budget" not in features and not any(n.startswith("masker") for n, _ in method.named_parameters())
    share = method.loss(features, inputs).metrics
    assert 0.1 < share["removed"] < 0.6 and share["removed_V6"] >= 0


def test_what_is_removed_is_told_by_lead() -> None:
    method = make(random_share=0.0)
    inputs = inputs_of(method)
    features = method(inputs)
    patches = method.ecg.embed_patches(inputs["signal"], inputs["lead_mask"], inputs["valid_samples"])
    encoded = method.ecg.encode_patches(patches)
    removal, _ = method._removal(patches, encoded, features["text"], inputs)
    metrics = method.loss(features, inputs).metrics
    gone, there = (x.unflatten(1, (LEADS, -1))[:, 6] for x in (removal.removed, patches.mask))
    assert metrics["removed_V1"].item() == pytest.approx(gone.sum().item() / there.sum().item())
    assert metrics["removed"].item() == pytest.approx(removal.removed.sum().item() / patches.mask.sum().item())


@pytest.mark.parametrize("changed", [{"patches": "record"}, {"pooling": "mean"}])
def test_an_encoder_whose_patches_cannot_be_removed_and_weighed_is_refused(changed: dict) -> None:
    with pytest.raises(UsageError, match=r"encoder\.patches to lead and encoder\.pooling to selector"):
        make(encoder={**ENCODER, **changed})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"removed": [0.6, 0.1]}, "removed begins at 0.6 and ends at 0.1; swap them"),
        ({"removed": [0.99, 1.0]}, r"method\.removed\.1: input should be less than or equal to 0.95"),
        ({"removed": [0.0, 0.0]}, "removed ends at 0, the masker would have nothing to do"),
        ({"random_share": 1.0}, "random_share 1 leaves the masker no record"),
        ({"masker": {"width": 9, "heads": 2}}, "not a multiple of heads"),
        ({"masker": {"turns": "reversal"}}, "set aim to loss or turns to alternate"),
        ({"low": 0.8, "high": 0.3}, "low 0.8 is not below high 0.3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(method: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_config({"method": {"name": "scar", **method}})


def test_a_silent_record_is_no_trouble() -> None:
    """No lead at all, or a single token: finite features and gradients."""
    method = make()
    inputs = inputs_of(method)
    inputs["lead_mask"][0] = False
    inputs["lead_mask"][3], inputs["lead_mask"][3, 2] = False, True
    inputs["valid_samples"][3] = 25
    features = method(inputs)
    method.loss(features, inputs).loss.backward()
    assert all(torch.isfinite(x).all() for x in features.values())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())
    assert np.isfinite(batch().signal).all()
