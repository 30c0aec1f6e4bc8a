"""Every term against its formula, in float64 and by loops, value and gradient; and what each player's step teaches."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.pretrain.methods.scar import losses
from tests.support.small_scar import MASKER, REPORTS, B, Bank, doubled, inputs_of, make

N, E, LEADS = 24, 5, 12


def given() -> dict[str, Tensor]:
    """Four records: one whole, one with gaps, one with a single token, one with none."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    recorded = torch.ones(4, N, dtype=torch.bool)
    recorded[1, 3:9], recorded[2], recorded[3] = False, False, False
    recorded[2, 7] = True
    return {
        "a": F.normalize(normal(4, E), dim=1).requires_grad_(),
        "b": F.normalize(normal(4, E), dim=1).requires_grad_(),
        "words": normal(4, N, E),
        "scores": normal(4, N).requires_grad_(),
        "recorded": recorded,
        "count": torch.tensor([7, 4, 0, 0]),
    }


def agree(found: Tensor, expected: list[Tensor | float], leaf: Tensor) -> None:
    """Values, and the gradient at `leaf` of their sum with unequal weights."""
    wanted = torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in expected])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-9)
    weights = torch.arange(1, len(wanted) + 1, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((x.double() * weights).sum(), leaf)[0] for x in (found, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_consistency_is_one_minus_the_cosine_to_a_target_that_stands_still() -> None:
    x = given()
    expected = [1 - sum(x["a"][i, e] * x["b"][i, e].item() for e in range(E)) for i in range(4)]
    found = losses.consistency(x["a"], x["b"])
    assert torch.autograd.grad(found.sum(), x["b"], allow_unused=True, retain_graph=True)[0] is None
    agree(found, expected, x["a"])


def test_selection_is_the_divergence_from_the_softmax_of_cosines_over_what_is_visible() -> None:
    x, tau = given(), 0.2
    expected: list[Tensor | float] = []
    for i in range(4):
        visible = [k for k in range(N) if x["recorded"][i, k]]
        text = x["b"][i].detach().numpy()
        raised = [
            math.exp(float(x["words"][i, k].numpy() @ text / np.linalg.norm(x["words"][i, k].numpy())) / tau)
            for k in visible
        ]
        total = sum(torch.exp(x["scores"][i, k]) for k in visible)
        each = [
            r / sum(raised) * (math.log(r / sum(raised)) - (x["scores"][i, k] - torch.log(total)))
            for r, k in zip(raised, visible, strict=True)
        ]
        expected.append(sum(each) if each else 0.0 * x["scores"][i].sum())
    some = x["recorded"].any(dim=1, keepdim=True)
    log_weights = torch.log_softmax(x["scores"].masked_fill(~(x["recorded"] | ~some), -torch.inf), dim=1)
    found = losses.selection(log_weights, x["words"], x["b"], x["recorded"], tau)
    assert found[2].item() == pytest.approx(0, abs=1e-9), "one token has all the weight, in both"
    agree(found, expected, x["scores"])


def test_the_budget_is_the_square_of_what_the_soft_decisions_miss_it_by() -> None:
    x = given()
    expected: list[Tensor | float] = []
    for i in range(4):
        there = [k for k in range(N) if x["recorded"][i, k]]
        mean = sum(1 / (1 + torch.exp(-x["scores"][i, k])) for k in there) / max(1, len(there))
        expected.append((mean - int(x["count"][i]) / len(there)) ** 2 if there else 0.0 * x["scores"][i].sum())
    agree(losses.budget(torch.sigmoid(x["scores"]), x["recorded"], x["count"]), expected, x["scores"])


def test_roughness_is_the_mean_step_between_neighbours_in_time_of_one_lead() -> None:
    x, n = given(), N // LEADS
    soft = torch.sigmoid(x["scores"])
    expected: list[Tensor | float] = []
    for i in range(4):
        steps = [
            abs(soft[i, lead * n + t + 1] - soft[i, lead * n + t])
            for lead in range(LEADS)
            for t in range(n - 1)
            if x["recorded"][i, lead * n + t] and x["recorded"][i, lead * n + t + 1]
        ]
        expected.append(sum(steps) / len(steps) if steps else 0.0 * x["scores"][i].sum())
    agree(losses.roughness(torch.sigmoid(x["scores"]), x["recorded"], LEADS), expected, x["scores"])


def test_the_margin_is_the_cosine_to_the_own_report_less_its_mean_over_all() -> None:
    x = given()
    mean = x["b"].detach().mean(dim=0)
    expected = [
        sum(x["a"][i, e] * x["b"][i, e].item() for e in range(E))
        - sum(x["a"][i, e] * x["b"][j, e].item() for j in range(4) for e in range(E)) / 4
        for i in range(4)
    ]
    found = losses.margin(x["a"], x["b"], mean)
    assert torch.autograd.grad(found.sum(), x["b"], allow_unused=True, retain_graph=True)[0] is None
    agree(found, expected, x["a"])


def infonce(ecg: Tensor, text: Tensor, scale: Tensor, alpha: Callable[[int, int], float]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for left, right in ((ecg, text), (text, ecg)):
        for i in range(len(left)):
            own = torch.exp(scale * (left[i] * right[i]).sum())
            others = [alpha(i, j) * torch.exp(scale * (left[i] * right[j]).sum()) for j in range(len(left)) if j != i]
            total = total - torch.log(own / (own + sum(others))) / (2 * len(left))
    return total


def sigmoid(ecg: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(ecg)):
        for j in range(len(ecg)):
            logit = scale * (ecg[i] * text[j]).sum() + bias[0]
            total = total - torch.log(1 / (1 + torch.exp(-logit if i == j else logit))) / len(ecg)
    return total


def aligned(align: str, ecg: Tensor, features: dict[str, Tensor]) -> Tensor:
    scale, text = torch.exp(features["log_scale"][0]), features["text"]
    if align == "sigmoid":
        return sigmoid(ecg, text, scale, features["bias"])
    unit = Bank().similarity_features(REPORTS[: len(ecg)]).astype(np.float64)

    def alpha(i: int, j: int) -> float:
        if REPORTS[i] == REPORTS[j]:
            return 0.0
        return float(np.clip((0.8 - unit[i] @ unit[j]) / 0.5, 0, 1)) if align == "diagsim" else 1.0

    return infonce(ecg, text, scale, alpha)


def features_of(align: str, rows: int) -> dict[str, Tensor]:
    """Random features in float64, each a leaf."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    made = {name: F.normalize(normal(rows, E), dim=1) for name in ("ecg", "masked", "text")}
    made |= {"log_scale": torch.tensor([1.3], dtype=torch.float64)}
    if align == "sigmoid":
        made["bias"] = torch.tensor([-2.0], dtype=torch.float64)
    for name in ("consistency", "selection", "budget", "smoothness"):
        count = torch.ones(rows) if name in ("consistency", "selection") else (torch.arange(rows) % 2).double()
        made[name] = torch.stack([normal(rows).abs() * count, count], dim=1).double()
    made = {name: x.requires_grad_() for name, x in made.items()}
    return made | {"removed": torch.ones(rows, 13, 2)}


WEIGHTS = {"consistency": 0.5, "selection": 0.1, "budget": 1.0, "smoothness": 0.05}


@pytest.mark.parametrize("rows", [1, B])
@pytest.mark.parametrize("align", ["infonce", "diagsim", "sigmoid"])
def test_the_loss_is_the_sum_of_its_terms_and_so_is_its_gradient(align: str, rows: int) -> None:
    method = make(align=align)
    x, inputs = features_of(align, rows), doubled(inputs_of(method, rows=slice(0, rows)))
    terms = {"full_loss": aligned(align, x["ecg"], x), "masked_loss": aligned(align, x["masked"], x)}
    for name in WEIGHTS:
        terms[name] = sum(x[name][i, 0] for i in range(rows)) / (x[name][:, 1].detach().sum() or 1)
    expected = sum(WEIGHTS.get(name, 1.0) * term for name, term in terms.items())
    loss, metrics, _ = method.loss(x, inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, term in terms.items():
        assert metrics[name].item() == pytest.approx(term.item(), rel=1e-6, abs=1e-9), name
    leaves = [name for name, leaf in x.items() if leaf.requires_grad]
    mine = torch.autograd.grad(loss, [x[name] for name in leaves], allow_unused=True)
    theirs = torch.autograd.grad(expected, [x[name] for name in leaves], allow_unused=True)
    for name, a, b in zip(leaves, mine, theirs, strict=True):
        column = (slice(None), slice(0, 1)) if name in WEIGHTS else slice(None)  # counts are no figures to learn
        torch.testing.assert_close(a[column], b[column], rtol=1e-5, atol=1e-8, msg=name)


@pytest.mark.parametrize(("step", "silent"), [(0, {"budget", "smoothness"}), (1, {"consistency", "selection"})])
def test_a_turn_teaches_one_player_and_tells_the_same_loss(step: int, silent: set[str]) -> None:
    """Even steps are the encoder's, odd ones the masker's, which no term but L_mask and its own bounds may teach."""
    method, both = make({**MASKER, "turns": "alternate"}), make()
    x = features_of("infonce", B)
    loss, _, chance = method.loss(x, doubled(inputs_of(method, step)))
    other, _, _ = both.loss(x, doubled(inputs_of(both, step)))
    assert loss.item() == pytest.approx(other.item(), rel=1e-9) and chance is not None
    for name in WEIGHTS:
        mine, whole = (
            torch.autograd.grad(each, x[name], retain_graph=True, allow_unused=True)[0] for each in (loss, other)
        )
        if name in silent:
            assert mine is None
        else:
            torch.testing.assert_close(mine, whole)
    for name in ("masked", "ecg", "text"):
        mine, whole = (torch.autograd.grad(each, x[name], retain_graph=True)[0] for each in (loss, other))
        torch.testing.assert_close(mine, whole)


def test_a_masker_of_margins_lowers_each_record_s_by_the_temperature_and_the_encoder_never_sees_it() -> None:
    """dL/dz_mask at the masker's turn is -(t_i - mean t) / (tau B): descent by a turned gradient lowers the margin."""
    method = make({**MASKER, "turns": "alternate", "aim": "margin"})
    x = features_of("infonce", B)
    told = {}
    for step in (0, 1):
        loss, told, _ = method.loss(x, doubled(inputs_of(method, step)))
        gradient = torch.autograd.grad(loss, x["masked"])[0]
        text, tau = x["text"].detach(), math.exp(-x["log_scale"].item())
        by_hand = -torch.stack([t - sum(text) / B for t in text]) / (tau * B)
        assert torch.allclose(gradient, by_hand) == (step == 1), "one player's at a time"
    by_loops = sum((x["masked"][i] * (x["text"][i] - x["text"].mean(dim=0))).sum().item() for i in range(B)) / B
    assert (
        told["margin"].item() == pytest.approx(by_loops) and "margin" not in make().loss(x, inputs_of(make())).metrics
    )


def test_a_model_that_sees_nothing_stands_at_chance() -> None:
    """All vectors equal: ln B in both passes, with the five others' reports of which one is a duplicate's own."""
    method, x = make(), features_of("infonce", B)
    same = torch.ones(B, E, dtype=torch.float64) / math.sqrt(E)
    blind = {**x, **dict.fromkeys(("ecg", "masked", "text"), same)}
    loss, _, chance = method.loss(blind, doubled(inputs_of(method)))
    assert chance is not None and 0 <= chance.loss - loss.item() < 0.02


def test_the_masker_learns_by_the_weight_of_what_is_kept_against_the_loss() -> None:
    """dL/ds is minus that of the straight-through weight, kept or removed, which differences of L_mask give."""
    method = make().double()
    inputs = doubled(inputs_of(method))
    logits: list[Tensor] = []
    hook = method.masker.register_forward_hook(lambda module, given, made: logits.append(made) or made.retain_grad())
    features = doubled(method(inputs))
    hook.remove()
    masked = method.loss(features, inputs).metrics["masked_loss"].item()
    whole, _ = method._align(features["masked"], features, inputs, None)
    whole.backward()
    gradient = logits[0].grad
    assert gradient is not None and whole.item() == pytest.approx(masked)
    with torch.no_grad():
        patches = method.ecg.embed_patches(inputs["signal"], inputs["lead_mask"], inputs["valid_samples"])
        text = features["text"].detach()
        whole = method._view(patches, text)
        removal, _ = method._removal(patches, whole.tokens, text, inputs)
        own = torch.nonzero(patches.mask & ~inputs["by_chance"][:, None])
        for row, place in own[:: max(1, len(own) // 12)].tolist():
            shifted = []
            for step in (0.0, 1e-4):
                keep = (~removal.removed).double()
                keep[row, place] += step if keep[row, place] == 0 else -step
                view = method._view(patches, text, removal.removed, keep)
                shifted.append(method._align(view.embedding, features, inputs, None)[0].item())
            slope = (shifted[1] - shifted[0]) / (1e-4 if removal.removed[row, place] else -1e-4)
            soft = removal.relaxed[row, place].item()
            expected = slope * soft * (1 - soft) / inputs["cooling"][row].item()
            assert gradient[row, place].item() == pytest.approx(expected, rel=2e-3, abs=1e-8)
    of_removed = gradient[removal.removed & ~inputs["by_chance"][:, None]]
    assert (of_removed.abs() > 0).all(), "what is removed is known, too"
    assert gradient[inputs["by_chance"]].abs().max() == 0, "chance is no choice of the masker's"


def test_keys_of_weight_0_are_as_good_as_none() -> None:
    """The view at a step that teaches the masker is that of plain attention without the removed patches."""
    method = make().double()
    inputs = doubled(inputs_of(method))
    with torch.no_grad():
        features = method(inputs)
        others = method({name: x for name, x in inputs.items() if name != "plays"})
        patches = method.ecg.embed_patches(inputs["signal"], inputs["lead_mask"], inputs["valid_samples"])
        whole = method._view(patches, features["text"])
        removal, _ = method._removal(patches, whole.tokens, features["text"], inputs)
        left = patches._replace(mask=patches.mask & ~removal.removed)
        alone = method._view(left, features["text"])
    torch.testing.assert_close(others["masked"], alone.embedding)
    torch.testing.assert_close(features["masked"], alone.embedding, rtol=0, atol=2e-4)
    torch.testing.assert_close(features["selection"], others["selection"], rtol=0, atol=2e-3)
