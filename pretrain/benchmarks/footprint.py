"""What one step of a recipe computes and holds on one rank, counted on tensors without storage; nothing is trained.

The encoders run forward and backward on `meta` tensors (`live_storages`), the loss for real on a few made-up rows.
What a kernel takes for itself while it runs is not seen.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.benchmarks.counts import sized_method
from cardialign.pretrain.benchmarks.live_storages import AsOnDevice, LiveStorages
from cardialign.pretrain.benchmarks.noise import NoiseBank, noise_batch
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.methods.base import Method, Tensors
from cardialign.pretrain.methods.parts.draws import Draws

HALF_ON_THE_WIRE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules whose weights DeepSpeed exchanges in bf16 under autocast (`LOWER_PRECISION_SAFE_MODULES`)."""
TILE = 1024
"""Side of a loss tile where a method does not say it (`method.chunk`)."""


class Parameters(NamedTuple):
    """Numbers of weights. small: those of tensors that ZeRO-3 keeps whole (DeepSpeed's persistence threshold)."""

    trained: int
    frozen: int
    ecg: int
    text: int
    buffers_bytes: int
    groups: tuple[int, ...]
    half_on_the_wire: int
    small: int
    largest: int


class Footprint(NamedTuple):
    """One step on one rank.

    forward_flop, backward_flop  of one record, all that the method computes but its loss.
    forward_moved, backward_moved  bytes that their operators read and write, of one record.
    tokens              of one record in the ECG encoder.
    input_bytes         of one record on the device; feature_bytes: of its features in float32.
    exchanged_bytes     of one record's columns, which other ranks read: text and what is known about the report.
    saved_bytes         of one micro-batch after its forward pass, kept for its backward.
    activation_bytes    the most within both passes of a micro-batch, gradients of weights apart.
    joint_bytes         the most of activations and gradients together, where none existed before.
    loss_bytes          the most that the loss holds for `loss_rows` rows against as many columns.
    """

    parameters: Parameters
    passes: int
    forward_flop: int
    backward_flop: int
    forward_moved: int
    backward_moved: int
    tokens: int
    input_bytes: int
    feature_bytes: int
    exchanged_bytes: int
    gradient_width: int
    saved_bytes: int
    activation_bytes: int
    joint_bytes: int
    loss_bytes: int
    loss_rows: int


def _all_there() -> contextlib.AbstractContextManager[Any]:
    """A mask on `meta` chooses everything: records have all leads and no padding."""
    from torch.fx.experimental import _config

    whole: contextlib.AbstractContextManager[Any] = _config.patch(  # type: ignore[attr-defined]
        meta_nonzero_assume_all_nonzero=True
    )
    return whole


def count_footprint(config: RunConfig, spec: SignalSpec, device: str, micro_batch: int, local_rows: int) -> Footprint:
    """Of a recipe whose `text.encoder` is a folder here, for records of `spec` with all leads and no padding.

    device: cpu or cuda. micro_batch: rows that are encoded at a time, local_rows: of this rank.
    Raises UsageError as the method does.
    """
    method = sized_method(config, spec).train()
    for each in method.modules():  # asks the data what is missing; of whole records: dense
        if getattr(each, "packs", False):
            each.packs = False  # type: ignore[assignment]
    inputs = _inputs(method, config, spec)
    shown = {name: torch.empty(micro_batch, *each.shape[1:], dtype=each.dtype, device="meta") for name, each in inputs}
    live = LiveStorages([*method.parameters(), *method.buffers(), *shown.values()])
    live.take_off(method.parameters())
    with torch.device("meta"), live, _all_there():
        with AsOnDevice(device, config.training.precision):
            features = method(shown)
        forward, moved, saved = live.flop, live.moved, live.live
        sum((each.float() * torch.zeros_like(each, dtype=torch.float32)).sum() for each in features.values()).backward()
        backward, moved_back = live.flop - forward, live.moved - moved
        highest, joint = live.highest, live.with_gradients
        with AsOnDevice(device, config.training.precision):
            tokens = _tokens(method, spec, micro_batch)
    rows = min(local_rows, getattr(config.method, "chunk", TILE))
    known = [name for name in ("similarity", "report_key") if name in dict(inputs)]
    width = features["text"].shape[1] if "text" in features else 0
    one_pass = method.counts({name: each.detach() for name, each in inputs}) is not None
    return Footprint(
        parameters=_count(method, config.training.precision),
        passes=1 if one_pass or micro_batch >= local_rows else 2,
        forward_flop=round(forward / micro_batch),
        backward_flop=round(backward / micro_batch),
        forward_moved=round(moved / micro_batch),
        backward_moved=round(moved_back / micro_batch),
        tokens=tokens,
        input_bytes=sum(_row_bytes(each) for _, each in inputs),
        feature_bytes=sum(4 * each[0].numel() for each in features.values() if each.ndim > 1),
        exchanged_bytes=4 * width + sum(_row_bytes(dict(inputs)[name]) for name in known),
        gradient_width=width,
        saved_bytes=saved,
        activation_bytes=highest,
        joint_bytes=joint,
        loss_bytes=_loss_bytes(method, config, spec, features, rows),
        loss_rows=rows,
    )


