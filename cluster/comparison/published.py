"""Published figures as data: `published-v1.yaml`, each with its protocol and its source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cardialign.cluster.comparison.figure import PROBE, PUBLISHED_TASKS, ZERO_SHOT, Column
from cardialign.pretrain.config.yaml_text import read_yaml

FILE = Path(__file__).parent / "published-v1.yaml"
SAID = (
    "Published figures are of other records, splits and prompts than yours; what is near them is no proof, and public "
    "reruns of released weights contradict some of them by up to 25 points."
)


@dataclass(frozen=True)
class PublishedRow:
    """figures: column -> macro AUROC x 100 as printed; mean: share (None: zero-shot) -> the mean over the six tasks.

    other_splits: which of its columns were measured on other splits than most others; rerun: public reruns differ.
    """

    method: str
    kind: str
    figures: dict[Column, str]
    mean: dict[float | None, str]
    protocol: str
    source: str
    other_splits: str
    rerun: bool


@dataclass(frozen=True)
class Published:
    version: int
    rows: tuple[PublishedRow, ...]
    reruns: tuple[dict[str, str], ...]


@cache
def published() -> Published:
    """What the package ships."""
    values = read_yaml(FILE.read_text(encoding="utf-8"), FILE.name)
    rows = []
    for kind, section in ((PROBE, "linear_probe"), (ZERO_SHOT, "zero_shot")):
        shares: list[float | None] = values[section].get("shares", [None])
        for row in values[section]["rows"]:
            source = values["sources"][row["source"]]
            told = {task: of if isinstance(of, list) else [of] for task, of in row["figures"].items()}
            figures = {
                Column(kind, task, share): text
                for task in PUBLISHED_TASKS
                for share, text in zip(shares, told.get(task, []), strict=False)
            }
            splits = "" if source["splits"] == "merl" else source["splits"]
            means = dict(zip(shares, told["mean"], strict=True)) if "mean" in told else _means(kind, figures, shares)
            rows.append(
                PublishedRow(
                    row["method"], kind, figures, means, source["protocol"], source["title"], splits,
                    bool(row.get("rerun")),
                )
            )  # fmt: skip
    return Published(values["version"], tuple(rows), tuple(values["reruns"]))


def _means(kind: str, figures: dict[Column, str], shares: list[float | None]) -> dict[float | None, str]:
    out: dict[float | None, str] = {}
    for share in shares:
        own = [figures.get(Column(kind, task, share)) for task in PUBLISHED_TASKS]
        if None not in own:
            out[share] = f"{sum(float(text) for text in own if text is not None) / len(own):.2f}"
    return out
