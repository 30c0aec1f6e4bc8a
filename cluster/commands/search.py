"""`cardialign search`: what lies nearest to a record or to a text, in an encoder's space."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from cardialign.cluster.cli.options import (
    add_batch_size,
    add_encoder,
    add_folds,
    add_split,
    add_tracking_uri,
    json_to_write,
    place,
    whole_number,
)
from cardialign.cluster.cli.result_file import check_place, write_result
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shown import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser)
    parser.add_argument("--shards", type=place, required=True, help="folder or URL of the shard set to look in")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", help="a record of the set: the records and the reports nearest to it")
    what.add_argument("--text", help="a statement or a report: the records nearest to it")
    parser.add_argument("--top", type=whole_number(1, 1000), default=10, metavar="K", help="answers (default 10)")
    add_folds(parser, "look only among these folds")
    add_split(parser, "look only in this part")
    add_batch_size(parser)
    parser.add_argument("--out", type=json_to_write, help="write the full result there as JSON")
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.atlas.lookup import Asked, near_record, records_of_text

    if args.out is not None:
        check_place(args.out)
    shard_set = ShardSet.open(args.shards)
    asked = Asked(shard_set, shard_set.select(folds=args.folds, split=args.split).rows, args.top, args.batch_size)
    opened = open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code)
    with opened as encoder, Progress("search") as progress:
        result: dict[str, Any] = {"encoder": encoder.digest, "shards": shard_set.fingerprint, "among": len(asked.rows)}
        if args.text is not None:
            found = records_of_text(encoder, asked, args.text, progress)
            result |= {"text": args.text, "records": [each.to_dict() for each in found]}
        else:
            why = _without_texts(encoder)
            found, reports = near_record(encoder, asked, args.key, reports=why is None, progress=progress)
            result |= {"key": args.key, "records": [each.to_dict() for each in found]}
            result |= {"reports": [each.to_dict() for each in reports]} if why is None else {"no_reports": why}
    if args.out is not None:
        write_result(args.out, result)
    return result


def _without_texts(encoder: Any) -> str | None:
    """Why no report can be compared with a record, None where it can."""
    try:
        encoder.embed_text(["Sinus rhythm"])
    except UserError as error:
        return error.problem
    return None


def summary(result: dict[str, Any]) -> list[str]:
    asked = f"record {result['key']}" if "key" in result else f"the text {result['text']!r:.200}"
    lines = [f"nearest to {asked}, among {result['among']:,} records", "", "records"]
    for each in result["records"]:
        same = "  (same patient)" if each["same_patient"] else ""
        lines += _answer(each["cosine"], f"{each['key']}{same}", each["report"] or "no report")
    if "reports" in result:
        lines += ["", "reports"]
        for each in result["reports"]:
            records = f"{each['records']:,} record{'s' * (each['records'] != 1)}"
            lines += _answer(each["cosine"], records + ("  (its own)" if each["own"] else ""), each["report"])
    if "no_reports" in result:
        lines += ["", f"no reports: {result['no_reports']}"]
    return lines


def _answer(cosine: float, head: str, text: str) -> list[str]:
    """Two or three lines of an answer; what moves a cursor in a text of the data is shown, not done."""
    wrapped = textwrap.wrap(shown(text), 96, max_lines=3, placeholder=" ...")
    return [f"  {cosine:+z.3f}  {head}", *(f"          {line}" for line in wrapped)]
