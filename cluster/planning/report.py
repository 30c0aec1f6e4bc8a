"""A plan as lines for a terminal."""

from __future__ import annotations

from typing import Any

from cardialign.cluster.planning.against import MEMORY_ROW
from cardialign.cluster.planning.question import listed
from cardialign.data_shards.benchmarks.table import number

PARTS = (
    "weights", "gathered_weights", "master_weights", "optimizer", "gradients", "reduce_buckets", "activations",
    "features", "loss_tiles", "inputs", "read_ahead", "kernel_caches",
)  # fmt: skip

LOW = 0.85
"""Predicted memory by measured, under which something else was measured, too."""


def lines(plan: dict[str, Any]) -> list[str]:
    """Head, sizes, memory, exchange, time, comparison and assumptions."""
    said = [*_head(plan), "", *_memory(plan), "", *_exchange(plan), "", *_time(plan)]
    if "beside" in plan:
        said += ["", *_beside(plan)]
    return [*said, "", "assumed:", *(f"- {each}" for each in plan["assumptions"])]


def _head(plan: dict[str, Any]) -> list[str]:
    sizes, batch, legal = plan["parameters"], plan["batch"], plan["legal_world_sizes"]
    sent = f"{plan['nodes']} x {plan['devices_per_node']} {plan['machine']}"
    passes = {1: "one forward pass", 2: "two forward passes (gradient caching)"}[plan["forward_passes"]]
    frozen = f", {number(sizes['frozen'] / 1e6)} M frozen" if sizes["frozen"] else ""
    return [
        f"predicted, not measured: {plan['recipe']} on {sent}, {plan['precision']}, ZeRO {plan['zero_stage']}",
        "",
        f"parameters   {number(sizes['trained'] / 1e6)} M train{frozen}; "
        f"ECG side {number(sizes['ecg'] / 1e6)} M, text side {number(sizes['text'] / 1e6)} M",
        f"a record     {plan['tokens_per_record']} tokens, "
        f"{number(plan['forward_flop_per_record'] / 1e9)} GFLOP forward, "
        f"{number(plan['backward_flop_per_record'] / 1e9)} backward",
        f"a step       {number(plan['flop_per_step'] / 1e12)} TFLOP: {passes} and one backward pass",
        f"batch        {batch['global_batch']} records; a rank has {batch['rows_per_rank']} "
        f"in {batch['micro_batches']} micro-batch{'es' if batch['micro_batches'] > 1 else ''}",
        f"world size   legal are 1 to {legal['most']}; equal rows for all with {listed(legal['equal_rows'])}",
    ]


def _memory(plan: dict[str, Any]) -> list[str]:
    """One column per stage of ZeRO, one line per part that any of them has."""
    stages = plan["memory_per_rank"]
    rows = [("MiB of a rank, predicted", *(f"ZeRO {each['zero_stage']}" for each in stages))]
    for part in PARTS:
        if any(each["parts"][part] for each in stages):
            rows.append((part.replace("_", " "), *(number(each["parts"][part] / 2**20) for each in stages)))
    rows.append(("most at one time", *(number(each["total_bytes"] / 2**20) for each in stages)))
    if plan["fits"] is not None:
        words = ("yes" if fits else "NO" for fits in plan["fits"])
        rows.append((f"fits {number(plan['memory_of_device_gib'])} GiB", *words))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _exchange(plan: dict[str, Any]) -> list[str]:
    sent = plan["exchanged_bytes_per_step"][plan["zero_stage"]]
    parts = ", ".join(f"{name} {number(size / 2**20)}" for name, size in sent.items())
    size, needed = plan["text_bank_bytes"], plan["data_needed"]
    bank = [f"text bank    {number(size / 2**20)} MiB, mapped once on each host"] if size else []
    behind = plan["checkpoint_writing"] == "background"
    copy = ", and as much host memory, ranks together, for the copy that is written behind the steps" if behind else ""
    copy += "; four times as much host memory for the copies of neighbours" if plan["neighbour_copy_every"] else ""
    have = needed["available_records_per_second"]
    against = f"{number(have)} records/s: {needed['available']}" if have is not None else needed["available"]
    return [
        f"exchange     {number(sum(sent.values()) / 2**20)} MiB sent by a rank per step "
        f"({parts}; {plan['exchange_scheme']})",
        *bank,
        f"checkpoint   {number(plan['checkpoint_bytes'] / 2**20)} MiB on disk{copy}",
        f"data needed  {number(needed['records_per_second'])} records/s, {number(needed['mb_per_second'])} MB/s",
        f"data there   {against}",
    ]


def _time(plan: dict[str, Any]) -> list[str]:
    step, duration = plan["step"], plan["duration"]
    said = [
        f"step         {number(step['seconds'])} s, {step['bound_by']}-bound "
        f"(arithmetic {number(step['arithmetic_seconds'])} s, memory {number(step['memory_seconds'])} s, "
        f"exchange {number(step['exchange_seconds'])} s)",
    ]
    if duration["steps"] is None:
        return [*said, "duration     unknown without records"]
    per_epoch = duration["records_per_epoch"]
    epochs = f", {number(duration['epochs'])} epochs of {per_epoch} records" if per_epoch else ""
    said.append(f"duration     {duration['steps']} steps{epochs}")
    said.append(f"time         {number(duration['hours'])} h, {number(duration['device_hours'])} device-hours")
    if "cost" in duration:
        said.append(f"cost         {number(duration['cost'])} {duration['currency']}".rstrip())
    if "energy_kwh" in duration:
        said.append(f"energy       {number(duration['energy_kwh'])} kWh of the devices")
    return said


def _beside(plan: dict[str, Any]) -> list[str]:
    rows = [("", "predicted", "measured", "predicted / measured")]
    for row in plan["beside"]:
        shown = "not known" if row["predicted"] is None else f"{number(row['predicted'])} {row['unit']}".strip()
        measured = "not measured" if row["measured"] is None else f"{number(row['measured'])} {row['unit']}".strip()
        rows.append((row["what"], shown, measured, "-" if row["ratio"] is None else f"{row['ratio']:.2f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    shown_rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    meaning = [f"memory measured: {plan['measured_as']}"] if plan["measured_as"] else []
    memory = next(row["ratio"] for row in plan["beside"] if row["what"] == MEMORY_ROW)
    if memory is not None and memory < LOW and plan["machine"] == "CPU":
        meaning.append(
            "a small run on a CPU keeps freed blocks: run it with MALLOC_MMAP_THRESHOLD_=65536 in its environment to "
            "measure what it holds"
        )
    return [f"against {plan['against']}", *shown_rows, *meaning]
