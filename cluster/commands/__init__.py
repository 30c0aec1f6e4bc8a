"""The one table of commands: the words typed -> the module that does it, and one line of help.

A command is one module with `add_arguments(parser)` and `run(args) -> dict`; it may have `summary(result) -> list[str]` for readers of a
terminal. Modules are imported only when their command is typed, and must themselves import heavy packages inside functions.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """module: import path; help: one line."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "cardialign.cluster.commands.demo",
        "the whole path on virtual patients: cohort to registry, with an HTML report",
    ),
    "doctor": Command(
        "cardialign.cluster.commands.doctor", "what this machine has, what is missing, and how to get it"
    ),
    "cohort": Command(
        "cardialign.cluster.commands.cohort", "make virtual patients in the file layout of a public data set"
    ),
    "shards build": Command("cardialign.cluster.commands.shards.build", "ECG files and reports -> a shard set"),
    "shards verify": Command(
        "cardialign.cluster.commands.shards.verify", "check every shard against its index and digests"
    ),
    "shards inspect": Command(
        "cardialign.cluster.commands.shards.inspect", "figures of a shard set, or a 12-lead picture of one record"
    ),
    "shards leakage": Command(
        "cardialign.cluster.commands.shards.leakage", "patients and recordings that two shard sets or selections share"
    ),
    "shards stats": Command(
        "cardialign.cluster.commands.shards.stats",
        "labels, statements, patients, lengths and quality of a set, with histograms",
    ),
    "text-bank build": Command(
        "cardialign.cluster.commands.text_bank.build",
        "tokens and embeddings of every distinct report, beside the shards",
    ),
    "text-bank stats": Command(
        "cardialign.cluster.commands.text_bank.stats", "how alike reports are within batches; thresholds for the loss"
    ),
    "recipes": Command("cardialign.cluster.commands.recipes", "the shipped recipes, their parameters and FLOPs"),
    "pretrain": Command(
        "cardialign.cluster.commands.pretrain",
        "train a recipe on a shard set with Ray and DeepSpeed; resumes by itself",
    ),
    "evaluate zero-shot": Command(
        "cardialign.cluster.commands.evaluate.zero_shot", "AUROC of a prompt set, with bootstrap intervals"
    ),
    "export": Command(
        "cardialign.cluster.commands.export", "newest verified checkpoint of a run -> safetensors encoder"
    ),
    "embed": Command("cardialign.cluster.commands.embed", "embed one ECG with an exported or registered encoder"),
    "registry list": Command("cardialign.cluster.commands.registry.list", "registered encoders, versions and aliases"),
    "registry promote": Command("cardialign.cluster.commands.registry.promote", "point an alias at a version"),
    "registry pull": Command("cardialign.cluster.commands.registry.pull", "download an encoder and check its digests"),
    "checkpoints list": Command("cardialign.cluster.commands.checkpoints.list", "committed checkpoints of a run"),
    "checkpoints verify": Command(
        "cardialign.cluster.commands.checkpoints.verify", "check every file of a run's checkpoints against its digest"
    ),
    "tracking sync": Command(
        "cardialign.cluster.commands.tracking.sync", "replay a run's metrics from its spool to MLflow"
    ),
    "bench compile": Command(
        "cardialign.cluster.commands.bench.compile",
        "registers, spills and tensor-core use of every Triton kernel; needs no GPU",
    ),
    "bench data": Command("cardialign.cluster.commands.bench.data", "records per second from shards to float batches"),
    "bench kernels": Command(
        "cardialign.cluster.commands.bench.kernels", "speed and memory of losses, patches, attention and one step"
    ),
}

GROUPS: dict[str, str] = {
    "shards": "build, verify and look into shard sets",
    "text-bank": "the distinct reports of a shard set, embedded once",
    "evaluate": "downstream evaluation of an encoder",
    "registry": "the MLflow model registry",
    "checkpoints": "the checkpoints of a run",
    "tracking": "the metrics of a run and MLflow",
    "bench": "benchmarks",
}
"""Help of the first word of two-word commands."""
