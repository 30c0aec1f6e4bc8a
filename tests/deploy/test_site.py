"""The site: what follows from the code says what the code says, every method has its page, every page a place."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import cardialign
from cardialign.pretrain.choices import METHODS
from cardialign.pretrain.config import load_config
from deploy.site import hooks
from deploy.site.reference import configuration
from deploy.site.reference.configuration import own, takes
from deploy.site.reference.drafts import HEADINGS, draft
from deploy.site.reference.text import prose
from deploy.site.write_pages import DOCS, PAGES
from tests.support.readme import ROOT

SITE = DOCS.parent
WRITTEN = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
BUILDER = importlib.util.find_spec("mkdocs") and importlib.util.find_spec("material")


def settings() -> dict:
    class Loader(yaml.SafeLoader):
        """Names of Python objects are words here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, tag, node: tag)
    return yaml.load((SITE / "mkdocs.yml").read_text(), Loader)


LONG = {"reference/python.md"}
"""It imports what draws, trains and evaluates: seconds, where nothing of it was imported before."""


@pytest.mark.parametrize("name", [pytest.param(each, marks=[pytest.mark.slow] * (each in LONG)) for each in PAGES])
def test_what_follows_from_the_code_says_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), f"deploy/site/docs/{name} is out of date: `make pages`"


@pytest.mark.parametrize("name", own(METHODS))
def test_every_method_has_a_page_with_its_idea_its_formula_and_what_differs(name: str) -> None:
    page = DOCS / "methods" / f"{name}.md"
    told = f"deploy/site/docs/methods/{name}.md has the headings {HEADINGS}; `make pages` writes a first one"
    assert page.is_file(), told
    assert re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE) == list(HEADINGS), told
    assert "```text" in page.read_text().partition("## The formula")[2].partition("## ")[0], f"{name}: no formula"
    recipes = re.findall(r"--recipe (\S+)", page.read_text())  # of a second stage, behind those of the first
    assert recipes and load_config(recipes[-1]).method.name == name


def test_the_draft_of_a_page_is_the_docstring_under_the_headings_of_all() -> None:
    assert draft("melp").count("```text") == 1, "set in, at the beginning of its part"
    page = draft("byol")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == list(HEADINGS)
    idea, formula, differs, run, _ = re.split(r"^## .*$", page, flags=re.MULTILINE)[1:]
    assert "foretells" in idea and "teacher <- m teacher" in formula and "LARS" in differs and "byol-tiny" in run


def test_every_page_of_a_method_is_of_one_that_there_is() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} - {"index"} == set(own(METHODS))


def test_every_page_has_a_place_in_the_navigation_and_no_place_is_empty() -> None:
    named = hooks.pages_of(hooks.unfolded(settings()["nav"], DOCS))
    assert sorted(named) == WRITTEN and len(set(named)) == len(named)


def test_the_site_loads_nothing_from_a_network() -> None:
    values = settings()
    assert values["theme"]["font"] is False and "extra_javascript" not in values
    assert "://" not in (SITE / "mkdocs.yml").read_text() + (DOCS / "style.css").read_text()


@pytest.mark.parametrize("name", WRITTEN)
def test_every_place_that_a_page_links_to_is_on_the_page(name: str) -> None:
    links = re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", (DOCS / name).read_text())
    missing = []
    for link in links:
        file, _, place = link.partition("#")
        target = (DOCS / name).parent / file if file else DOCS / name
        missing += [] if place in hooks.places(target.read_text()) else [link]
    assert missing == []


def test_a_link_out_of_the_site_leads_to_the_page_of_the_repository_and_code_stays(tmp_path: Path) -> None:
    text = (
        "see [how\nit is](../../../pretrain/METHODS.md#a), [it](../../../Makefile)\n```\n[x](../../../Makefile)\n```\n"
    )
    known = {ROOT / "pretrain" / "METHODS.md": "repository/pretrain/METHODS.md"}
    assert hooks.redirected(text, DOCS / "index.md", "index.md", known) == (
        "see [how\nit is](repository/pretrain/METHODS.md#a), it (`Makefile`)\n```\n[x](../../../Makefile)\n```\n"
    )


def test_every_public_name_is_on_its_page() -> None:
    headings = re.findall(r"^## cardialign\.(\w+)$", (DOCS / "reference/python.md").read_text(), re.MULTILINE)
    assert headings == cardialign.__all__, "`make pages`"


def test_a_value_is_told_in_words_with_its_limits() -> None:
    from typing import Annotated, Literal

    from pydantic import Field

    assert takes(Annotated[int, Field(gt=0, le=10)]) == "whole number above 0 to 10"
    assert takes(Annotated[float, Field(ge=0.5)] | None) == "number from 0.5, or null"
    assert takes(tuple[Literal["a", "b"], ...]) == "list, each: `a` or `b`"
    assert takes(tuple[int, int]) == "list of 2, each: whole number"


def test_a_docstring_becomes_prose_items_and_what_is_shown_as_it_stands() -> None:
    told = "Told.\n\nwidth, depth: of a *layer*,\nand more.\nnote: is no key.\n    a = b < c"
    assert prose(told, ["width", "depth"]).splitlines() == [
        *("Told.", "", "- `width`, `depth`: of a \\*layer\\*,", "  and more.", "  note: is no key."),
        *("", "```text", "a = b < c", "```"),
    ]


def test_every_key_of_a_recipe_is_in_the_table() -> None:
    keys = set(re.findall(r"^\| `([\w.]+)` \|", configuration.configuration(), re.MULTILINE))
    assert {"seed", "data.mixture.weight", "training.lead_masking.share", "evaluation.folds", "text.pooling"} <= keys
    for name in own(METHODS):
        fields = METHODS.find(name).Config.model_fields
        assert {f"method.{field}" for field in fields} <= keys


@pytest.mark.slow
@pytest.mark.skipif(
    not BUILDER, reason="mkdocs-material is not installed: `make site` builds in an environment of its own"
)
def test_the_site_builds_without_a_warning_and_names_no_other_host(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", SITE / "mkdocs.yml", "-d", tmp_path]
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(WRITTEN)
    loaded = [
        found
        for page in pages
        for found in re.findall(r'<(?:script|img|link|iframe)\b[^>]*(?:src|href)="(https?:)?//[^"]*"', page.read_text())
    ]
    assert loaded == []


NOTEBOOKS = {
    "consumer": "plain torch",
    "own_method": "loss",
    "researcher": "untrained  macro AUROC",
}
"""Script of a notebook -> what its last cells print."""


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_a_script_of_cells_that_teach(name: str) -> None:
    text = (DOCS / "notebooks" / f"{name}.py").read_text()
    compile(text, name, "exec")
    assert text.startswith("# ---\n# jupyter:") and len(re.findall(r"^# %%$", text, re.MULTILINE)) > 4
    assert re.search(r"^# %% \[markdown\]\n# # \S", text, re.MULTILINE)
    assert {page.stem for page in (DOCS / "notebooks").glob("*.py")} == NOTEBOOKS.keys()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_as_a_plain_script(name: str, tmp_path: Path) -> None:
    modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": modules, "CARDIALIGN_NOTEBOOK": str(tmp_path)}
    words = [sys.executable, str(DOCS / "notebooks" / f"{name}.py")]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert NOTEBOOKS[name] in done.stdout
    found = re.search(r"loss (\S+) at the first step, (\S+) at the last", done.stdout)
    assert found is None or float(found[2]) < float(found[1])
