"""`cardialign evaluate missingness`: AUROC when leads and time are missing: a table, a picture, an export's card."""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import (
    add_allow_trained,
    add_batch_size,
    add_bootstrap,
    add_draw_seed,
    add_drawn_records,
    add_encoder,
    add_folds,
    add_label_files,
    add_other_encoders,
    add_split,
    add_tracking_uri,
    file_to_write,
    folds,
    json_to_write,
    place,
    whole_number,
)
from cardialign.cluster.cli.result_file import check_place, write_result
from cardialign.data_shards.errors import UsageError

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.missingness.surface.asked import Asked
    from cardialign.pretrain.evaluation.missingness.surface.measure import SurfacePlan, SurfaceScores


def numbers(text: str) -> tuple[int, ...]:
    """`0,3,9`: how many leads are missing."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and len(word) < 4 for word in words):
        raise ArgumentTypeError(f"{text[:40]!r} is no list of numbers of leads; write for example 0,1,3,6,9,11")
    return tuple(int(word) for word in words)


def percent(text: str) -> tuple[float, ...]:
    """`0,25,50` in percent -> (0.0, 0.25, 0.5)."""
    found = []
    for word in text.split(","):
        try:
            found.append(float(word) / 100)
        except ValueError:
            found.append(math.nan)
    if any(math.isnan(each) for each in found):
        raise ArgumentTypeError(f"{text[:40]!r} is no list of percent; write for example 0,25,50,75")
    return tuple(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser)
    add_other_encoders(parser)
    parser.add_argument("--shards", type=place, required=True, help="folder or URL of the shard set")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", help="zero-shot: name of a shipped prompt set or a YAML file")
    what.add_argument("--labels", metavar="LABEL_SET", help="linear probe of a label set, with folds for its parts")
    what.add_argument(
        "--protocol", metavar="NAME:TASK", help="of a protocol: zero-shot, or its linear probe by --probe"
    )
    parser.add_argument(
        "--probe", action="store_true", help="with --protocol: a linear probe, learnt from whole records"
    )
    for part, help in (("train", "learn from"), ("validation", "choose the penalty on"), ("test", "score")):
        parser.add_argument(f"--{part}-folds", type=folds, metavar="1-8", help=f"with --labels: {help} these folds")
    add_label_files(parser)
    add_folds(parser, "with --prompts: score only these folds")
    add_split(parser, "score only this part; with --protocol: the protocol's part, default test; else")
    parser.add_argument(
        "--leads-missing", type=numbers, metavar="N,N", help="how many, of twelve (default 0,1,3,6,9,11)"
    )
    parser.add_argument("--time-missing", type=percent, metavar="P,P", help="percent (default 0,25,50,75)")
    parser.add_argument(
        "--presets",
        nargs="+",
        metavar="LEADS",
        help="only these leads are there: lead-i, leads-i-ii, leads-i-ii-v2, limb (default all four), names such as "
        "I,V5, or none",
    )
    parser.add_argument(
        "--evidence",
        action="store_true",
        help="the grid also with the leads of each class's primary evidence gone first",
    )
    add_drawn_records(parser)
    parser.add_argument("--draws", type=whole_number(1, 1000), default=3, metavar="N", help="masks a cell (default 3)")
    parser.add_argument("--scoring", metavar="WAY", help="how a text is scored (default the encoder's own way)")
    add_bootstrap(parser)
    add_draw_seed(parser)
    add_batch_size(parser)
    add_allow_trained(parser)
    parser.add_argument("--out", type=json_to_write, help="write the full result there as JSON")
    parser.add_argument(
        "--picture", type=file_to_write, metavar="FILE", help="draw the surface there: .png, .svg, .pdf"
    )
    parser.add_argument(
        "--card", action="store_true", help="put the surface into the encoder's own folder; who loads it is told by it"
    )
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.evaluations.several import refuse_repeats
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.missingness.surface.asked import result_card
    from cardialign.pretrain.evaluation.missingness.surface.measure import check_evidence
    from cardialign.pretrain.evaluation.missingness.surface.result import paired, paired_lines, surface_result
    from cardialign.pretrain.export.missing_card import add_card

    plan = _plan(args)
    _check(args)
    refuse_repeats("--seeds", [args.encoder, *args.seeds])
    refuse_repeats("--beside", args.beside)
    shard_set = ShardSet.open(args.shards)
    asked = _asked(args, shard_set, plan)
    if plan.evidence:
        check_evidence(asked.ranked)
    drawing = {"resamples": args.bootstrap, "seed": args.seed}
    own = [_scored(args, name, shard_set, asked, plan) for name in (args.encoder, *args.seeds)]
    found = surface_result([scores for scores, _ in own], asked.ranked, plan, asked.measure, **drawing)
    result: dict[str, Any] = {
        **found.to_dict(),
        "settings": {
            "leads": list(plan.leads), "time": list(plan.time), "draws": plan.draws, "seed": plan.seed,
            "records": args.records, "left_out": asked.left_out,
        },
        "task": asked.about,
        "encoders": [facts for _, facts in own],
        "shards": shard_set.fingerprint,
        "bootstrap": {**drawing, "unit": "patient"},
    }  # fmt: skip
    result["card"] = result_card(result, own[0][1]["card_of"]) if not args.seeds else None
    lines = [*found.lines(), *asked.lines(), *(line for _, facts in own for line in _notes(facts))]
    if args.beside:
        other = [_scored(args, name, shard_set, asked, plan) for name in args.beside]
        beside = surface_result([scores for scores, _ in other], asked.ranked, plan, asked.measure, **drawing)
        differences = paired(found, beside)
        result["beside"] = {**beside.to_dict(), "encoders": [facts for _, facts in other], "paired": differences}
        lines += ["", "the other encoder", *beside.lines(), "", *paired_lines(differences)]
    if args.out is not None:
        write_result(args.out, result)
    if args.picture is not None:
        from cardialign.pretrain.evaluation.missingness.surface.picture import draw_surface

        draw_surface(found, args.picture)
        result["picture"] = str(args.picture)
    if args.card:
        result["export_digest"] = add_card(Path(args.encoder).expanduser(), result["card"])
        lines.append(f"card: {args.encoder} carries it; the digest of the export is {result['export_digest'][:12]} now")
    return {**result, "_table": "\n".join(lines)}


def _plan(args: argparse.Namespace) -> SurfacePlan:
    from cardialign.pretrain.evaluation.missingness.surface.measure import NUMBERS, SHARES, SurfacePlan
    from cardialign.pretrain.evaluation.missingness.surface.presets import PRESETS, presets_of

    words = list(PRESETS) if args.presets is None else args.presets
    if "none" in words and len(words) > 1:
        raise UsageError("--presets says none, and others", "leave none out, or the others")
    return SurfacePlan(
        args.leads_missing or NUMBERS,
        args.time_missing or SHARES,
        () if words == ["none"] else presets_of(words),
        args.evidence,
        args.draws,
        args.seed,
        args.batch_size,
    )


def _check(args: argparse.Namespace) -> None:
    """What contradicts itself, or cannot be written, before hours of scoring. Raises UsageError, UserError."""
    if args.probe and args.protocol is None:
        raise UsageError("--probe belongs to a protocol", "add --protocol NAME:TASK; --labels alone is a linear probe")
    probed = args.probe or args.labels is not None
    if probed and (args.folds is not None or args.split is not None or args.scoring is not None):
        raise UsageError(
            "--folds, --split and --scoring are of zero-shot", "a linear probe has --train-folds, --validation-folds, "
            "--test-folds with --labels, and the parts of its --protocol"
        )  # fmt: skip
    if args.protocol is not None and args.folds is not None:
        raise UsageError("--folds with --protocol: the protocol says which records", "leave --folds out")
    if args.labels is None and any((args.train_folds, args.validation_folds, args.test_folds)):
        raise UsageError("--train-folds, --validation-folds and --test-folds belong to --labels", "leave them out")
    if args.label_files is not None and args.protocol is None:
        raise UsageError("--label-files belongs to a protocol", "add --protocol NAME:TASK or leave it out")
    if args.card:
        from cardialign.pretrain.run.integrity import verify_export

        if args.seeds:
            raise UsageError("--card with --seeds: a card is of one encoder", "measure it alone")
        if args.encoder.startswith("models:/") or not Path(args.encoder).expanduser().is_dir():
            raise UsageError(
                f"--card: {args.encoder} is no folder of `cardialign export`",
                "give the folder; of a registered encoder pull it first, and register it again with its card",
            )
        verify_export(Path(args.encoder).expanduser())
    if args.out is not None:
        check_place(args.out)
    if args.picture is not None:
        from cardialign.pretrain.evaluation.missingness.surface.picture import check_picture

        check_picture(args.picture)
        check_place(args.picture)


def _asked(args: argparse.Namespace, shard_set: ShardSet, plan: SurfacePlan) -> Asked:
    from cardialign.cluster.commands.evaluate.linear_probe import open_probe_task
    from cardialign.pretrain.evaluation.missingness.surface.asked import Asked
    from cardialign.pretrain.evaluation.protocols import open_task
    from cardialign.pretrain.evaluation.task import labelled_task

    if args.labels is not None or args.probe:
        return Asked.of_probe(open_probe_task(args)[1], shard_set, plan, args.records)
    if args.prompts is not None:
        task = labelled_task(shard_set, args.prompts, args.folds, split=args.split)
    else:
        task = open_task(args.protocol, shard_set, split=args.split or "test", label_files=args.label_files)
    test = (args.split or ("test" if args.protocol else None)) == "test"
    return Asked.of_words(task, shard_set, plan, args.records, test)


def _scored(
    args: argparse.Namespace, name: str, shard_set: ShardSet, asked: Asked, plan: SurfacePlan
) -> tuple[SurfaceScores, dict[str, Any]]:
    """Scores of one encoder, and what is said of it."""
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.pretrain.evaluation.ledger import of_pretraining
    from cardialign.pretrain.evaluation.missingness.surface.measure import check_leads, score_surface
    from cardialign.pretrain.evaluation.openings import ScoredPart, open_test
    from cardialign.pretrain.evaluation.overlap import find_overlap, refuse_overlap
    from cardialign.pretrain.evaluation.result import overlap_note

    with open_encoder(name, args.tracking_uri, args.trust_remote_code) as encoder, Progress("missingness") as progress:
        check_leads(encoder, plan)
        overlap = find_overlap(encoder, shard_set, asked.scored_rows)
        if not args.allow_trained:
            refuse_overlap(overlap, encoder, shard_set)
        scorer = asked.scorer(encoder, shard_set, args.scoring)
        opened: dict[str, Any] = {}
        if asked.test:
            part = ScoredPart(asked.ranked.name, shard_set, asked.scored_rows)
            opened = open_test(part, encoder.training_run(), "evaluate missingness", name)
        facts = {
            "encoder": encoder.digest,
            "card_of": encoder.bare_digest,
            "trained_on": overlap.to_dict(),
            "note": overlap_note(overlap.to_dict()),
            "ledger": [of_pretraining("encoder", asked.ranked.name, overlap.to_dict()).to_dict()],
            "test_opened": opened,
        }
        return score_surface(scorer, shard_set, asked.ranked, plan, progress), facts


def _notes(facts: dict[str, Any]) -> list[str]:
    """What is told of an encoder beside its figures."""
    from cardialign.pretrain.evaluation.ledger import opening_line, told

    opened = [opening_line(facts["test_opened"])] if facts["test_opened"] else []
    return [f"{facts['encoder'][:24]}: {facts['note']}", *told(facts["ledger"]), *opened]


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["_table"]).splitlines()
