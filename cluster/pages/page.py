"""What every HTML page of ours has, and how a template becomes one file.

A page has an inline style sheet, light and dark, and a width that prints on A4. It loads nothing and runs no script.
Templates escape every value that they are given; none keeps a control character or a secret.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cardialign.data_shards.files import commit_file
from cardialign.data_shards.shown import shown

FOLDER = Path(__file__).parent


def write_page(path: Path, template: str, **values: Any) -> Path:
    """The page of `templates/<template>` with `values` as `path`, replaced in one step; returns the path."""
    page = _environment().get_template(template).render(style=_style(), **values)
    path.parent.mkdir(parents=True, exist_ok=True)
    commit_file(path, lambda temporary: temporary.write_text(page, encoding="utf-8"), durable=False)
    return path


def draw(macro: str, **values: Any) -> str:
    """One drawing of `templates/charts.html`: markup, which templates take as it is."""
    drawn: str = getattr(_environment().get_template("charts.html").module, macro)(**values)
    return drawn


def number(value: Any) -> str:
    """Figures as a reader wants them: thousands separated, three significant digits for fractions."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "n/a"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _visible(value: Any) -> Any:
    """Text as a page may show it; markup of our own is no `str` of this kind."""
    return shown(value, lines=True) if type(value) is str else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters["number"] = number
    return environment


@cache
def _style() -> str:
    return (FOLDER / "page.css").read_text(encoding="utf-8")
