"""What `cardialign bench kernels` measures of attention.

Dense sequences, sequences of which a third is missing, and rotary positions. Work is counted once for all
implementations: 4 FLOPs per query, key and head element forward, 2.5 times that backward (FlashAttention's count), over
the tokens that are there; every operand and result moves once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cardialign.kernels.attention import attention, pack, packed_attention, plan_buckets, rotation, turn_heads
from cardialign.kernels.attention.backends import Operands, choose_backend, operands, probe
from cardialign.kernels.attention.rotary import rotary
from cardialign.kernels.benchmarks.cases import Case, Work, words
from cardialign.kernels.benchmarks.timing import Job
from cardialign.kernels.dispatch import Backend, triton_by_default

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
WARM = {"sequences": 2, "tokens": 8, "heads": 2, "head_width": 16}


def cases(device: torch.device, quick: bool) -> list[Case]:
    """One patch scale of the demo recipe (CPU), the patch scales of `cardialign-base` (CUDA).

    There at its micro-batch of 64 and 4 lead groups.
    """
    cuda = device.type == "cuda"
    dense, packed = _implementations(cuda, quick)
    tokens: tuple[int, ...] = (100,) if not cuda else (199,) if quick else (399, 199, 50)
    shape = {"heads": 8, "head_width": 64} if cuda else {"heads": 4, "head_width": 16}
    found = []
    for count in tokens:
        size = {"sequences": 256 if cuda else 16 if quick else 128, "tokens": count, **shape}
        there = lengths(size["sequences"], count)
        kept, held = int(there.square().sum()) / count**2, int(there.sum()) / count  # in whole sequences
        case = functools.partial(
            Case,
            shown=words(size),
            size=size,
            warm_size=WARM,
            rounds=3 if quick else 30 if cuda else 15,
            memory=not quick,
        )
        auto = functools.partial(_dispatched, size["head_width"])
        found += [
            case(
                "attention",
                implementations=dense,
                build=dense_job,
                work=_work(size, size["sequences"], size["sequences"], device),
                dispatched=auto,
            ),
            case(
                "attention, a third missing",
                implementations=packed,
                build=missing_job,
                work=_work(size, kept, held, device),
                dispatched=functools.partial(_dispatched, size["head_width"], packed=True),
            ),
            case(
                "rotary positions",
                implementations=("formula", "one pass", *(("fused",) if cuda else ())),
                build=rotary_job,
                work=_rotary_work(size, device),
                kernels=("fused",),
                otherwise="one pass",
                scale=3 * size["sequences"] * count * size["heads"] * size["head_width"],
                dispatched=functools.partial(_turned_by, size),
            ),
        ]
    return found


def _implementations(cuda: bool, quick: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of dense sequences, and of sequences a third of which is missing."""
    if cuda:
        return (
            ("math", "compiled", "sdpa", "sdpa-cudnn", "flash"),
            ("masked math", "masked sdpa", "packed varlen", "packed flash"),
        )
    return ("math", *([] if quick else ["compiled"]), "sdpa"), ("masked math", "masked sdpa", "packed sdpa")


def _dispatched(head_width: int, device: torch.device, packed: bool = False) -> str:
    about = Operands(device.type, DTYPES[device.type], head_width, packed=packed)
    return ("packed " if packed else "") + choose_backend(about, probe(device))


def _turned_by(size: dict[str, int], device: torch.device) -> str:
    elements = 3 * size["sequences"] * size["tokens"] * size["heads"] * size["head_width"]
    return "fused" if device.type == "cuda" and triton_by_default("rotary", elements, device) else "one pass"


def _work(size: dict[str, int], pairs: float, held: float, device: torch.device) -> Work:
    """pairs, held: number of whole sequences that the attended pairs, and the tokens, would fill."""
    flops = 4.0 * pairs * size["heads"] * size["tokens"] ** 2 * size["head_width"]
    operand = held * size["tokens"] * size["heads"] * size["head_width"] * DTYPES[device.type].itemsize
    return Work(
        flops, 3.5 * flops, 4 * operand, 12 * operand
    )  # q, k, v, out; then q, k, v, out, d out read and three gradients written


