"""`cardialign evaluate card`: a measured missingness surface into the export it was measured on, and what it says."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.lines import aligned
from cardialign.cluster.cli.options import place
from cardialign.data_shards.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", type=place, help="what `cardialign evaluate missingness` wrote to --out")
    parser.add_argument(
        "--encoder", type=place, required=True, help="folder of `cardialign export`: the encoder that was measured"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.files import read_json
    from cardialign.pretrain.export.missing_card import MissingnessCard, add_card

    result = read_json(args.result)
    card = result.get("card") if isinstance(result, dict) else None
    if card is None:
        raise UserError(
            f"{args.result} holds no missingness card",
            "measure one encoder alone: `cardialign evaluate missingness --encoder FOLDER --out FILE`",
        )
    digest = add_card(args.encoder, card)
    found = MissingnessCard.of(card)
    return {"encoder": str(args.encoder), "digest": digest, "measured_on": found.on, "points_lost": found.points()}


def summary(result: dict[str, Any]) -> list[str]:
    told = result["points_lost"]
    return aligned({**{key: result[key] for key in ("encoder", "digest", "measured_on")}, **told})
