"""`cardialign prompts list`: the prompt sets that zero-shot evaluation knows by name."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.data_shards.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # nothing to choose


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.evaluation.prompts import load_prompts, prompt_set_names

    sets: list[dict[str, Any]] = []
    for name in prompt_set_names():
        try:
            found = load_prompts(name)
        except UserError as error:  # a set of another package: the others are listed all the same
            sets.append({"name": name, "problem": error.problem})
            continue
        counts = [len(each.prompts) for each in found.classes]
        facts = {"label_set": found.label_set, "classes": len(counts), "prompts": sum(counts), "digest": found.digest}
        sets.append({"name": name, **facts})
    return {"prompt_sets": sets}


def summary(result: dict[str, Any]) -> list[str]:
    width = max(len(each["name"]) for each in result["prompt_sets"])
    lines = [f"{'prompt set':<{width}}  classes  prompts  label set"]
    for each in result["prompt_sets"]:
        if "problem" in each:
            lines.append(f"{each['name']:<{width}}  cannot be used: {each['problem']}")
            continue
        lines.append(f"{each['name']:<{width}}  {each['classes']:>7}  {each['prompts']:>7}  {each['label_set']}")
    return lines