def _rotary_work(size: dict[str, int], device: torch.device) -> Work:
    operand = size["sequences"] * size["tokens"] * size["heads"] * size["head_width"] * DTYPES[device.type].itemsize
    return Work(
        forward_bytes=4.0 * operand, both_bytes=4.0 * operand + 6.0 * operand
    )  # q, k read and written; three gradients likewise


def lengths(sequences: int, tokens: int) -> Tensor:
    """Tokens of every sequence.

    Of six one is empty (a missing lead group), two hold half their tokens (padded) and three are whole.
    """
    share = torch.tensor([1.0, 0.5, 1.0, 0.0, 0.5, 1.0])[torch.arange(sequences) % 6]
    return (share * tokens).long()


def _operands(device: torch.device, sequences: int, tokens: int, heads: int, head_width: int) -> list[Tensor]:
    torch.manual_seed(0)
    shape = (sequences, tokens, heads, head_width)
    return [torch.randn(shape, device=device, dtype=DTYPES[device.type], requires_grad=True) for _ in range(3)]


def dense_job(implementation: str, device: torch.device, **size: int) -> Job:
    """`compiled`: torch.compile of the formula.

    Raises ValueError for a library that is not available, as every job here.
    """
    leaves = _operands(device, **size)
    backends: dict[str, Any] = {
        "math": "math",
        "compiled": "math",
        "sdpa": "sdpa",
        "sdpa-cudnn": "sdpa",
        "flash": "flash",
    }

    def run() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in leaves)
        return attention(q, k, v, backend=backends[implementation])

    def cudnn() -> Tensor:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            return run()

    if implementation == "compiled":
        return Job(torch.compile(run, dynamic=False), leaves, compiled=True)
    if implementation == "flash":
        choose_backend(operands(leaves[0]), probe(device), "flash")  # a library that cannot serve refuses here
    if implementation == "sdpa-cudnn":
        try:
            cudnn()
        except RuntimeError as error:
            raise ValueError(f"cuDNN attention cannot serve these operands here: {error}") from None
    return Job(cudnn if implementation == "sdpa-cudnn" else run, leaves)


def missing_job(implementation: str, device: torch.device, **size: int) -> Job:
    """Masked dense sequences, or the same ones packed.

    The operands of `packed` are packed before: an encoder packs once for all its layers.
    """
    form, _, name = implementation.partition(" ")
    backend: Any = name
    mask = (torch.arange(size["tokens"])[None, :] < lengths(size["sequences"], size["tokens"])[:, None]).to(device)
    dense = _operands(device, **size)
    if form == "masked":
        q, k, v = dense
        return Job(
            lambda: attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, backend=backend), dense
        )
    parts = [pack(x.detach(), mask) for x in dense]
    cu_seqlens, longest = parts[0].cu_seqlens, parts[0].max_seqlen
    q, k, v = leaves = [part.tokens.requires_grad_() for part in parts]
    plan = plan_buckets(cu_seqlens) if name == "sdpa" else None
    if name != "sdpa":  # a library that cannot serve refuses here, before anything is timed
        choose_backend(operands(q, packed=True), probe(device), backend)
    return Job(lambda: packed_attention(q, k, v, cu_seqlens, longest, backend=backend, plan=plan), leaves)


def rotary_job(implementation: str, device: torch.device, **size: int) -> Job:
    """Queries and keys turned.

    By the formula each, or both at once with the table an encoder makes once per forward pass, in PyTorch or Triton.
    """
    qkv = torch.stack([x.detach() for x in _operands(device, **size)], dim=2).requires_grad_()
    seconds = torch.linspace(0.0, 10.0, size["tokens"], device=device)
    table = rotation(seconds, size["heads"], size["head_width"], qkv.dtype)

    def formula() -> list[Tensor]:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return [rotary(q, seconds), rotary(k, seconds), v]

    def turned(backend: Backend) -> list[Tensor]:
        return [x.transpose(1, 2) for x in turn_heads(qkv, table, backend)]

    runs: dict[str, Callable[[], Tensor | list[Tensor]]] = {
        "formula": formula,
        "one pass": functools.partial(turned, "torch"),
        "fused": functools.partial(turned, "triton"),
    }
    return Job(runs[implementation], [qkv])
