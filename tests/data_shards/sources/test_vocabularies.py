"""The tables of codes are closed: every code of a finding, and of a kind of it, counts for its class in every set.

The codes, abbreviations and counts are those of the mapping tables of the PhysioNet/CinC Challenge of 2021.
"""

from __future__ import annotations

import pytest

from cardialign.data_shards.sources.vocabularies import aha, snomed

SCORED_PAIRS = [
    ("733534002", "164909002"),
    ("713427006", "59118001"),
    ("284470004", "63593006"),
    ("427172004", "17338001"),
]
"""What the Challenge scores as one diagnosis."""

SCORED_CODES = """
164889003 164890007 6374002 426627000 733534002 713427006 270492004 713426002 39732003 445118002 164909002 251146004
698252002 426783006 284470004 10370003 365413008 427172004 164947007 111975006 164917005 47665007 59118001 427393009
426177001 427084000 63593006 164934002 59931005 17338001
"""

CSN_RECORDS = """
AF=1780 AFL=8060 BBB=385 Brady=7 CLBBB=213 CRBBB=1096 IAVB=1140 IRBBB=246 LAD=1545 LAnFB=380 LBBB=453 LQRSV=1613
NSIVCB=771 NSR=8125 PAC=1312 PR=1182 PRWP=638 PVC=1091 LPR=52 LQT=391 QAb=1063 RAD=853 RBBB=649 SA=2550 SB=16559
STach=52 SVPB=9 TAb=7043 TInv=2877 VPB=294
AAR=16 AED=17 AIVR=14 AJR=12 AMI=49 AnMI=57 AB=3 ARH=215 ATach=297 AVB=244 AVD=59 AVJR=139 AVNRT=16 AVRT=26 BPAC=62
BRU=5 CCR=162 CVCL/CCVCL=653 CHB=76 CR=76 ERe=366 FB=116 FQRS=3 IIAVB=66 IIAVBII=7 ILBBB=6 JE=75 JPC=11 JTach=24
LAE=37 LAH=8 LPFB=5 LVH=647 LVHV=5401 MI=123 MoI=31 NSSTTA=1158 PPW=106 PVT=109 PWC=142 RAH=36 RAHV=36 RVH=110 SAAWR=7
SAB=5 SARR=33 SPRI=23 SQT=2 STC=4232 STD=1668 STE=176 STIAb=801 SVT=724 TPW=215 UAb=136 VBig=3 VEsB=56 VEsR=96 VF=59
VFL=7 VPEx=12 VTrig=8 WAP=2 WPW=72
"""
"""Abbreviation=records of Chapman-Shaoxing and Ningbo together."""

NOT_IN_CHAPMAN = (
    "AAR AED AIVR AJR ARH AVD AVJR BBB BRU Brady CVCL/CCVCL ILBBB IRBBB LAE LAH LAnFB LPFB LVHV PR PRWP "
    "PVT SAB SARR SPRI SQT STC VEsR VF VFL"
)
"""Findings of their own that the set's table of condition names does not have."""


def published() -> dict[str, int]:
    return {name: int(count) for name, _, count in (pair.rpartition("=") for pair in CSN_RECORDS.split())}


def records_of(table: dict[str, tuple[str, ...]], name: str) -> int:
    """Upper end: records that have a code of the class, those with two of them twice."""
    counts = published()
    held = {snomed.ABBREVIATIONS[code] for code, names in table.items() if name in names}
    return sum(counts.get(abbreviation, 0) for abbreviation in held)


def test_every_code_that_the_challenge_scores_has_its_class_in_the_challenge_set() -> None:
    codes = SCORED_CODES.split()
    assert len(codes) == 30 and set(codes) <= set(snomed.SCORED)
    assert len({snomed.SCORED[code] for code in codes}) == 26
    assert all(len(snomed.SCORED[code]) == 1 for code in codes), "one diagnosis for a scored code"


@pytest.mark.parametrize("label_set", sorted(snomed.LABEL_SETS))
@pytest.mark.parametrize("pair", SCORED_PAIRS, ids="-".join)
def test_codes_that_are_scored_as_one_diagnosis_are_one_class_in_every_set(
    pair: tuple[str, str], label_set: str
) -> None:
    table = snomed.LABEL_SETS[label_set]
    assert pair[0] in table and table[pair[0]][0] == table[pair[1]][0]


def test_no_set_knows_one_code_of_a_finding_and_not_the_other() -> None:
    for line in filter(None, snomed._SAME.split("\n")):
        codes = line.split()
        assert set(codes) <= set(snomed.ABBREVIATIONS)
        for table in snomed.LABEL_SETS.values():
            assert len({frozenset(table.get(code, ())) for code in codes}) == 1, line


def test_the_csn_set_holds_the_records_that_are_published_for_each_finding() -> None:
    assert records_of(snomed.CHAPMAN, "VPB") == 294 + 1091 + 3 + 8  # both codes, bigeminy, trigeminy
    assert records_of(snomed.CHAPMAN, "RBBB") == 649 + 1096
    assert records_of(snomed.CHAPMAN, "LBBB") == 453 + 213
    assert records_of(snomed.CHAPMAN, "AVNRT") == 16
    assert records_of(snomed.CHAPMAN, "APB") == 1312 + 9 + 3 + 62  # SVPB, bigeminy, blocked ones
    assert records_of(snomed.CHAPMAN, "2AVB") == 66 + 31 + 7
    assert records_of(snomed.CHAPMAN, "2AVB2") == 7
    assert records_of(snomed.CHAPMAN, "SAAWR") == 7 + 2
    assert records_of(snomed.CHAPMAN, "MI") == 123 + 49 + 57


