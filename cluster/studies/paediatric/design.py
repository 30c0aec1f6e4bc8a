"""`study paediatric`: what an encoder that was pretrained on adults is worth on children, and what its age gate adds.

B1 and B2 are baselines, B3 the main recipe, each fine-tuned as it is; B4 is the encoder of B3 with an age gate behind
every block. Beside them stand two that tell where its worth comes from: B3 whose log odds alone are modulated by the
age, and B4 that reads the same age for everybody, which has the weights of the gate and knows no age. Whoever has a
choice of how to be fine-tuned takes what the validation records say, over the same number of choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cardialign.cluster.studies.origin import Origin
from cardialign.data_shards.cohort.norms import BAND_WORDS, BANDS

REFERENCE, PLAIN = "B4", "B3"
HELD_OUT = (3, 5, 7, 9)
"""Age groups (of `norms.BANDS`) that nobody is fine-tuned or chosen on: 7-30 days, 3-6 months, 1-3 and 5-8 years."""
FINDINGS = ("NORM", "SBRAD", "STACH", "1AVB", "LVH", "RVH")
"""Of the virtual children: what is nothing but a limit of the age, of rate, PR or voltage, and its absence."""
VERSION = 1
"""To be raised when the same cell comes to give other numbers."""


@dataclass(frozen=True)
class Arm:
    """recipe: what is pretrained on adults, None where the start are random weights of section `encoder`.

    choices: name -> what of the fine-tuning differs; the one with the best validation figure is scored. blind: it is
    told the same age of everybody.
    """

    name: str
    words: str
    recipe: str | None
    choices: dict[str, dict[str, Any]]
    encoder: dict[str, Any] | None = None
    blind: bool = False


SAME_AGE = 1.0
"""Years that a blind arm is told of everybody."""


def _choices(**more: Any) -> dict[str, dict[str, Any]]:
    """What is behind the blocks, and gates. With the blocks, too, every validation that was tried was lower."""
    return {"behind": {"train_blocks": 0, **more}}


_GATED = _choices(age_gate="encoder")
ARMS = (
    Arm("B1", "MERL's ResNet-18, pretrained on adults", "merl", {**_choices(), "all": {"lr": 3e-3}}),
    Arm(
        "B2",
        "ResNet-18 from random weights",
        None,
        {"all": {"lr": 3e-3}},
        {"name": "resnet1d", "depth": 18, "width": 16, "norm": "group", "pooling": "attention", "heads": 4},
    ),
    Arm("B3", "main recipe, pretrained on adults", "cardialign-demo", _choices()),
    Arm("B4-blind", "B4 that is told the same age of everybody", "cardialign-demo", _GATED, blind=True),
    Arm("B3-age", "B3, its log odds modulated by the age", "cardialign-demo", _choices(age_gate="head")),
    Arm("B4", "B3 with an age gate behind every block", "cardialign-demo", _GATED),
)


@dataclass(frozen=True)
class Sizes:
    """How much of everything: records of virtual adults and children, passes over the adults, options of fine-tuning
    that all arms share.
    """

    adults: int = 2000
    children: int = 1200
    adult_epochs: int = 3
    tuning: tuple[tuple[str, Any], ...] = (
        ("lr", 5e-3), ("weight_decay", 0.05), ("epochs", 10), ("patience", 5), ("batch_size", 32),
    )  # fmt: skip
    sampling_rate: int = 100
    seconds: int = 5
    overrides: tuple[str, ...] = ()


TINY = Sizes(
    adults=40,
    children=120,
    adult_epochs=1,
    seconds=2,
    tuning=(("lr", 1e-3), ("epochs", 1), ("patience", 1)),
    overrides=("training.global_batch=16", "training.checkpoint_every=1000", "collapse.enabled=false"),
)
"""To see that everything runs; its figures say nothing."""


def held_out_words() -> list[str]:
    return [BAND_WORDS[band] for band in HELD_OUT]


def band_of(age_years: float) -> int:
    """Place of an age in BANDS, their number for everybody who is older."""
    return next((place for place, (low, high) in enumerate(BANDS) if low <= age_years < high), len(BANDS))


def made_of(arm: Arm, seed: int, sizes: Sizes, facts: dict[str, Any]) -> Origin:
    """All that a cell follows from; facts: fingerprints of records and digest of the start."""
    how: dict[str, Any] = {"choices": arm.choices, "encoder": arm.encoder, "recipe": arm.recipe, "tuning": sizes.tuning}
    how |= {"blind": SAME_AGE} if arm.blind else {}
    return Origin({"version": VERSION, "arm": arm.name, "seed": seed, **how, **facts})
