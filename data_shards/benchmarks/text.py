"""The similarity space of reports: how useless raw cosines are, and what a low-rank projection saves and costs.

Reports are made of phrases (real ones from a file, else those of the virtual cohorts): a report's vector is the mean of
the vectors of one to six phrases, few phrases often and many rarely, as in machine reports. Only the phrases are
embedded, so that 180,000 reports take seconds.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.benchmarks.material import Material, Measurement, rate
from cardialign.data_shards.benchmarks.table import Row
from cardialign.data_shards.cohort.findings import FINDINGS
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.text.similarity import low_rank, low_rank_space, unit

RANK = 64
BATCH = 1024
"""Reports whose similarities are computed at once, as for a global batch."""
REPEATS = 4
"""One matrix alone is too short to be timed."""
_QUALIFIERS = ("", "Possible ", "Probable ", "Cannot rule out ", "Consider ", "Old ", "Borderline ")

ROWS = (
    Row("raw cosine of two reports, mean (0.835 on MIMIC-IV-ECG with MedCPT: useless)", "raw_cosine_mean"),
    Row("raw cosine of two reports, 1st to 99th percentile span", "raw_cosine_span"),
    Row("centred cosine of two reports, mean", "centred_cosine_mean"),
    Row(
        "centred cosine of two reports, 1st to 99th percentile span",
        "centred_cosine_span",
        against={"raw cosine": "raw_cosine_span"},
    ),
    Row(f"low-rank similarity ({RANK} axes): mean error of S", "low_rank_mean_error"),
    Row(f"low-rank similarity ({RANK} axes): largest error of S", "low_rank_max_error"),
    Row(
        f"low-rank similarity ({RANK} axes), matrices of {BATCH} reports",
        rate("similarity_low_rank"),
        "reports/s",
        against={"whole width": rate("similarity_whole")},
    ),
)


class Vectors:
    """`reports` made-up reports of the phrases, drawn from `seed`: raw unit vectors float32 (R, d) and what the text
    bank makes of them."""

    def __init__(self, phrases: np.ndarray, reports: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        chance = 1 / np.arange(1, len(phrases) + 1)  # Zipf: few phrases make most of the reports
        chosen = rng.choice(len(phrases), size=(reports, 6), p=chance / chance.sum())
        counts = rng.integers(1, 7, size=reports)
        total = np.zeros((reports, phrases.shape[1]), dtype=np.float32)
        for place in range(6):
            total += phrases[chosen[:, place]] * (place < counts)[:, None]
        self.embeddings = unit(total)
        self.mean = self.embeddings.mean(axis=0)

    def centred(self, report_ids: np.ndarray) -> np.ndarray:
        return unit(self.embeddings[report_ids] - self.mean)

    @cached_property
    def space(self) -> tuple[np.ndarray, list[dict[str, float]]]:
        return low_rank_space(self)


def phrase_vectors(material: Material) -> np.ndarray:
    """float32 (P, d): every distinct phrase once, the order drawn from the seed.

    Raises DataError for a file without phrases.
    """
    texts = made_up_phrases() if material.phrases.file is None else read_phrases(material.phrases.file)
    vectors = material.phrases.encoder.embed(texts)
    return np.asarray(vectors, dtype=np.float32)[np.random.default_rng(material.seed).permutation(len(texts))]


def read_phrases(path: Path) -> list[str]:
    try:
        texts = sorted(
            {line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()} - {""}
        )
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", "give a text file with one report phrase per line"
        ) from error
    if len(texts) < 2:
        raise DataError(f"{path} holds {len(texts)} phrases", "give a text file with one report phrase per line")
    return texts


def made_up_phrases() -> list[str]:
    """The phrases of the virtual cohorts that name no number, with the qualifiers that machines put before them."""
    plain = {
        text for finding in FINDINGS.values() for text in (*finding.statements, *finding.features) if "{" not in text
    }
    return sorted(qualifier + text for text in plain for qualifier in _QUALIFIERS)


def measure_similarity(material: Material) -> Measurement:
    vectors = Vectors(phrase_vectors(material), material.sizes.reports, material.seed)
    axes, errors = vectors.space
    ids = np.arange(min(BATCH, material.sizes.reports))
    wide = vectors.centred(ids)
    narrow = np.ascontiguousarray(low_rank(wide, axes[:, :RANK]))

    def similarities(rows: np.ndarray) -> int:
        return sum(len(rows @ rows.T) for _ in range(REPEATS))

    def figures() -> dict[str, Any]:
        upper = np.triu_indices(ids.size, 1)
        found: dict[str, Any] = {"text_encoder_dim": vectors.embeddings.shape[1]}
        for name, rows in (("raw", vectors.embeddings[ids]), ("centred", wide)):
            cosines = (rows @ rows.T)[upper]
            low, high = np.percentile(cosines, (1, 99))
            found |= {f"{name}_cosine_mean": float(cosines.mean()), f"{name}_cosine_span": float(high - low)}
        chosen = next(each for each in errors if each["rank"] == RANK)
        return {
            **found,
            **{f"low_rank_{key}": chosen[key] for key in ("variance_kept", "mean_error", "max_error", "pairs")},
        }

    jobs = {"similarity_whole": lambda: similarities(wide), "similarity_low_rank": lambda: similarities(narrow)}
    return Measurement(jobs, figures, ROWS)
