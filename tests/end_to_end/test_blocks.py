"""No code block of the README, and of the pages that teach, is without its test."""

from __future__ import annotations

import pytest

from tests.support.readme import EVALUATION, OTHER_METHODS, RECORDINGS, ROOT, SITE, TUTORIAL, block_with, blocks

TOLD = {
    "README.md": ["make demo", "make test"],
    TUTORIAL: ["make demo", "cardialign doctor", '"$MINE"', '"$MIMIC"'],
    RECORDINGS: ['"$PTB_XL"'],
    EVALUATION: ['"$SHARDS"'],
    OTHER_METHODS: ["for recipe in"],
    f"{SITE}/users/researcher.md": ["recipes diff"],
    f"{SITE}/users/consumer.md": ["registry pull"],
}
"""Page -> a word of each of its blocks, by which the test that runs the block finds it."""


@pytest.mark.parametrize("page", TOLD)
def test_every_block_belongs_to_a_test(page: str) -> None:
    assert len(blocks("bash", page)) == len(TOLD[page]) and all(block_with(word, page=page) for word in TOLD[page])
    assert len(blocks("python", page)) == (page == TUTORIAL)


def test_every_page_of_the_site_that_shows_commands_is_told_of() -> None:
    """Pages that follow from the code and those of methods, whose one command has a test of its own, apart."""
    pages = [page.relative_to(ROOT).as_posix() for page in (ROOT / SITE).rglob("*.md") if page.parent.name != "methods"]
    assert {page for page in pages if blocks("bash", page) or blocks("python", page)} == TOLD.keys() - {"README.md"}
