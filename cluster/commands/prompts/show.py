"""`cardialign prompts show`: the words of a prompt set, class by class."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from cardialign.cluster.cli.options import add_prompt_words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", help="name of a prompt set (`cardialign prompts list`), or a YAML file")
    add_prompt_words(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.evaluation.prompts import load_prompts, said

    found = said(load_prompts(args.prompts), args.words)
    classes = [
        {"code": each.code, "name": each.name, "prompts": list(each.prompts), "against": list(each.against)}
        for each in found.classes
    ]
    facts = {"name": found.name, "version": found.version, "label_set": found.label_set, "combine": found.combine}
    return {**facts, "digest": found.digest, "style": found.style, "classes": classes}


def summary(result: dict[str, Any]) -> list[str]:
    how = {"mean": "the mean of a class's prompts counts", "max": "the prompt of a class that fits best counts"}
    head = f"{result['name']}: {len(result['classes'])} classes of label set {result['label_set']}"
    lines = [head, f"{how[result['combine']]}; digest {result['digest'][:16]}", *textwrap.wrap(result["style"], 100)]
    for each in result["classes"]:
        lines += ["", f"{each['code']}  {each['name']}"]
        lines += [f"    {text}" for text in each["prompts"]]
        lines += [f"    less: {text}" for text in each["against"]]
    return lines
