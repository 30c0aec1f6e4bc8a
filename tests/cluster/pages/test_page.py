"""A page shows text of others as text: no markup of theirs, no character that acts, no secret."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cardialign.cluster.pages.page import FOLDER
from cardialign.cluster.pages.run_page import write_run_page

EVIL = "<script>alert(1)</script>\x1b]0;x\x07\u202e\x00"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object") or any(name.startswith("on") for name, _ in attrs):
            self.active.append(tag)


def test_a_page_has_no_markup_control_character_or_secret_of_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "pl4nted-s3cret")
    told = f"{EVIL} http://bob:pl4nted-s3cret@host/x"
    page = tmp_path / "page.html"
    run = {"summary": told, "facts": {told: told}, "data": [], "config": {told: told}, "footer": told}
    write_run_page(page, title=told, run=run, trace=[{"step": 1, "loss": 1.0}], zero_shot=None, baseline=None,
                   pictures=[], commands={told: told})  # fmt: skip
    text = page.read_text(encoding="utf-8")
    found = Tags()
    found.feed(text)
    assert found.active == []
    assert not {c for c in text if c not in "\n\t" and (ord(c) < 32 or c in "\x7f\u202e")}
    assert r"\x1b" in text and "pl4nted" not in text


def test_a_value_keeps_room_beside_a_long_label_on_a_phone() -> None:
    """Where the label takes its whole width, a value breaks after every letter."""
    css = (FOLDER / "page.css").read_text(encoding="utf-8")
    (rule,) = [line for line in css.splitlines() if line.startswith("dl.facts {") and "columns" in line]
    label, value = re.findall(r"minmax\((?:[^()]|\([^()]*\))*\)", rule)
    assert label == "minmax(0, max-content)" and "em" in value


def test_twelve_leads_keep_a_width_at_which_they_are_read_and_scroll_on_a_phone() -> None:
    phone = (FOLDER / "page.css").read_text(encoding="utf-8").partition("@media screen and (max-width: 760px)")[2]
    width = re.search(r"\.recording \.scroll img \{ width: (\d+)px; max-width: none; \}", phone)
    assert width is not None and int(width[1]) >= 700
    template = (FOLDER / "templates" / "run.html").read_text(encoding="utf-8")
    assert '<div class="scroll"><img alt="12-lead ECG' in template
