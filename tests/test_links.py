"""What a page names is there: files and folders, modules and their members, commands, and names in backticks."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cardialign.cluster.commands import COMMANDS, GROUPS

ROOT = Path(__file__).parent.parent
FLOORS = ("cluster", "pretrain", "data_shards", "kernels")
PAGES = sorted(
    page
    for pattern in ("*.md", *(f"{folder}/**/*.md" for folder in (*FLOORS, "deploy")))
    for page in ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"  # it tells of what was
)
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"[\w*-]+(?:/[\w*.-]+)*(?:\.(?:py|md|yaml|json|jsonl|toml|txt|css|parquet|csv|safetensors|pt2)|/)")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\(\))?")
FORMATS = ROOT / "deploy/site/docs/reference/formats.md"
MADE_UP = {"work", "demo", "run"}
"""First folders of paths that a page's own commands make."""


def fenced(page: Path, *languages: str) -> str:
    """The code blocks of a page in these languages."""
    return "\n".join(code for language, code in FENCE.findall(page.read_text()) if language in languages)


def ticked(page: Path) -> Iterator[str]:
    """Words between backticks outside code blocks."""
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


@functools.cache
def kept() -> list[str]:
    """Files of the checkout, without what an installation or a run leaves in it; folders end in a slash."""
    folders = (*FLOORS, "cardialign", "deploy", "tests", ".ci")
    found = [path for path in ROOT.iterdir() if path.is_file()]
    found += [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return [path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "") for path in found] + [
        f"{folder}/" for folder in folders
    ]


@functools.cache
def words_of_the_code() -> frozenset[str]:
    """Every word of the sources, recipes and build files."""
    kinds = (".py", ".yaml", ".toml", "Makefile", ".ci/run")
    return frozenset(
        word
        for name in kept()
        if name.endswith(kinds) and name != "tests/test_links.py"
        for word in re.findall(r"\w+", (ROOT / name).read_text())
    )


@functools.cache
def text_of_the_product() -> str:
    return "\n".join(
        (ROOT / name).read_text() for name in kept() if name.endswith(".py") and name.split("/")[0] in FLOORS
    )


def there(page: Path, name: str) -> bool:
    """Is it a file or folder of the page's floor (for pages of the root and the site: of all), or one that we write?"""
    if "*" in name or name.split("/")[0] in MADE_UP:
        return True
    name = name.removeprefix("cardialign/")
    everywhere = page.parent == ROOT or page.is_relative_to(ROOT / "deploy" / "site")
    start = "" if everywhere else f"{page.relative_to(ROOT).parts[0]}/"
    if any(known == name or (f"/{known}".endswith(f"/{name}") and known.startswith(start)) for known in kept()):
        return True
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return not last.endswith(".py") and f'{last}"' in text_of_the_product()


def resolves(name: str) -> bool:
    """`cardialign.pretrain.config.RunConfig`: the longest part that is a module, and the rest as attributes."""
    parts = name.removesuffix("()").split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def command_exists(words: list[str]) -> bool:
    """Are the words after `cardialign` a command or a group of them?"""
    given = [word for word in words if re.fullmatch(r"[a-z][a-z0-9-]*", word)][:2]
    return not given or (given[0] in GROUPS and len(given) == 1) or any(" ".join(given[:n]) in COMMANDS for n in (1, 2))


def ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text()))
    local = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_file_and_folder_is_there(page: Path) -> None:
    if page == FORMATS:
        pytest.skip("it is made of the docstrings of the modules that write these files")
    named = [name for tick in ticked(page) for name in [tick] if FILE.fullmatch(name)]
    named += FILE.findall(re.sub(r"\S+://\S+", "", fenced(page, "", "text"))) if page.name == "README.md" else []
    assert [name for name in named if not there(page, name)] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_module_and_member_resolves(page: Path) -> None:
    imported = re.findall(r"^from (cardialign[\w.]*) import ([\w, ]+)$", fenced(page, "python"), re.MULTILINE)
    named = [tick for tick in ticked(page) if tick.startswith("cardialign.") and NAME.fullmatch(tick)]
    named += [f"{module}.{name.strip()}" for module, names in imported for name in names.split(",")]
    assert [name for name in named if not resolves(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_is_in_the_table(page: Path) -> None:
    shell = [line.strip() for line in fenced(page, "bash").splitlines()]
    lines = [line for line in [*ticked(page), *shell] if line.split()[:1] == ["cardialign"]]
    assert [line for line in lines if not command_exists(line.split()[1:])] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_name_in_backticks_is_a_word_of_the_code(page: Path) -> None:
    """Names that look like code: with an underscore, a dot or an inner capital. Settings of others are in capitals."""
    names = [tick.removesuffix("()") for tick in ticked(page) if NAME.fullmatch(tick) and not FILE.fullmatch(tick)]
    coded = [name for name in names if re.search(r"[_.]|[a-z][A-Z]", name) and not name.isupper()]
    unknown = {name: set(name.split(".")) - words_of_the_code() for name in coded}
    assert {name: sorted(missing) for name, missing in unknown.items() if missing} == {}


def test_the_checks_can_say_no() -> None:
    page = ROOT / "cluster" / "README.md"
    assert there(page, "main.py") and there(page, "commands/") and there(page, "pretrain/recipes/")
    assert not there(page, "no_such.py") and not there(page, "nowhere/") and not there(page, "attention.py")
    assert resolves("cardialign.data_shards.record.EcgRecord") and not resolves("cardialign.data_shards.record.Nobody")
    assert not resolves("cardialign.no_such_floor")
    assert (
        command_exists(["shards", "build", "--root", "x"]) and command_exists(["doctor"]) and command_exists(["shards"])
    )
    assert not command_exists(["shards", "mend"]) and not command_exists(["levitate"])