def _inputs(method: Method, config: RunConfig, spec: SignalSpec, rows: int = 2) -> list[tuple[str, Tensor]]:
    """What the method reads of two records of noise, by name."""
    bank = NoiseBank(config, rows) if method.reports else None
    made: Tensors = method.inputs(noise_batch(config, spec, rows), bank, Draws(config.seed, 0, slice(0, rows)))
    return list(made.items())


def _row_bytes(tensor: Tensor) -> int:
    return tensor[0].numel() * tensor.element_size()


def _tokens(method: Method, spec: SignalSpec, rows: int) -> int:
    """Tokens of one whole record in the ECG encoder, asked with as many `rows` as before: their shapes are known."""
    with torch.no_grad():
        leads = torch.ones(rows, len(STANDARD_LEADS), dtype=torch.bool)
        output = method.ecg(torch.zeros(rows, len(STANDARD_LEADS), spec.samples), leads, return_tokens=True)
    return 0 if output.tokens is None else int(output.tokens.shape[1])


def _loss_bytes(method: Method, config: RunConfig, spec: SignalSpec, like: Tensors, rows: int) -> int:
    """The most that the loss and its gradient hold, of `rows` made-up rows in one process.

    The method gets storage for what its loss may read of itself; no value of it matters, and it is not written to.
    """
    method.to_empty(device="cpu")
    for buffer in method.buffers():
        buffer.zero_()
    inputs = {name: each[:1].expand(max(2, rows), *each.shape[1:]) for name, each in _inputs(method, config, spec)}
    generator = torch.Generator().manual_seed(config.seed)
    leaves = {}
    for name, feature in like.items():
        shape = (max(2, rows), *feature.shape[1:]) if feature.ndim > 1 else tuple(feature.shape)
        drawn = torch.rand(shape, generator=generator)
        leaves[name] = (F.normalize(drawn, dim=-1) if feature.ndim > 1 else drawn).requires_grad_()
    live = LiveStorages([*leaves.values(), *inputs.values(), *method.buffers()])
    with live:
        loss = method.loss(leaves, inputs, None).loss
        torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return live.highest


def _count(method: Method, precision: str) -> Parameters:
    # Imported here: DeepSpeed's thresholds are ours to know, its package is not needed to count.
    from cardialign.pretrain.training.engine import parameter_groups

    parts = tuple(method.learning_rates(0))
    groups = parameter_groups(method, 0.1, parts)
    every: list[Any] = list(method.parameters())
    trained = [each for each in every if each.requires_grad]
    half = {id(p) for m in method.modules() if type(m) in HALF_ON_THE_WIRE for p in m.parameters(recurse=False)}
    sizes = {
        name: sum(p.numel() for n, p in method.named_parameters() if n.startswith(name)) for name in ("ecg.", "text.")
    }
    return Parameters(
        trained=sum(p.numel() for p in trained),
        frozen=sum(p.numel() for p in every if not p.requires_grad),
        ecg=sizes["ecg."],
        text=sizes["text."],
        buffers_bytes=sum(b.numel() * b.element_size() for b in method.buffers()),
        groups=tuple(sum(p.numel() for p in group["params"]) for group in groups),
        half_on_the_wire=sum(p.numel() for p in trained if id(p) in half) if precision == "bf16" else 0,
        small=sum(p.numel() for p in every if p.numel() <= 100_000),
        largest=max((p.numel() for p in trained), default=0),
    )
