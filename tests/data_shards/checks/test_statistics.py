"""The figures of a shard set are those that counting its records by hand gives."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.checks.statistics import set_statistics
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from tests.support.small_source import SmallSource


def test_every_count_equals_a_count_over_the_records(small_set: ShardSet) -> None:
    figures = json.loads(json.dumps(set_statistics(small_set)))
    records = [small_set.read_record(row) for row in range(len(small_set))]
    assert figures["records"] == figures["sampled_records"] == len(records) == 88 and figures["rejected"] == {
        "truncated": 2
    }
    patients = Counter(record.patient for record in records)
    assert figures["patients"] == len(patients)
    per_patient = figures["records_per_patient"]
    assert per_patient["most"] == max(patients.values()) and per_patient["mean"] == len(records) / len(patients)
    sizes = Counter(patients.values())
    assert all(per_patient["patients_with"][str(n)] == sizes[n] for n in range(1, 11))
    for name in ("rhythm", "form"):
        labelled = [record.labels[name] for record in records if name in record.labels]
        assert figures["labels"][name]["labelled"] == len(labelled)
        assert figures["labels"][name]["codes"] == Counter(code for codes in labelled for code in codes)
        assert figures["labels"][name]["codes_per_record"] == {
            str(n): k for n, k in Counter(map(len, labelled)).items()
        }
    assert figures["reports"]["statements"] == Counter(
        statement for record in records for statement in record.statements
    )
    assert figures["reports"]["statements_per_record"] == {"2": figures["reports"]["with"]}
    assert figures["reports"]["without"] == sum(not record.statements for record in records)
    assert figures["sex"] == {(name or "unknown"): k for name, k in Counter(record.sex for record in records).items()}
    ages = [record.age_years for record in records if record.age_years is not None]
    histogram = figures["age_years"]["histogram"]
    bins = zip(histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False)
    assert all(count == sum(low <= age < high for age in ages) for low, high, count in bins)
    assert figures["age_years"]["known"] == sum(histogram["counts"]) == len(ages)
    assert (
        figures["quality"]["missing-lead"]
        == figures["unusable_leads"]["V3"]
        == sum(not record.lead_mask[8] for record in records)
    )
    assert figures["quality"]["without_remark"] == sum(not record.quality for record in records)
    lengths = [record.valid_samples / 500 for record in records]
    assert figures["valid_seconds"]["least"] == min(lengths) and figures["valid_seconds"]["padded_records"] == sum(
        s < 1 for s in lengths
    )
    assert figures["original_sampling_rate"] == {"500": 88}


def test_resampled_records_count_by_their_original_rate_and_a_sample_says_its_size(tmp_path: Path) -> None:
    build_shards(SmallSource(20), tmp_path / "set", SetPlan(SignalSpec(250, 1), records_per_shard=16), workers=1)
    figures = set_statistics(ShardSet.open(tmp_path / "set"), sample=7, top=1)
    assert figures["original_sampling_rate"] == {"500": 7} and figures["sampled_records"] == 7
    assert len(figures["reports"]["statements"]) == len(figures["reports"]["texts"]) == 1


class Shouting(SmallSource):
    """Every second record has its report in capitals."""

    def read(self, entry: Entry) -> EcgRecord:
        record = super().read(entry)
        loud = entry.meta["number"] % 2 == 0
        return replace(record, statements=tuple(each.upper() if loud else each for each in ("Sinus rhythm", "PVC")))


def test_what_differs_in_letter_case_alone_counts_together(tmp_path: Path) -> None:
    build_shards(Shouting(20), tmp_path / "set", SetPlan(SignalSpec(500, 1), records_per_shard=16), workers=1)
    reports = set_statistics(ShardSet.open(tmp_path / "set"))["reports"]
    assert {name.casefold(): count for name, count in reports["statements"].items()} == {"sinus rhythm": 20, "pvc": 20}
    assert list(reports["texts"].values()) == [20] and reports["distinct_statements"] == 2
