"""What a run reads: its shard set or its mixture of several, the rows it selects and their order.

Also its text bank, and how many steps they make.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import shlex
import time
from collections.abc import Sequence

import numpy as np
import torch.distributed as dist

from cardialign.data_shards.checks.repeats import find_repeats
from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.order.contract import Order
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.order.mixture import MixtureOrder, slots_of
from cardialign.data_shards.order.window import WindowOrder
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.selection import Selection
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import NoTextBankError, TextBank
from cardialign.data_shards.text.joined_bank import JoinedBank
from cardialign.pretrain.choices import METHODS
from cardialign.pretrain.config import DataConfig, MixturePart, RunConfig
from cardialign.pretrain.methods.base import method_class
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.training.collectives import fail_together

log = logging.getLogger(__name__)


def total_steps(config: RunConfig, records: int) -> int:
    """Optimizer steps of the run: as given, or enough for `epochs` passes over `records`.

    In a mixture a pass is as many records as all sets have selected together; a set with more than its share of the
    weights is passed more often.
    """
    training = config.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None
    return max(1, math.ceil(training.epochs * records / training.global_batch))


def open_sets(data: DataConfig) -> ShardSet | JoinedSets:
    """The shard set of a run, or those of its mixture as one.

    Raises UsageError when none is named, DataError when one cannot be opened or read together with the others.
    """
    if not data.parts:
        raise UsageError(
            "neither data.shards nor data.mixture is set",
            "name a shard set: --set data.shards=FOLDER, or list several under data.mixture",
        )
    if data.shards is not None:
        return ShardSet.open(data.shards, reports=data.reports)
    return JoinedSets([ShardSet.open(part.shards, reports=part.reports) for part in data.parts])


def open_data(config: RunConfig) -> tuple[ShardSet | JoinedSets, Selection, Order]:
    """Shard set(s), the rows of the run, and their order.

    The rows are those of the folds and the split, with a report where the method reads reports. Raises UserError or
    DataError with the remedy.
    """
    data, opened = config.data, open_sets(config.data)
    other = next((part.reports for part in data.parts if part.reports is not None), None)
    if other is not None and not method_class(config).reports:
        raise UsageError(
            f"data.reports is {other}, and method {config.method.name} reads no reports",
            "leave data.reports out, or choose a method with reports",
        )
    if isinstance(opened, ShardSet):
        selection = _select(config, opened, data.parts[0])
        return opened, selection, _order(config, opened, selection, config.training.global_batch)
    slots = slots_of([part.weight for part in data.parts], config.training.global_batch)
    orders = [
        _order_in_mixture(config, part, each, slot)
        for part, each, slot in zip(data.parts, opened.sets, slots, strict=True)
    ]
    _tell_repeats(opened, orders)
    order = MixtureOrder(orders, opened.offsets, config.seed)
    return opened, Selection(order.rows, order.fingerprint), order


def _tell_repeats(opened: JoinedSets, orders: Sequence[Order]) -> None:
    """Raises DataError when two parts of a mixture are copies of one set with records in common: a batch would hold a
    recording twice, each as a negative of the other. What other sets have in common is told."""
    for (one, its), (other, theirs) in itertools.combinations(zip(opened.sets, orders, strict=True), 2):
        shared = np.intersect1d(its.rows, theirs.rows).size if one.fingerprint == other.fingerprint else 0
        if shared and one.path != other.path:
            raise DataError(
                f"{one.path} and {other.path} of the mixture are copies of one shard set: {shared} of the selected "
                "records are in both",
                "name the set once and add up the weights, or give its parts folds of their own",
            )
    found = find_repeats(opened.sets, [each.rows for each in orders])
    if found.records:
        log.warning(
            "mixture repeats=%d remark=records whose very recording is there again, a batch may hold both first=%s",
            found.records,
            " = ".join(found.examples[0]),
        )


def open_bank(config: RunConfig) -> TextBank:
    """Text bank of the shard set(s) for the run's report encoder; in a run called by all ranks together.

    Its sizes are compared by every rank, its digests by one rank of each node: a bank of 3 GB is read once per node,
    not once per rank. Raises UserError when one has not been built, DataError, on every rank, when one is not as it was
    built.
    """
    opened = open_sets(config.data)
    fingerprint = TextEncoder(config.text).fingerprint
    banks: list[TextBank] = []
    problem: UserError | None = None
    try:
        banks += [_bank(config, part, fingerprint) for part in config.data.parts]
        if _compares():
            _check_contents(banks)
    except UserError as error:
        problem = error
    if dist.is_available() and dist.is_initialized():
        fail_together(problem)
    elif problem is not None:
        raise problem
    return banks[0] if isinstance(opened, ShardSet) else JoinedBank(opened, banks)


def _compares() -> bool:
    """True on one rank of each node, and outside a run."""
    together = dist.is_available() and dist.is_initialized()
    return not together or dist.get_rank() == 0 or os.environ.get("LOCAL_RANK") == "0"


def _check_contents(banks: list[TextBank]) -> None:
    started = time.monotonic()
    for bank in banks:
        bank.check_contents()
    log.info("text_bank digests=compared banks=%d seconds=%.1f", len(banks), time.monotonic() - started)


def _select(config: RunConfig, shard_set: ShardSet, part: MixturePart) -> Selection:
    reports = method_class(config).reports
    if reports and not (shard_set.report >= 0).any():
        silent = ", ".join(name for name in METHODS.own if not METHODS.find(name).reports)
        raise DataError(
            f"{part.shards}: none of its {len(shard_set)} records has a report, and method {config.method.name} learns "
            "from reports",
            f"build the set with its reports, or choose a method that needs none: {silent}",
        )
    try:
        return shard_set.select(folds=part.folds, require_report=reports, split=config.data.split_rule(part))
    except DataError as error:
        raise DataError(f"{part.shards}: {error.problem}", error.remedy) from error


def _order(config: RunConfig, shard_set: ShardSet, selection: Selection, slots: int) -> GlobalOrder | WindowOrder:
    rows, window = selection.rows, config.data.window
    patients = shard_set.patients[rows] if config.data.patient_disjoint else None
    if window is None:
        return GlobalOrder(rows, patients, slots, config.seed, selection.fingerprint)
    return WindowOrder(rows, shard_set.shard[rows], patients, slots, config.seed, selection.fingerprint, window)


def _order_in_mixture(config: RunConfig, part: MixturePart, shard_set: ShardSet, slots: int) -> Order:
    selection = _select(config, shard_set, part)
    if selection.rows.size < slots:
        raise DataError(
            f"{part.shards}: {selection.rows.size} records are selected, "
            f"its weight in the mixture gives it {slots} slots of every global batch",
            "lower its weight or training.global_batch, or select more of its records",
        )
    order = _order(config, shard_set, selection, slots)
    if isinstance(order, WindowOrder):
        shard_set.files.max_open = order.open_shards
    return order


def _bank(config: RunConfig, part: MixturePart, fingerprint: str) -> TextBank:
    try:
        return TextBank.open(part.shards, fingerprint, config.text.style, digests=False, reports=part.reports)
    except NoTextBankError as error:
        raise UserError(
            f"no text bank of {part.shards} for report encoder {config.text.encoder}: {error.problem}",
            f"build it once: cardialign text-bank build {shlex.join(_words_of_bank(config, part))}",
        ) from None


def _words_of_bank(config: RunConfig, part: MixturePart) -> list[str]:
    """What `text-bank build` must be told to make the bank that a run looks for."""
    text, usual = config.text, type(config.text)()
    words = [str(part.shards), "--encoder", text.encoder]
    for key in ("pooling", "max_tokens", "style"):
        if (value := getattr(text, key)) != getattr(usual, key):
            words += [f"--{key.replace('_', '-')}", str(value)]
    if config.method.distant_reports:
        words += ["--distant", str(config.method.distant_reports)]
    return words + ([] if part.reports is None else ["--reports", str(part.reports)])
