"""The one table of commands: the words typed -> one line of help. The words also name the module that does it.

`doctor` is `doctor.py`, `text-bank stats` is `text_bank/stats.py`; FOLDERS names the exceptions. Such a module has
`add_arguments(parser)` and `run(args) -> dict`; it may have `summary(result) -> list[str]` for readers of a terminal.
Modules are imported only when their command is typed, and must themselves import heavy packages inside functions.
"""

from __future__ import annotations

import importlib
from types import ModuleType

COMMANDS: dict[str, str] = {
    "demo": "the whole path on virtual patients: cohort to registry, with an HTML report",
    "doctor": "what this machine has, what is missing, and how to get it",
    "cohort": "make virtual patients in the file layout of a public data set",
    "shards plan": "what a build would make of a data set, from its first records, with a picture of three",
    "shards build": "ECG files and reports -> a shard set",
    "shards verify": "check every shard against its index and digests",
    "shards inspect": "figures of a shard set, or a 12-lead picture of one record, also beside its views",
    "shards leakage": "patients and recordings that two shard sets or selections share",
    "shards stats": "labels, statements, patients, lengths and quality of a set, with histograms",
    "text-bank build": "tokens and embeddings of every distinct report, beside the shards",
    "text-bank stats": "how alike reports are within batches; thresholds for the loss",
    "text complete": "what reports leave out: named by a language model, kept where the ECG agrees",
    "text enrich": "intervals and axes that the device measured, put into words behind each report",
    "text stub": "a rule-based stand-in for a language model on this machine, for work without one",
    "prompts list": "the prompt sets of zero-shot evaluation, with the label set that each answers to",
    "prompts show": "the words of a prompt set, class by class",
    "prompts vectors": "the vectors of a set's classes as a file: zero-shot scores without a text encoder",
    "recipes list": "the shipped recipes, their parameters and FLOPs",
    "recipes show": "every setting of a recipe, with what it extends and what it leaves as it is",
    "recipes diff": "the settings in which recipes differ",
    "methods list": "the methods of pretraining: what each does, whether it reads reports, its recipes",
    "plan": "what a recipe needs on machines: memory, time, cost; predicted, without a GPU",
    "pretrain": "train a recipe on a shard set with Ray and DeepSpeed; resumes by itself",
    "submit": "give a command to a Ray cluster as a job; returns at once, and the same name continues",
    "status": "how a job and its run stand: step, loss, time left, checkpoint, restarts",
    "logs": "what the driver of a job prints, or one of its workers",
    "stop": "end a job at a checkpoint; asked twice, at once",
    "list": "your jobs on a cluster",
    "runs list": "the runs in a folder, and how each stands",
    "runs page": "a page about a run: provenance, cost, curves, evaluations, a map, what is retrieved",
    "drill": "faults against a tiny run, here or on your cluster: is each promise of not losing a run kept",
    "study": "variants of a recipe over folds and seeds, and a table with paired intervals",
    "compare": "runs, encoders and evaluations side by side: a page, LaTeX and CSV, with paired intervals and cost",
    "evaluate zero-shot": "AUROC of a prompt set, with bootstrap intervals",
    "evaluate linear-probe": "AUROC of a linear map on frozen features, beside honest floors",
    "evaluate grid": "linear probes of all tasks of a protocol at 1, 10, 100 %, beside floors; resumes by itself",
    "evaluate fine-tune": "AUROC of an encoder trained further, or from scratch, on labels; killed, it starts over",
    "evaluate select": "the best checkpoint or encoder, by validation records alone",
    "evaluate cmrs": "what is left of an encoder when leads or time are missing: at random, or where it hurts most",
    "evaluate missingness": "AUROC when leads and time are missing: a surface, presets such as lead I alone, a picture",
    "evaluate card": "put a measured missingness surface into the export: who loads it is told what to expect",
    "evaluate explain-gap": "what each setting in which two protocols differ is worth in macro AUROC",
    "evaluate masker": "what the masker of a SCAR-R run removes of each class, in figures and pictures",
    "export": "newest verified checkpoint of a run -> safetensors encoder",
    "encoder check": "each way into an exported encoder against the ten ECGs that lie in it",
    "exposure prove": "was a record, a patient or a test set in an encoder's training: from its export, offline",
    "exposure check": "does such a proof hold against the root of the certificate",
    "map": "records as an encoder sees them, on a plane: by class, by age, beside another encoder",
    "search": "the records and reports nearest to a record, or the records nearest to a text",
    "embed": "embed one ECG with an exported or registered encoder",
    "registry list": "registered encoders, versions and aliases",
    "registry show": "the card of a registered encoder: what it is, its data, figures, contract, limits",
    "registry promote": "point an alias at a version; production asks for evidence first",
    "registry rollback": "point an alias at what it pointed at before",
    "registry pull": "download an encoder and check its digests",
    "checkpoints list": "committed checkpoints of a run",
    "checkpoints prune": "delete old checkpoints of a run; one that is sound always stays",
    "checkpoints verify": "check every file of a run's checkpoints against its digest",
    "checkpoints audit": "make a part of a run again from a checkpoint: equal bit for bit, or the first difference",
    "replay": "one step of a run made again: where its numbers went bad, and on which records",
    "tracking sync": "replay a run's metrics from its spool to MLflow",
    "completion": "the script by which bash or zsh completes commands, options and their values",
    "bench checkpoint": "for how long a checkpoint holds up the steps, in the step and behind them",
    "bench compile": "registers, spills and tensor-core use of every Triton kernel; needs no GPU",
    "bench data": "records per second from shards to float batches",
    "bench exposure": "seconds of a million questions to an exposure certificate",
    "bench probe": "seconds of a linear probe on one core, features given",
    "bench kernels": "speed and memory of losses, patches, attention and one step",
}

GROUPS: dict[str, str] = {
    "shards": "build, verify and look into shard sets",
    "text-bank": "the distinct reports of a shard set, embedded once",
    "text": "other reports beside a shard set: completed or enriched",
    "prompts": "the words that stand for classes in zero-shot evaluation",
    "recipes": "recipes of pretraining, shipped ones and your own",
    "methods": "methods of pretraining",
    "runs": "runs on this machine",
    "evaluate": "downstream evaluation of an encoder",
    "encoder": "exported encoders",
    "exposure": "what an encoder was trained on, by its certificate",
    "registry": "the MLflow model registry",
    "checkpoints": "the checkpoints of a run",
    "tracking": "the metrics of a run and MLflow",
    "bench": "benchmarks",
}
"""Help of the first word of two-word commands."""


FOLDERS = dict.fromkeys(("submit", "status", "logs", "stop", "list"), "jobs")
"""One-word commands whose module lies in a folder."""
NESTED = ("submit",)
"""Commands that take the words of another one behind `--`: as `args.behind`."""


def module_of(command: str) -> ModuleType:
    """The module of a command of the table, imported."""
    words = [*filter(None, [FOLDERS.get(command)]), *command.replace("-", "_").split()]
    return importlib.import_module(".".join([__name__, *words]))
