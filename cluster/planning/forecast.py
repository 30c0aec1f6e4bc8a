"""A plan: everything that a question's recipe comes to on its machines, as predictions with what they assume."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.planning.duration import STREAM, WIRE, Rates, exchanged_bytes, step_time
from cardialign.cluster.planning.memory import OUTSIDE_GIB, STAGES, Setting, checkpoint_bytes, rank_memory
from cardialign.cluster.planning.question import Question, world_sizes
from cardialign.data_shards.errors import UserError

if TYPE_CHECKING:
    from cardialign.pretrain.benchmarks.footprint import Footprint
    from cardialign.pretrain.config import RunConfig

BERT_BASE = {
    "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
T5_BASE = {  # with gated units, as of T5 1.1
    "model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12,
    "num_heads": 12, "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
}  # fmt: skip
PUBLISHED = {
    "ncbi/MedCPT-Query-Encoder": BERT_BASE,
    "ncbi/MedCPT-Article-Encoder": BERT_BASE,
    "fuyingw/heart_bert": BERT_BASE,
    "emilyalsentzer/Bio_ClinicalBERT": {**BERT_BASE, "vocab_size": 28996},
    "google/flan-t5-base": T5_BASE,
}
"""Report encoders whose published config.json is counted where they are not on this machine (Jin et al. 2023: MedCPT
starts from PubMedBERT-base; Wang et al. 2025: heart_bert starts from MedCPT; Alsentzer et al. 2019: BERT base,
cased; Chung et al. 2022: Flan-T5 starts from T5 1.1 base, of which the encoder is counted)."""
RING_ABOVE = 1 << 30
GIB = float(2**30)


def make_plan(question: Question) -> dict[str, Any]:
    """The whole plan. Raises UserError for a report encoder that is not here and a recipe that cannot be made."""
    from cardialign.pretrain.benchmarks.counts import FLOP_RULE

    config, machine = question.config, question.machine
    counted, setting, bank, assumed = _counted(question)
    stage = config.training.zero_stage
    memory = [rank_memory(counted, each, setting) for each in STAGES]
    ring = _ring(config, counted, setting)
    sent = {each: exchanged_bytes(counted, each, setting, ring) for each in STAGES}
    peak = machine.bf16_flop_s if config.training.precision == "bf16" else machine.fp32_flop_s
    data_rate = None if question.data_rate is None else question.data_rate * question.world
    rates = Rates(peak * question.mfu, question.records_per_second, data_rate)
    step = step_time(counted, machine, rates, setting, sum(sent[stage].values()), question.nodes)
    most, even = world_sizes(config)
    sizes, data = counted.parameters, question.data
    return {
        "predicted": True,
        "recipe": config.name,
        "machine": machine.name,
        "nodes": question.nodes,
        "devices_per_node": question.devices,
        "world_size": question.world,
        "precision": config.training.precision,
        "zero_stage": stage,
        "parameters": {
            "trained": sizes.trained, "frozen": sizes.frozen, "ecg": sizes.ecg, "text": sizes.text,
        },
        "tokens_per_record": counted.tokens,
        "forward_flop_per_record": counted.forward_flop,
        "backward_flop_per_record": counted.backward_flop,
        "forward_passes": counted.passes,
        "flop_per_step": config.training.global_batch
        * (counted.passes * counted.forward_flop + counted.backward_flop),
        "flop_rule": FLOP_RULE,
        "batch": {
            "global_batch": config.training.global_batch,
            "rows_per_rank": setting.local_rows,
            "micro_batches": setting.micro_batches,
        },
        "legal_world_sizes": {"most": most, "equal_rows": even},
        "duration": _duration(question, step),
        "memory_per_rank": memory,
        "fits": None if machine.memory_gib is None else [_fits(each, machine.memory_gib) for each in memory],
        "memory_of_device_gib": machine.memory_gib,
        "exchange_scheme": "none" if question.world == 1 else "ring" if ring else "gather",
        "exchanged_bytes_per_step": sent,
        "text_bank_bytes": bank,
        "checkpoint_bytes": checkpoint_bytes(counted, stage),
        "checkpoint_writing": config.training.checkpoint_writing,
        "neighbour_copy_every": config.training.neighbour_copy_every if question.world > 1 else 0,
        "step": step,
        "data_needed": {
            "records_per_second": step["needed_records_per_second"],
            "mb_per_second": step["needed_records_per_second"] * data.record_bytes / 1e6,
            "available_records_per_second": data_rate,
            "available": question.data_said,
        },
        "assumptions": [*assumed, *_assumptions(question)],
    }  # fmt: skip


def _counted(question: Question) -> tuple[Footprint, Setting, int | None, list[str]]:
    """The step as it is counted, how it is cut, bytes of the text bank's vectors (None: unknown), and what was assumed
    to count them."""
    from cardialign.pretrain.benchmarks.footprint import count_footprint
    from cardialign.pretrain.methods.base import method_class
    from cardialign.pretrain.text.encoder import TextEncoder
    from cardialign.pretrain.training.engine import plan_batches

    config, spec = question.config, question.data.spec
    plan = plan_batches(config.training.global_batch, question.world, config.training.micro_batch)
    rows = -(-plan.global_batch // plan.world_size)
    with ExitStack() as stack:
        local, assumed = _with_text(config, stack)
        largest = -(-rows // plan.micro_batches)
        reports = question.data.reports if method_class(config).reports else 0
        bank = None if reports is None else reports and 4 * reports * TextEncoder(local.text).dim
        counted = count_footprint(local, spec, "cuda" if question.machine.cuda else "cpu", largest, rows)
    setting = Setting(
        world=question.world,
        local_rows=rows,
        micro_batches=plan.micro_batches,
        global_batch=plan.global_batch,
        batches_ahead=min(config.data.prefetch, (steps_of(question) or config.data.prefetch + 1) - 1),
        signal_bytes=12 * spec.samples * 4,
        cuda=question.machine.cuda,
        bf16=config.training.precision == "bf16",
        bf16_kernels=question.bf16_kernels,
    )
    return counted, setting, bank, assumed


def _with_text(config: RunConfig, stack: ExitStack) -> tuple[RunConfig, list[str]]:
    """The recipe with a report encoder that can be counted here: its folder, or its published config.json."""
    from cardialign.pretrain.benchmarks.counts import text_on_this_machine

    text, missing = text_on_this_machine(config)
    if text is not None:
        return config.model_copy(update={"text": text}), []
    known = PUBLISHED.get(config.text.encoder)
    if known is None:
        raise UserError(
            f"{missing}",
            "give its folder (--set text.encoder=FOLDER), fetch it once, or plan with --set text.encoder=minilm",
        )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cardialign-plan-")))
    (folder / "config.json").write_text(json.dumps(known))
    # What costs the same is set as this kind is meant: the folder, which is gone soon, shall not be told of in the log.
    pooling = "last" if config.text.pooling == "last" else "mean" if known is T5_BASE else "cls"
    text = config.text.model_copy(update={"encoder": str(folder), "pooling": pooling})
    size = "T5 base" if known is T5_BASE else "BERT base"
    said = f"report encoder {config.text.encoder} is not on this machine: counted by its published sizes ({size})"
    return config.model_copy(update={"text": text}), [said]


def steps_of(question: Question) -> int | None:
    """Optimizer steps of the run; None where neither they nor its records are known."""
    from cardialign.pretrain.training.data import total_steps

    config, records = question.config, question.data.records
    if records is None and config.training.steps is None:
        return None
    return total_steps(config, records or 0)


def _ring(config: RunConfig, counted: Footprint, setting: Setting) -> bool:
    """Whether the columns travel in a ring; as `kernels.contrastive.exchange` decides it."""
    scheme = getattr(config.method, "scheme", "gather")
    if scheme != "auto":
        return bool(scheme == "ring")
    per_pair = counted.exchanged_bytes + 4 * counted.gradient_width
    return setting.global_batch * per_pair > RING_ABOVE


def _fits(memory: dict[str, Any], device_gib: float) -> bool:
    return bool(memory["total_bytes"] / GIB + OUTSIDE_GIB <= device_gib)


def _duration(question: Question, step: dict[str, Any]) -> dict[str, Any]:
    config, steps = question.config, steps_of(question)
    found: dict[str, Any] = {"steps": steps, "records_per_epoch": question.data.records}
    if steps is None:
        return found
    hours = steps * step["seconds"] / 3600
    device_hours = hours * question.world
    found |= {"hours": hours, "device_hours": device_hours}
    if question.data.records:
        found["epochs"] = steps * config.training.global_batch / question.data.records
    if question.price is not None:
        found |= {"cost": device_hours * question.price, "currency": question.currency}
    if question.machine.watts is not None:
        found["energy_kwh"] = device_hours * question.machine.watts / 1000
    return found


KEPT_BY_MALLOC = (
    "what the C library keeps of freed blocks is not counted: runs of 60 MiB to 1.4 GiB on a CPU held 1.26 to 2.0 "
    "times what is predicted; MALLOC_MMAP_THRESHOLD_=65536 in the environment of a run has it give them back (then "
    "1.01 to 1.05 times)"
)
"""Measured: memory.json beside the plan of the same two runs without and with that variable (1.26 and 1.27; 1.01 and
1.05), and of five older ones, taken to be without (1.41 to 2.0)."""


def _assumptions(question: Question) -> list[str]:
    machine = question.machine
    said = [
        f"machine {machine.name}: {machine.source}" + (f"; assumed: {machine.assumed}" if machine.assumed else ""),
        question.mfu_said,
        f"operators run one by one, reading and writing at {STREAM:g} of the memory's published rate",
        f"links carry {WIRE:g} of their published rate, and no exchange is hidden behind computing",
        f"data: {question.data.said}",
        f"reading: {question.data_said}",
        "every record has all leads and no padding; 5 statements a report of 256 that are asked, where a method asks",
        "memory: tensors only; what kernels take for themselves and blocks that an allocator keeps come on top"
        + (f", and {OUTSIDE_GIB:g} GiB of CUDA and NCCL, which `fits` takes into account" if machine.cuda else
           ", and about 350 MiB of libraries"),
        *([] if machine.cuda else [KEPT_BY_MALLOC]),
        "the text bank is mapped, not loaded; checkpoints, start-up, restarts and evaluation take no time",
    ]  # fmt: skip
    if not machine.cuda and question.config.training.precision == "bf16":
        have = "have" if question.bf16_kernels else "have no"
        said.append(f"processors {have} bf16 kernels of oneDNN, as those of the run or else of this machine")
    if machine.cuda and question.config.training.zero_stage:
        said.append("DeepSpeed's reduce_bucket_size stays at its default of 5e8 elements, allocated whole")
    if question.price is not None:
        said.append(f"price: {question.price:g} {question.currency} for a device and hour, as given")
    if machine.watts is not None:
        said.append(f"energy: {machine.watts:g} W of each device all the time, hosts and cooling apart")
    if question.config.depends_on_micro_batch:
        said.append("this encoder takes statistics from micro-batches: another world size is another run")
    return said
