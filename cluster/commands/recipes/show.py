"""`cardialign recipes show`: every setting of a recipe, those included that it takes over or leaves as they are."""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name of a shipped recipe (`cardialign recipes list`), or a YAML file")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="one setting; repeatable"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.config import load_config
    from cardialign.pretrain.config.inherit import recipe_file, written_values

    config = load_config(args.recipe, args.overrides)
    _, _, files = written_values(recipe_file(args.recipe))
    return {"files": [str(each) for each in files], "recipe": config.resolved()}


def summary(result: dict[str, Any]) -> list[str]:
    import yaml

    first, *bases = result["files"]
    heads = [f"# {first}", *(f"#   extends {each}" for each in bases)]
    text = yaml.safe_dump(result["recipe"], sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    return [*heads, *text.rstrip("\n").split("\n")]
