"""Over any number of ranks every loss and its gradients are those of one process in float64.

For any split and either scheme.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from cardialign.kernels.contrastive import Execution, NegativeWeights, Similarity, ets, siglip, weighted_infonce
from cardialign.kernels.contrastive.exchange import Gather, Ring, choose_exchange
from cardialign.kernels.contrastive.reference import reference_infonce
from tests.support.kernels.loss_family import FAMILY, Batch, poison_uninitialised_memory, relative
from tests.support.processes import RankError, run_ranks
from tests.support.soak import long_form

pytestmark = pytest.mark.processes
CHUNK = 7
SPLITS = {1: [[12]], 2: [[9, 17], [0, 3]], 3: [[14, 1, 11], [0, 5, 0]], 4: [[5, 0, 15, 8], [1, 1, 1, 1]]}
SCHEMES = ("gather", "ring")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 1e-2}

Case = tuple[str, str, tuple[int, ...], torch.dtype]


def cases(world: int) -> list[Case]:
    """Every loss and scheme in float64 on every split; lower precision once each."""
    found: list[Case] = [
        (name, scheme, tuple(sizes), torch.float64) for sizes in SPLITS[world] for scheme in SCHEMES for name in FAMILY
    ]
    low = ("weighted-ramp", "soft-ramp", "siglip-soft", "ets")
    found += [
        (name, scheme, tuple(SPLITS[world][0]), dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for scheme in SCHEMES
        for name in low
    ]
    return found


def run_case(rank: int, case: Case) -> dict[str, torch.Tensor]:
    """Loss and gradients of this rank's rows.

    The local loss is scaled as a trainer might; the gradients are scaled back.
    """
    name, scheme, sizes, dtype = case
    member, factor = FAMILY[name], 3.0
    batch = member.prepare(Batch.random(sum(sizes)).to(dtype)).rows(slice(sum(sizes[:rank]), sum(sizes[: rank + 1])))
    execution = Execution(scheme=scheme, chunk=CHUNK)  # type: ignore[arg-type]
    found = member.value_and_gradients(lambda b, **o: factor * member.tiled(b, **o), batch, execution=execution)
    return {name: value / factor for name, value in found.items()}


def run_cases(rank: int, world: int) -> list[dict[str, torch.Tensor]]:
    return [run_case(rank, case) for case in cases(world)]


@pytest.mark.parametrize("world", [world if world < 3 else long_form(world) for world in SPLITS])
def test_every_rank_gets_the_loss_and_gradients_of_the_global_batch(world: int) -> None:
    ranks = run_ranks(world, run_cases)
    for number, case in enumerate(cases(world)):
        name, _, sizes, dtype = case
        member = FAMILY[name]
        whole = member.prepare(Batch.random(sum(sizes)).to(dtype)).to(torch.float64)
        truth = member.value_and_gradients(member.plain, whole)
        results = [rank[number] for rank in ranks]
        for key, expected in truth.items():
            found = [result[key] for result in results]
            if key in ("ecg", "text"):
                assert relative(torch.cat(found), expected) < TOLERANCE[dtype], (case, key)
            else:
                assert all(torch.equal(each, found[0]) for each in found), (case, key)
                assert relative(found[0], expected) < TOLERANCE[dtype], (case, key)


def loss_with_rank_dependent_width(rank: int, world: int) -> None:
    width = 4 if rank == 1 else 8
    pair = F.normalize(torch.ones(2, width), dim=1)
    weighted_infonce(pair, pair, torch.zeros(1), Similarity(), NegativeWeights())


def test_ranks_with_different_widths_are_told_so_instead_of_hanging() -> None:
    with pytest.raises(RankError, match=r"ranks disagree about the embedding width: \{0: 8, 1: 4\}"):
        run_ranks(2, loss_with_rank_dependent_width, deadline=30)


def everything_else(rank: int, world: int) -> dict[str, Any]:
    """Three ranks, one start.

    Sub-groups, repeated runs, the choice by size, evaluation without gradients, unequal options.
    """
    found: dict[str, Any] = {}
    group = dist.new_group([0, 2])
    batch = Batch.random(12)
    if rank != 1:
        part = batch.rows(slice(0, 5) if rank == 0 else slice(5, 12))
        for scheme in SCHEMES:
            operands = (part.ecg, part.text, part.log_scale, part.similarity(), NegativeWeights())
            execution = Execution(group=group, scheme=scheme)  # type: ignore[arg-type]
            found[f"group {scheme}"] = float(weighted_infonce(*operands, execution).loss)
    poison_uninitialised_memory(True)
    single = batch.to(torch.float32).rows(slice(4 * rank, 4 * rank + 4))
    for scheme in SCHEMES:
        for name in ("weighted-ramp", "soft-ramp", "siglip-soft"):
            member = FAMILY[name]
            execution = Execution(scheme=scheme, chunk=3)  # type: ignore[arg-type]
            runs = [member.value_and_gradients(member.tiled, single, execution=execution) for _ in range(2)]
            found[f"bitwise {scheme} {name}"] = all(
                torch.equal(runs[0][key], runs[1][key]) and bool(runs[0][key].isfinite().all()) for key in runs[0]
            )
    for width in (8, 1 << 26):  # 4 rows of 2^26 are expanded, not stored
        wide = torch.zeros(1, 1).expand(4, width)
        found[f"auto {width}"] = type(choose_exchange(wide, wide, Similarity(), Execution(), {})) is (
            Gather if width == 8 else Ring
        )
    with torch.no_grad():
        found["evaluation"] = float(siglip(single.ecg, single.text, single.log_scale, single.bias))
    for key, call in {
        "scheme": lambda: ets(single.ecg, single.text, execution=Execution(scheme=SCHEMES[rank % 2])),  # type: ignore[arg-type]
        "need of gradients": lambda: ets(single.ecg.clone().requires_grad_(rank == 0), single.text),
        "empty": lambda: ets(single.ecg[:0], single.text[:0]),
    }.items():
        try:
            call()
        except ValueError as error:
            found[key] = str(error)
    return found


def test_groups_repetition_choice_and_refusals() -> None:
    batch = Batch.random(12)
    expected, _ = reference_infonce(batch.ecg, batch.text, batch.log_scale, batch.similarity(), NegativeWeights())
    ranks = run_ranks(3, everything_else)
    for scheme in SCHEMES:
        assert ranks[0][f"group {scheme}"] == ranks[2][f"group {scheme}"] == pytest.approx(float(expected), rel=1e-12)
    member = FAMILY["siglip"]
    for found in ranks:
        assert all(value for key, value in found.items() if key.startswith(("bitwise", "auto"))), found
        assert found["evaluation"] == pytest.approx(float(member.plain(batch)), rel=1e-6)
        assert "ranks disagree about the scheme: {0: 1, 1: 2, 2: 1}" in found["scheme"]
        assert "ranks disagree about the need of gradients: {0: 1, 1: 0, 2: 0}" in found["need of gradients"]
        assert "global batch is empty" in found["empty"]
