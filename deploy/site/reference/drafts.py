"""The first page of a method that has none: what the docstring of its module says, under the headings of all."""

from __future__ import annotations

import inspect
import re
import sys

from cardialign.pretrain.choices import METHODS
from cardialign.pretrain.config import load_config, recipe_names
from deploy.site.reference.text import markdown

HEADINGS = ("The idea", "The formula", "What differs from the paper, and why", "Run it", "Figures")
RUN = """On the shards of [the tutorial](../tutorial.md); its keys are in
[the configuration](../reference/configuration.md#methodname-{name}).

```bash
cardialign pretrain --recipe {recipe} --shards work/shards --run-dir work/{recipe}
```"""


def draft(name: str) -> str:
    """Paragraphs that say what is published and what is ours go under the third heading, what is set in by four columns
    is the formula, the first paragraph the idea."""
    recipes = [recipe for recipe in recipe_names() if load_config(recipe).method.name == name]
    recipe = next((each for each in recipes if each.endswith("-tiny")), recipes[0])
    docstring = inspect.cleandoc(sys.modules[METHODS.find(name).__module__].__doc__ or "")
    first, _, rest = docstring.partition("\n\n")
    told: list[str] = []
    differs: list[str] = []
    for paragraph in rest.split("\n\n"):
        (differs if re.search(r"\b(?:Ours|Published|Raises)\b", paragraph) else told).append(paragraph)
    parts = (
        markdown(first),
        markdown("\n\n".join(told)),
        markdown("\n\n".join(differs)),
        RUN.format(name=name, recipe=recipe),
        "Figures of learning: not measured.",
    )
    sections = [f"## {heading}\n\n{part}" for heading, part in zip(HEADINGS, parts, strict=True)]
    return "\n\n".join([f"# {name}", *sections]) + "\n"
