"""`cardialign text complete`: a language model names what reports leave out, the ECGs say what of it is so."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from typing import Any

from cardialign.cluster.cli.lines import aligned
from cardialign.cluster.cli.options import add_encoder, add_folds, add_tracking_uri, place, place_to_write, whole_number
from cardialign.cluster.cli.progress import Progress
from cardialign.cluster.completion.endpoint import KEY
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.secret import Secret


def share(text: str) -> float:
    """The `type=` of an option that is a probability."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a number from 0 to below 1")
    return number


def above_zero(text: str) -> float:
    """The `type=` of an option that is a price, or seconds."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e12:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a number above 0")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=place, help="folder or URL of the shard set")
    parser.add_argument("--out", type=place_to_write, required=True, metavar="FOLDER", help="new folder of the reports")
    add_encoder(parser)
    parser.add_argument(
        "--endpoint", required=True, metavar="URL", help="that speaks OpenAI's chat form, e.g. http://127.0.0.1:8000/v1"
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="model that the endpoint serves")
    parser.add_argument(
        "--key-env", default=KEY, metavar="NAME", help=f"environment variable of the key (default {KEY})"
    )
    parser.add_argument("--reports", type=place, metavar="FOLDER", help="complete these reports beside the set instead")
    parser.add_argument(
        "--threshold", type=share, default=0.95, metavar="P", help="least probability of what is kept (default 0.95)"
    )
    parser.add_argument(
        "--strangers",
        type=share,
        metavar="SHARE",
        help="instead: a threshold for each feature, which this share of ECGs exceed that it was not proposed for",
    )
    parser.add_argument(
        "--guard",
        nargs="*",
        metavar="PROMPTS",
        help="prompt sets whose class names no feature may hold (default: all shipped ones; nothing behind it: none)",
    )
    add_folds(parser, "complete only the records of these folds")
    _add_limits(parser.add_argument_group("limits"))
    kept = parser.add_argument_group("answers")
    kept.add_argument(
        "--answers", type=place_to_write, metavar="FOLDER", help="where they are kept (default: SHARDS.answers)"
    )
    kept.add_argument(
        "--answered-only", action="store_true", help="ask nothing; complete the reports that are answered"
    )
    parser.add_argument(
        "--sheet",
        type=whole_number(2, 10**6),
        default=200,
        metavar="N",
        help="lines for a human to judge (default 200)",
    )
    add_tracking_uri(parser)


def _add_limits(limits: argparse._ArgumentGroup) -> None:
    limits.add_argument("--budget-tokens", type=whole_number(1), metavar="N", help="stop before so many tokens")
    limits.add_argument(
        "--budget-cost", type=above_zero, metavar="X", help="stop before it costs so much (see --prices)"
    )
    limits.add_argument(
        "--prices", type=above_zero, nargs=2, metavar=("IN", "OUT"), help="per million tokens of prompts and of answers"
    )
    limits.add_argument(
        "--concurrency", type=whole_number(1, 512), default=8, metavar="N", help="questions under way (default 8)"
    )
    limits.add_argument(
        "--timeout", type=above_zero, default=60.0, metavar="SECONDS", help="until an answer must be there (default 60)"
    )
    limits.add_argument(
        "--retries",
        type=whole_number(0, 100),
        default=6,
        metavar="N",
        help="of a question, with longer waits (default 6)",
    )
    limits.add_argument(
        "--answer-tokens", type=whole_number(16, 65536), default=512, metavar="N", help="of one answer (default 512)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.completion.asking import Budget
    from cardialign.cluster.completion.complete import Completion, complete_reports
    from cardialign.cluster.completion.endpoint import Endpoint
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.prompts import prompt_set_names

    if args.budget_cost is not None and args.prices is None:
        raise UsageError("--budget-cost needs prices", "add --prices IN OUT, per million tokens")
    if args.key_env != KEY and not os.environ.get(args.key_env):
        raise UsageError(f"--key-env {args.key_env}: that environment variable is not set", "set it, or leave it out")
    endpoint = Endpoint(
        args.endpoint,
        args.model,
        Secret(os.environ.get(args.key_env, "")),
        args.answer_tokens,
        args.timeout,
        args.retries,
    )
    shard_set = ShardSet.open(args.shards, reports=args.reports)
    how = Completion(
        threshold=args.threshold,
        strangers=args.strangers,
        guard=tuple(prompt_set_names() if args.guard is None else args.guard),
        concurrency=args.concurrency,
        budget=Budget(args.budget_tokens, args.budget_cost, tuple(args.prices or (0.0, 0.0))),
        answered_only=args.answered_only,
        folds=args.folds,
        sheet=args.sheet,
    )
    answers = args.answers or shard_set.path.absolute().with_name(f"{shard_set.path.name}.answers")
    with open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code) as encoder, ExitStack() as shown:

        def tell(word: str) -> Progress:
            shown.close()  # one bar at a time
            return shown.enter_context(Progress(f"text complete: {word}"))

        result = complete_reports(shard_set, args.out, endpoint, encoder, answers, how, tell)
    return {**result, "sent_to": endpoint.host, "answers": str(answers)}


def summary(result: dict[str, Any]) -> list[str]:
    shown = {key: value for key, value in result.items() if key not in ("acceptance", "most_proposed", "tables")}
    lines = [*aligned({**shown, **result["tables"]}), "", f"{'threshold':>9}  {'kept':>7}  {'of strangers':>12}"]

    def part(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    for row in result["acceptance"]:
        mark = " <" if row["threshold"] == result["threshold"] else ""
        lines.append(f"{row['threshold']:>9g}  {part(row['kept']):>7}  {part(row['strangers']):>12}{mark}")
    lines += ["", f"{'kept':>6} of {'records':>7}  {'mean p':>6}  feature"]
    for row in result["most_proposed"]:
        mean = "-" if row["mean_probability"] is None else f"{row['mean_probability']:.2f}"
        lines.append(f"{row['kept']:>6} of {row['records']:>7}  {mean:>6}  {row['feature']}")
    return lines
