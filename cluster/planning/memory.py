"""Memory of one rank, part by part, for each stage of ZeRO: what DeepSpeed and the loop keep, and what a step adds.

Weights, gradients and averages of Adam are float32 in both precisions: autocast casts copies, which count as
activations. So there are no master weights beside bf16 ones; ZeRO 1 and 2 keep a float32 share of the weights anyway.
Source: DeepSpeed 0.19 (`zero/stage_1_and_2.py`, `zero/stage3.py`), read, and compared with runs on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from cardialign.pretrain.benchmarks.footprint import Footprint

STAGES = (0, 1, 2, 3)
KEPT = ("weights", "master_weights", "optimizer", "inputs", "read_ahead", "features", "kernel_caches")
"""Parts that are there at every moment of a step."""
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's `reduce_bucket_size`, which our configuration leaves as it is: allocated whole for any model."""
FLOAT = 4
BF16_CACHES_ON_A_CPU = 80 << 20
"""Code and packed weights that oneDNN keeps for its bf16 kernels: what runs of cardialign-tiny had beside tensors.

Processors without AVX-512 (or what replaces it) have no such kernels: PyTorch's own, which keep nothing, run there."""
OUTSIDE_GIB = 1.5
"""Of a GPU: CUDA's context, kernels and NCCL's buffers, which no allocator of PyTorch counts."""


class Setting(NamedTuple):
    """What decides the memory of a rank beside the recipe: ranks, rows of this one and of a micro-batch, read ahead.

    bf16_kernels: whether oneDNN has such kernels on the processors.
    """

    world: int
    local_rows: int
    micro_batches: int
    global_batch: int
    batches_ahead: int
    signal_bytes: int
    cuda: bool
    bf16: bool
    bf16_kernels: bool


def rank_memory(counted: Footprint, stage: int, setting: Setting) -> dict[str, Any]:
    """Bytes by part, `total_bytes` at the fullest moment and that `moment`.

    Parts are each at its own most: `activations`, `loss_tiles` and `gradients` do not all stand there at once.
    """
    parts = {**_kept(counted, stage, setting), **_of_a_step(counted, setting)}
    gradients, update = _gradients(counted, stage, setting)
    buckets = _buckets(stage, setting)
    standing = sum(parts[name] for name in KEPT)
    gathered = parts["gathered_weights"]
    one = setting.micro_batches == 1
    encode = counted.joint_bytes if one and stage < 3 else counted.activation_bytes + gradients
    moments = {
        "forward and backward": encode + buckets + gathered,
        "loss": (counted.saved_bytes if one else 0) + parts["loss_tiles"] + (buckets if stage == 3 else 0),
        "update": update + (buckets if stage == 3 else 0),
    }
    moment = max(moments, key=lambda name: moments[name])
    shown = {**parts, "gradients": gradients, "activations": counted.activation_bytes, "reduce_buckets": buckets}
    return {"zero_stage": stage, "total_bytes": standing + moments[moment], "moment": moment, "parts": shown}


def _kept(counted: Footprint, stage: int, setting: Setting) -> dict[str, int]:
    """What stays from step to step."""
    sizes, world = counted.parameters, setting.world
    every = sizes.trained + sizes.frozen
    share = -(-sizes.trained // world)
    if stage < 3:
        weights, gathered = FLOAT * every, 0
    else:
        weights, gathered = FLOAT * (-(-every // world) + sizes.small), FLOAT * (every - sizes.small)
    return {
        "weights": weights + sizes.buffers_bytes,
        "gathered_weights": gathered,
        "master_weights": FLOAT * share if stage in (1, 2) else 0,
        "optimizer": 2 * FLOAT * (share if stage else sizes.trained),
    }


def _of_a_step(counted: Footprint, setting: Setting) -> dict[str, int]:
    """Rows on their way through a step: batches, features and their gradients, tiles of the loss."""
    tiles = counted.loss_bytes * max(1, min(setting.global_batch, 1024) // max(1, counted.loss_rows))
    if setting.world > 1:  # the columns of all ranks, and the gradient of their text
        tiles += setting.global_batch * (counted.exchanged_bytes + FLOAT * counted.gradient_width)
    ahead = (1 + setting.batches_ahead) * setting.local_rows * setting.signal_bytes
    return {
        "inputs": setting.local_rows * counted.input_bytes,
        "read_ahead": 0 if setting.cuda else ahead,
        "kernel_caches": BF16_CACHES_ON_A_CPU if setting.bf16 and setting.bf16_kernels and not setting.cuda else 0,
        "features": 2 * setting.local_rows * counted.feature_bytes,
        "loss_tiles": tiles,
    }


def _gradients(counted: Footprint, stage: int, setting: Setting) -> tuple[int, int]:
    """Bytes of gradients while micro-batches are encoded, and the most while they are joined and applied."""
    whole = FLOAT * counted.parameters.trained
    share = FLOAT * -(-counted.parameters.trained // setting.world)
    largest_group = FLOAT * -(-max(counted.parameters.groups, default=0) // setting.world)
    scratch = 0 if setting.cuda else 2 * largest_group  # torch's AdamW on a CPU; on CUDA it is fused
    touched = 0 if setting.cuda else whole  # of a bucket on a CPU only what is written is there
    if stage == 0:
        return whole, 2 * whole  # joined into one block to be exchanged
    if stage == 1:
        return whole, max(whole + share, 2 * share + scratch)
    if stage == 2:
        return share + touched, max(touched + share, 2 * share + scratch)
    return share + touched, share + scratch


def _buckets(stage: int, setting: Setting) -> int:
    """Blocks in which gradients are exchanged, on CUDA: one per type that is exchanged."""
    if not setting.cuda or stage == 0:
        return 0
    of_types = [2, 4] if setting.bf16 else [4]
    if stage < 3:
        of_types = [FLOAT for _ in of_types]
    return BUCKET_ELEMENTS * sum(of_types)


def checkpoint_bytes(counted: Footprint, stage: int) -> int:
    """Of one checkpoint on disk: DeepSpeed's files of all ranks, and the weights as safetensors."""
    sizes = counted.parameters
    weights = FLOAT * (sizes.trained + sizes.frozen) + sizes.buffers_bytes
    states = 2 * FLOAT * sizes.trained + (FLOAT * sizes.trained if stage else 0)
    return weights + states + (weights if stage < 3 else FLOAT * sizes.frozen)
