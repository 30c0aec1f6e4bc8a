"""`cardialign evaluate cmrs`: what is left of an encoder when parts of the records are missing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import (
    add_allow_trained,
    add_batch_size,
    add_bootstrap,
    add_draw_seed,
    add_drawn_records,
    add_encoder,
    add_folds,
    add_other_encoders,
    add_split,
    add_tracking_uri,
    json_to_write,
    part,
    place,
    whole_number,
)
from cardialign.cluster.cli.result_file import check_place, write_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser)
    add_other_encoders(parser)
    parser.add_argument("--shards", type=place, required=True, help="folder or URL of the shard set")
    parser.add_argument("--prompts", required=True, help="name of a shipped prompt set or a YAML file")
    parser.add_argument(
        "--missing", nargs="+", metavar="KIND", help="what is missing: leads, time, cells (default all three)"
    )
    parser.add_argument(
        "--share", type=part, default=0.5, help="of the record that is missing, between 0 and 1 (default 0.5)"
    )
    add_drawn_records(parser)
    parser.add_argument("--draws", type=whole_number(1), default=3, metavar="N", help="random masks each (default 3)")
    parser.add_argument(
        "--rounds", type=whole_number(1), default=1, metavar="N", help="of the search for the worst mask (default 1)"
    )
    parser.add_argument("--masker", type=Path, metavar="RUN_DIR", help="also masks by the masker of this scar run")
    add_folds(parser, "score only these folds")
    add_split(parser, "score only this part")
    add_bootstrap(parser)
    add_draw_seed(parser)
    add_batch_size(parser)
    add_allow_trained(parser)
    parser.add_argument("--out", type=json_to_write, help="write the full result there as JSON")
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.evaluations.several import refuse_repeats
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.missingness.evaluate import MissingnessOptions, drawn_records
    from cardialign.pretrain.evaluation.missingness.masks import KINDS, units_of
    from cardialign.pretrain.evaluation.missingness.result import compare, comparison_lines, result_of
    from cardialign.pretrain.evaluation.missingness.trained_masker import open_masker
    from cardialign.pretrain.evaluation.task import labelled_task

    if args.out is not None:
        check_place(args.out)
    refuse_repeats("--seeds", [args.encoder, *args.seeds])
    refuse_repeats("--beside", args.beside)
    shard_set = ShardSet.open(args.shards)
    kinds = tuple(dict.fromkeys(args.missing or KINDS))
    for kind in kinds:
        units_of(kind, shard_set.spec)
    task = drawn_records(labelled_task(shard_set, args.prompts, args.folds, split=args.split), args.records, args.seed)
    options = MissingnessOptions(kinds, args.share, args.records, args.draws, args.rounds, args.seed, args.batch_size)
    masker = None if args.masker is None else open_masker(args.masker, shard_set.spec)
    ranking = None if masker is None else masker.ranking
    drawing = {"resamples": args.bootstrap, "seed": args.seed}
    own = [_scored(args, name, shard_set, task, options, ranking) for name in (args.encoder, *args.seeds)]
    found = result_of([each for each, _ in own], **drawing)
    result = {
        **found.to_dict(),
        "settings": {
            "missing": list(kinds), "share": args.share, "draws": args.draws, "rounds": args.rounds, "seed": args.seed,
            "search": "occlusion on the encoder's own cosines, with the record's labels",
        },
        "prompts": {"name": task.prompts.name, "version": task.prompts.version, "digest": task.prompts.digest},
        "encoders": [facts for _, facts in own],
        "masker": None if masker is None else masker.learnt,
        "shards": shard_set.fingerprint,
        "bootstrap": {**drawing, "unit": "patient"},
    }  # fmt: skip
    table = found.table().splitlines()
    table += [f"{facts['encoder'][:24]}: {facts['note']}; {facts['gaps']}" for _, facts in own]
    table += [] if masker is None else [masker.learnt]
    if args.beside:
        other = [_scored(args, name, shard_set, task, options, ranking) for name in args.beside]
        beside = result_of([each for each, _ in other], **drawing)
        compared = compare(found, beside, **drawing)
        result["beside"] = {**beside.to_dict(), "encoders": [facts for _, facts in other], "paired": compared}
        table += ["", "the other encoder", *beside.table().splitlines(), "", *comparison_lines(compared)]
    if args.out is not None:
        write_result(args.out, result)
    return {**result, "_table": "\n".join(table)}


def _scored(args: argparse.Namespace, name: str, shard_set: Any, task: Any, options: Any, ranking: Any) -> Any:
    """Scores of one encoder, and what is said of it."""
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.pretrain.evaluation.missingness.evaluate import score_missing
    from cardialign.pretrain.evaluation.overlap import find_overlap, refuse_overlap
    from cardialign.pretrain.evaluation.result import overlap_note

    with open_encoder(name, args.tracking_uri, args.trust_remote_code) as encoder, Progress("cmrs") as progress:
        overlap = find_overlap(encoder, shard_set, task.rows)
        if not args.allow_trained:
            refuse_overlap(overlap, encoder, shard_set)
        facts = {
            "encoder": encoder.digest,
            "trained_on": overlap.to_dict(),
            "note": overlap_note(overlap.to_dict()),
            "gaps": "gaps are left out" if encoder.leaves_out else "gaps are flat lines, whole leads are missing leads",
        }
        return score_missing(encoder, shard_set, task, options, ranking, progress), facts


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["_table"]).splitlines()