def test_what_the_csn_set_does_not_know_is_a_finding_of_its_own() -> None:
    known = {snomed.ABBREVIATIONS[code] for code in snomed.CHAPMAN}
    assert set(published()) <= set(snomed.ABBREVIATIONS.values())
    assert set(published()) - known == set(NOT_IN_CHAPMAN.split())


def test_an_incomplete_block_and_a_voltage_are_no_block_and_no_hypertrophy() -> None:
    code = {abbreviation: code for code, abbreviation in snomed.ABBREVIATIONS.items()}
    for abbreviation, not_this in {"IRBBB": "RBBB", "ILBBB": "LBBB", "LVHV": "LVH", "AFL": "AFIB"}.items():
        for table in snomed.LABEL_SETS.values():
            assert not_this not in table.get(code[abbreviation], ())


def test_a_code_of_two_findings_counts_for_both_and_its_own_comes_first() -> None:
    assert snomed.CHAPMAN["54016002"] == ("2AVB1", "2AVB", "AVB")
    assert snomed.classes(("54016002", "713427006"), snomed.CHAPMAN) == ("2AVB1", "RBBB", "2AVB", "AVB")
    assert snomed.classes(("11157007",), snomed.SCORED) == snomed.classes(("11157007",), snomed.CPSC2018) == ("PVC",)


def test_statements_say_what_the_codes_say_and_nothing_of_their_kin() -> None:
    assert snomed.statements(("713427006", "11157007")) == (
        "Complete right bundle branch block",
        "Ventricular bigeminy",
    )


def test_a_modifier_does_not_take_a_record_out_of_its_aha_statement() -> None:
    assert aha.with_plain_codes(("C22", "D30+Modifier308", "D30", "Left ventricular high voltage")) == (
        "C22",
        "D30+Modifier308",
        "D30",
        "Left ventricular high voltage",
    )
    assert aha.with_plain_codes(("L145+Modifier362", "L145+Modifier363")) == (
        "L145+Modifier362",
        "L145",
        "L145+Modifier363",
    )


@pytest.mark.parametrize(
    "written",
    [
        "'C22';'D30+Modifier308'",
        "c22;d30+modifier308",
        "C22, D30+Modifier308",
        "C22|D30 + Modifier308",
        "['C22', 'D30+Modifier308']",
        "C22/D30+Modifier 308",
        "C22 D30+M308",
        "C22.0;D 30+308;null;",
    ],
)
def test_aha_codes_are_known_however_they_are_written(written: str) -> None:
    assert aha.parse_codes(written) == ("C22", "D30+Modifier308")


@pytest.mark.parametrize("finding", ["Left ventricular high voltage", "ST change, V1 to V3", "T wave in V1 V2", "RSR'"])
def test_a_finding_in_words_stays_one_finding(finding: str) -> None:
    assert aha.parse_codes(f"'C22';\"{finding}\"") == ("C22", finding.strip("'"))


def test_the_aha_table_has_every_primary_statement() -> None:
    """Numbers of Mason et al. 2007, table 1."""
    blocks = [(1, 4), (10, 16), (20, 27), (30, 42), (50, 56), (60, 66), (70, 76), (80, 89), (100, 111), (120, 131)]
    blocks += [(140, 155), (160, 174), (180, 190)]
    unused = {103, 126, 127, 129, 130, 164, *range(167, 173)}
    assert set(aha.AHA_STATEMENTS) == {n for first, last in blocks for n in range(first, last + 1)} - unused


def test_fibrillation_and_flutter_is_both_and_a_junctional_tachycardia_is_supraventricular() -> None:
    assert set(snomed.CHAPMAN["195080001"]) == {"AFIB", "AF"} and set(snomed.SCORED["195080001"]) == {"AF", "AFL"}
    assert snomed.CPSC2018["195080001"] == ("AF",)
    assert snomed.CHAPMAN["426648003"] == ("SVT",)


@pytest.mark.parametrize(
    "written",
    [
        "164889003", "164889003.0", "1.64889003E8", "1.64889003e+08", "0164889003", "AF", "af", "atrial fibrillation",
        "Atrial Fibrillation", "164889003 (AF)", "Atrial fibrillation (164889003)", "164889003 |Atrial fibrillation|",
        "'164889003'", "(164889003)",
    ],
)  # fmt: skip
def test_a_code_is_known_however_it_is_written(written: str) -> None:
    assert snomed.parse_dx(written) == ("164889003",)


def test_two_codes_in_one_word_and_a_code_that_nobody_knows_stay_as_they_are() -> None:
    assert snomed.parse_dx("164889003-59118001") == ("164889003-59118001",)
    assert snomed.parse_dx("0999000999, 1.6E8, Something") == ("0999000999", "1.6E8", "Something")
