"""`cardialign evaluate zero-shot`: how well an encoder tells classes apart that it was not trained on, by prompts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import (
    PROMPT_WORDS,
    add_allow_trained,
    add_batch_size,
    add_bootstrap,
    add_draw_seed,
    add_encoder,
    add_folds,
    add_label_files,
    add_prompt_words,
    add_split,
    add_tracking_uri,
    json_to_write,
    place,
)
from cardialign.cluster.cli.result_file import check_place
from cardialign.data_shards.errors import UsageError

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.prompts import PromptSet
    from cardialign.pretrain.evaluation.task import EvaluationTask
    from cardialign.pretrain.export.usable import UsableEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser)
    parser.add_argument("--shards", type=place, required=True, help="folder or URL of the shard set")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", help="name of a shipped prompt set or a YAML file")
    what.add_argument(
        "--protocol", metavar="NAME:TASK", help="records, labels and prompts of a protocol, e.g. clean-v1:ptb-xl-super"
    )
    add_prompt_words(parser)
    add_label_files(parser)
    add_folds(parser, "score only these folds")
    add_split(parser, "score only this part; with --protocol: the protocol's part, default test; else")
    add_bootstrap(parser)
    add_draw_seed(parser, "of the bootstrap and of the untrained baseline")
    add_batch_size(parser)
    parser.add_argument(
        "--scoring",
        metavar="WAY",
        help="how a text is scored: cosine, or another way of the encoder; default its own",
    )
    parser.add_argument("--baseline", action="store_true", help="also score the same encoder with fresh weights")
    add_allow_trained(parser)
    parser.add_argument("--out", type=json_to_write, help="write the full result there as JSON")
    parser.add_argument(
        "--track",
        action="store_true",
        help="also log figures and scores to the registered encoder's MLflow run and version, as evidence for its gate",
    )
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.evaluations.kept import of_comparison, of_zero_shot, write_with_scores
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.protocols import open_task
    from cardialign.pretrain.evaluation.result import ZeroShotComparison, ZeroShotResult
    from cardialign.pretrain.evaluation.zero_shot import compare_zero_shot, evaluate_zero_shot

    if args.track and not args.encoder.startswith("models:/"):
        raise UsageError(
            f"--track: {args.encoder} is a folder, not a registered encoder", "give --encoder models:/NAME@ALIAS"
        )
    if args.out is not None:
        check_place(args.out)
    shard_set = ShardSet.open(args.shards)
    settings: dict[str, Any] = {"bootstrap": args.bootstrap, "seed": args.seed, "batch_size": args.batch_size}
    settings |= {"allow_trained": args.allow_trained, "scoring": args.scoring}
    if args.protocol is None:
        if args.label_files is not None:
            raise UsageError("--label-files belongs to a protocol", "add --protocol NAME:TASK or leave it out")
        settings |= {"prompts": _prompts(args), "folds": args.folds, "split": args.split}
    else:
        if args.words != PROMPT_WORDS[0]:
            raise UsageError(
                "--words with --protocol: the protocol says which words", "leave --words out, or choose --prompts"
            )
        if args.folds is not None:
            raise UsageError(
                "--folds with --protocol: the protocol says which records", "leave --folds out, or choose --split"
            )
        settings["task"] = open_task(args.protocol, shard_set, split=args.split or "test", label_files=args.label_files)
    opened = open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code)
    with opened as encoder, Progress("zero-shot") as progress:
        outcome: ZeroShotResult | ZeroShotComparison
        if args.baseline:
            outcome = compare_zero_shot(encoder, encoder.untrained(args.seed), shard_set, progress=progress, **settings)
        else:
            outcome = evaluate_zero_shot(encoder, shard_set, progress=progress, **settings)
        if (args.split or ("test" if args.protocol else None)) == "test":
            outcome = outcome.opened(_opening(args, encoder, shard_set, settings.get("task")))
    result = outcome.to_dict()
    if args.out is not None:
        write_with_scores(args.out, result, of_comparison(outcome, shard_set))
    if args.track:
        from cardialign.cluster.registry.evidence import log_evaluation

        chosen = result["protocol"]
        name = f"{chosen['protocol']}/{chosen['task']}/{chosen['split']}" if chosen else result["prompts"]["name"]
        scored = of_zero_shot(outcome.result if isinstance(outcome, ZeroShotComparison) else outcome, shard_set)
        log_evaluation(args.encoder, args.tracking_uri, f"zero-shot/{name}", result, scored)
    return {**result, "_table": outcome.table()}


def _prompts(args: argparse.Namespace) -> PromptSet:
    from cardialign.pretrain.evaluation.prompts import load_prompts, said

    return said(load_prompts(args.prompts), args.words)


def _opening(
    args: argparse.Namespace, encoder: UsableEncoder, shard_set: ShardSet, task: EvaluationTask | None
) -> dict[str, Any]:
    """Write down that test records were scored for this run."""
    from cardialign.pretrain.evaluation.openings import ScoredPart, open_test
    from cardialign.pretrain.evaluation.task import labelled_task

    found = task or labelled_task(shard_set, _prompts(args), args.folds, split=args.split)
    part = ScoredPart(args.protocol or found.prompts.label_set, shard_set, found.rows)
    return open_test(part, encoder.training_run(), "evaluate zero-shot", args.encoder)


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["_table"]).splitlines()
