"""The table of findings.

One entry says everything: name, what it changes in the heart, what it excludes, how machines put it, its SCP-ECG codes.

Adding a finding is adding one entry to `_TABLE` (and, where no existing change fits, one function to
`waveform_changes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from cardialign.data_shards.cohort import waveform_changes as do
from cardialign.data_shards.cohort.waveform_changes import Draft

NORMAL = "NORM"


@dataclass(frozen=True)
class Finding:
    """One diagnosis or rhythm.

    stage: order in which changes are made (0 rhythm, 1 conduction, 2 chambers and the late right ventricle of RBBB, 3
    infarct, 4 ST-T and QT, 5 voltage, 6 rhythm that copies the beat). chronic: persists over a patient's records.
    clinical: share of records in everyday adult practice. youngest: age in years from which it occurs. statements: the
    diagnosis in report language, `{fact}` filled from the draft; features: what is seen in the waveform behind it.
    leads_report: the statement names the rhythm and comes first. suffix: ways to append it to a rhythm ("Sinus rhythm
    with PVCs"). plain: taken as certain, never qualified by "Possible". scp: SCP-ECG statement -> likelihood. summary:
    how the ECG as a whole is called.
    """

    code: str
    name: str
    stage: int
    change: Callable[[Draft, np.random.Generator], None]
    statements: tuple[str, ...]
    features: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()
    excludes: frozenset[str] = field(default_factory=frozenset)
    scp: tuple[tuple[str, float], ...] = ()
    chronic: bool = False
    leads_report: bool = False
    plain: bool = False
    clinical: float = 0.02
    youngest: float = 0.0
    summary: str = "Abnormal ECG"
    stadium: str = ""


def _nothing(draft: Draft, rng: np.random.Generator) -> None:
    """A normal ECG needs no change."""


_NO_SINUS = frozenset({"AFIB", "AFLT", "PACE", "3AVB"})
_BROAD = frozenset({"LBBB", "PACE", "WPW"})
_ST_SEGMENT = frozenset({"ASTE", "ISTE", "LSTE", "STD", "PERI", "TINV"})
_AV = frozenset({"1AVB", "WENCK", "3AVB"})

_TABLE: tuple[Finding, ...] = (
    Finding(
        NORMAL, "normal ECG", 0, _nothing,
        ("Normal ECG", "Within normal limits", "Normal ECG for age", "No abnormality detected"),
        scp=(("NORM", 100.0),), plain=True, clinical=0.3, summary="Normal ECG",
    ),
    Finding(
        "SBRAD", "sinus bradycardia", 0, do.sinus_bradycardia,
        ("Sinus bradycardia", "Marked sinus bradycardia", "Sinus bradycardia, rate {rate}"),
        excludes=_NO_SINUS | {"STACH", "WENCK"}, scp=(("SBRAD", 0.0),), leads_report=True, plain=True, clinical=0.12,
        summary="Otherwise normal ECG",
    ),
    Finding(
        "STACH", "sinus tachycardia", 0, do.sinus_tachycardia,
        ("Sinus tachycardia", "Sinus tachycardia, rate {rate}", "Rapid sinus rhythm"),
        excludes=_NO_SINUS | _AV | {"PAC", "PVC", "LQT", "LAE"}, scp=(("STACH", 0.0),), leads_report=True, plain=True,
        clinical=0.11,
        summary="Otherwise normal ECG",
    ),
    Finding(
        "AFIB", "atrial fibrillation", 0, do.atrial_fibrillation,
        ("Atrial fibrillation", "Atrial fibrillation with {response} ventricular response",
        "Atrial fibrillation, average rate {rate}"),
        features=("Irregular ventricular rhythm without P waves", "Fibrillatory waves in V1"),
        excludes=_NO_SINUS | _AV | {"PAC", "LAE", "RAE", "PERI", "LQT", "WPW"}, scp=(("AFIB", 0.0),), chronic=True,
        leads_report=True,
        clinical=0.08, youngest=4,
    ),
    Finding(
        "AFLT", "atrial flutter", 0, do.atrial_flutter,
        ("Atrial flutter", "Atrial flutter with {flutter_conduction} A-V conduction",
        "Atrial flutter with {response} ventricular response"),
        features=("Sawtooth flutter waves in inferior leads", "Atrial rate {atrial_rate} per minute"),
        excludes=_NO_SINUS | _AV | {"PAC", "PVC", "LAE", "RAE", "PERI", "LQT", "WPW"}, scp=(("AFLT", 0.0),),
        leads_report=True, clinical=0.02,
    ),
    Finding(
        "PAC", "premature atrial contractions", 0, do.premature_atrial,
        ("Premature atrial contractions", "Atrial premature complex(es)", "Supraventricular extrasystoles",
        "PAC(s) noted"),
        suffix=("with PAC(s)", "with premature atrial contractions", "with atrial premature complexes",
        "- supraventricular extrasystoles"),
        excludes=_NO_SINUS | _AV, scp=(("PAC", 0.0),), plain=True, clinical=0.05, summary="Borderline ECG",
    ),
    Finding(
        "PVC", "premature ventricular contractions", 0, do.premature_ventricular,
        ("Premature ventricular contractions", "Ventricular premature complex(es)", "Ventricular extrasystoles",
        "PVC(s) noted"),
        suffix=("with PVC(s)", "with PVCs", "with premature ventricular contractions",
        "with ventricular premature complexes"),
        excludes=frozenset({"AFLT", "PACE", "PAC"}) | _AV, scp=(("PVC", 100.0),), plain=True, clinical=0.06,
    ),
    Finding(
        "1AVB", "first degree atrioventricular block", 0, do.first_degree_block,
        ("First degree A-V block", "1st degree A-V block", "Prolonged PR interval",
        "First degree AV block, PR {pr} ms"),
        suffix=("with 1st degree A-V block", "with first degree AV block", "with prolonged PR interval"),
        excludes=_NO_SINUS | {"WENCK", "WPW", "PAC", "PVC", "STACH"}, scp=(("1AVB", 100.0),), chronic=True, plain=True,
        clinical=0.06,
        summary="Borderline ECG",
    ),
    Finding(
        "WENCK", "second degree atrioventricular block, Wenckebach", 0, do.wenckebach,
        ("Second degree A-V block, Mobitz I (Wenckebach)", "2nd degree A-V block, type I", "Wenckebach A-V block"),
        features=("Progressive PR prolongation with dropped beats", "Intermittent non-conducted P waves"),
        suffix=("with 2nd degree A-V block, Mobitz I", "with Wenckebach A-V block",
        "with type I second degree AV block"),
        excludes=_NO_SINUS | _BROAD | {"1AVB", "SBRAD", "STACH", "LQT"}, scp=(("2AVB", 100.0),), plain=True,
        clinical=0.003,
    ),
    Finding(
        "3AVB", "complete atrioventricular block", 6, do.complete_block,
        ("Complete A-V block", "Third degree A-V block", "Complete heart block with {escape} escape rhythm"),
        features=("A-V dissociation", "Ventricular escape rate {rate}"),
        excludes=_NO_SINUS | _AV | _BROAD | _ST_SEGMENT | {"SBRAD", "STACH", "PAC", "PVC", "LQT", "LVH", "RVH", "RBBB",
        "LAFB", "LVOLT", "OIMI", "OAMI",
                                                          "LAE", "RAE"},
        scp=(("3AVB", 100.0),), leads_report=True, plain=True, clinical=0.003,
    ),
    Finding(
        "PACE", "ventricular paced rhythm", 6, do.ventricular_pacing,
        ("Ventricular paced rhythm", "Electronic ventricular pacemaker", "{pacing} pacemaker rhythm",
        "Ventricular pacing"),
        features=("Pacemaker spikes before QRS complexes",),
        excludes=_NO_SINUS | _AV | _BROAD | _ST_SEGMENT | {"SBRAD", "STACH", "PAC", "PVC", "LQT", "LVH", "RVH", "RBBB",
        "LAFB", "LVOLT", "OIMI", "OAMI",
                                                          "LAE", "RAE"},
        scp=(("PACE", 0.0),), chronic=True, leads_report=True, plain=True, clinical=0.03,
    ),
    Finding(
        "LBBB", "left bundle branch block", 1, do.left_bundle_branch_block,
        ("Left bundle branch block", "Complete left bundle branch block", "LBBB",
        "IV conduction defect of left bundle branch block type"),
        features=("Wide QRS complex with secondary repolarization changes", "Broad notched R in lateral leads"),
        excludes=_BROAD | _ST_SEGMENT | {"RBBB", "LAFB", "LVH", "RVH", "LQT", "LVOLT", "OIMI", "OAMI", "3AVB", "WENCK"},
        scp=(("CLBBB", 100.0),), chronic=True, plain=True, clinical=0.03, youngest=3,
    ),
    Finding(
        "RBBB", "right bundle branch block", 2, do.right_bundle_branch_block,
        ("Right bundle branch block", "Complete right bundle branch block", "RBBB",
        "IV conduction defect of right bundle branch block type"),
        features=("RSR' pattern in V1", "Wide terminal S in lateral leads"),
        excludes=_BROAD | {"LVH", "RVH", "OAMI", "TINV", "ASTE", "LQT", "LVOLT", "3AVB"}, scp=(("CRBBB", 100.0),),
        chronic=True, plain=True,
        clinical=0.06, youngest=0.5,
    ),
    Finding(
        "LAFB", "left anterior fascicular block", 1, do.left_anterior_fascicular_block,
        ("Left anterior fascicular block", "Left anterior hemiblock",
        "Left axis deviation - left anterior fascicular block", "LAFB"),
        features=("Left axis deviation", "Marked left axis deviation", "QRS axis {axis} degrees"),
        excludes=_BROAD | {"RVH", "OIMI", "LVH", "LVOLT", "3AVB"}, scp=(("LAFB", 100.0),), chronic=True, clinical=0.05,
        youngest=1,
        summary="Borderline ECG",
    ),
    Finding(
        "WPW", "ventricular pre-excitation", 1, do.preexcitation,
        ("Ventricular pre-excitation", "Wolff-Parkinson-White pattern", "WPW pattern type {wpw_type}",
        "Pre-excitation (WPW)"),
        features=("Short PR interval", "Delta waves with short PR interval"),
        excludes=_BROAD | _NO_SINUS | _AV | _ST_SEGMENT | {"RBBB", "LAFB", "LVH", "RVH", "LQT", "LVOLT", "OIMI",
        "OAMI", "PAC", "LAE"},
        scp=(("WPW", 100.0),), chronic=True, clinical=0.002,
    ),
    Finding(
        "LVH", "left ventricular hypertrophy", 2, do.left_ventricular_hypertrophy,
        ("Left ventricular hypertrophy", "LVH by voltage", "Left ventricular hypertrophy{strain}", "LVH{strain}"),
        features=("High QRS voltages in chest leads", "Lateral ST-T changes may be due to hypertrophy"),
        excludes=_BROAD | {"RBBB", "RVH", "LAFB", "LVOLT", "TINV", "STD", "OAMI", "ASTE", "LSTE", "PERI", "3AVB"},
        scp=(("LVH", 100.0),), chronic=True,
        clinical=0.08, youngest=1,
    ),
    Finding(
        "RVH", "right ventricular hypertrophy", 2, do.right_ventricular_hypertrophy,
        ("Right ventricular hypertrophy", "RVH with right axis deviation",
        "Right ventricular hypertrophy with secondary ST-T changes"),
        features=("Right axis deviation", "Tall R in V1 with deep S in V6"),
        excludes=_BROAD | {"RBBB", "LVH", "LAFB", "LVOLT", "TINV", "OIMI", "OAMI", "ASTE", "LSTE", "3AVB"},
        scp=(("RVH", 100.0),), chronic=True,
        clinical=0.015, youngest=3,
    ),
    Finding(
        "LAE", "left atrial enlargement", 2, do.left_atrial_enlargement,
        ("Left atrial enlargement", "Left atrial abnormality", "LAE"),
        features=("Broad notched P waves", "Wide P with negative terminal force in V1"),
        excludes=_NO_SINUS | {"RAE", "STACH", "WPW", "PAC"}, scp=(("LAO/LAE", 100.0),), chronic=True, clinical=0.04,
        summary="Borderline ECG",
    ),
    Finding(
        "RAE", "right atrial enlargement", 2, do.right_atrial_enlargement,
        ("Right atrial enlargement", "Right atrial abnormality", "RAE"),
        features=("Tall peaked P waves in inferior leads",),
        excludes=_NO_SINUS | {"LAE"}, scp=(("RAO/RAE", 100.0),), chronic=True, clinical=0.015, summary="Borderline ECG",
    ),
    Finding(
        "OIMI", "old inferior myocardial infarction", 3, do.old_inferior_infarct,
        ("Old inferior infarct", "Inferior infarct, age undetermined", "Inferior myocardial infarction, old",
        "Inferior infarct - age indeterminate"),
        features=("Q waves in inferior leads", "Abnormal inferior Q waves"),
        excludes=_BROAD | {"LAFB", "RVH", "OAMI", "ISTE", "LVOLT", "3AVB"}, scp=(("IMI", 100.0),), chronic=True,
        clinical=0.06, youngest=30,
        stadium="Stadium III",
    ),
    Finding(
        "OAMI", "old anterior myocardial infarction", 3, do.old_anterior_infarct,
        ("Old anterior infarct", "Anteroseptal infarct, age undetermined", "Anterior infarct - age indeterminate",
        "Septal and anterior infarct, old"),
        features=("Q waves in anterior leads", "Poor R wave progression", "QS complexes in V1-V3"),
        excludes=_BROAD | {"RBBB", "LVH", "RVH", "OIMI", "ASTE", "LVOLT", "PERI", "3AVB"}, scp=(("ASMI", 100.0),),
        chronic=True, clinical=0.06,
        youngest=30, stadium="Stadium III",
    ),
    Finding(
        "ASTE", "acute anterior ST elevation infarction", 4, do.anterior_elevation,
        ("Anterior ST elevation, consider acute infarct", "Anterior infarct, possibly acute",
        "Acute anterior myocardial infarction",
         "Anterior ST elevation - myocardial injury"),
        features=("ST elevation in V1-V4", "Anterior injury pattern"),
        excludes=_BROAD | _ST_SEGMENT, scp=(("AMI", 100.0), ("STE_", 0.0)), clinical=0.01, youngest=30,
        stadium="Stadium I",
    ),
    Finding(
        "ISTE", "acute inferior ST elevation infarction", 4, do.inferior_elevation,
        ("Inferior ST elevation, consider acute infarct", "Inferior infarct, possibly acute",
        "Acute inferior myocardial infarction",
         "Inferior ST elevation - myocardial injury"),
        features=("ST elevation in II, III and aVF", "Inferior injury pattern", "Reciprocal ST depression in aVL"),
        excludes=_BROAD | _ST_SEGMENT, scp=(("IMI", 100.0), ("STE_", 0.0)), clinical=0.01, youngest=30,
        stadium="Stadium I",
    ),
    Finding(
        "LSTE", "acute lateral ST elevation infarction", 4, do.lateral_elevation,
        ("Lateral ST elevation, consider acute infarct", "Lateral infarct, possibly acute",
        "Acute lateral myocardial infarction",
         "Lateral ST elevation - myocardial injury"),
        features=("ST elevation in I, aVL, V5 and V6", "Lateral injury pattern"),
        excludes=_BROAD | _ST_SEGMENT, scp=(("LMI", 100.0), ("STE_", 0.0)), clinical=0.006, youngest=30,
        stadium="Stadium I",
    ),
    Finding(
        "PERI", "acute pericarditis", 4, do.pericarditis,
        ("Acute pericarditis", "Diffuse ST elevation - pericarditis", "Widespread ST elevation, consider pericarditis"),
        features=("Diffuse ST elevation", "PR segment depression"),
        excludes=_BROAD | _ST_SEGMENT | _NO_SINUS | {"WENCK", "LVH", "RVH", "LVOLT"}, scp=(("STE_", 0.0),),
        clinical=0.004,
    ),
    Finding(
        "STD", "ST depression", 4, do.st_depression,
        ("ST depression, consider ischemia", "Lateral ST depression may be due to myocardial ischemia",
        "Anterolateral and inferior ST depression",
         "ST depression - possible subendocardial injury"),
        features=("ST-T changes in lateral leads", "ST segment depression"),
        excludes=_BROAD | _ST_SEGMENT | {"LVH"}, scp=(("STD_", 100.0),), clinical=0.04,
    ),
    Finding(
        "TINV", "T wave inversion", 4, do.t_inversion,
        ("T wave inversion in {t_region} leads", "Inverted T waves, {t_region} leads", "{T_region} T wave inversion",
         "{T_region} T wave inversion, consider ischemia"),
        features=("{T_region} T wave changes", "Repolarization abnormality"),
        excludes=_BROAD | _ST_SEGMENT | {"LVH", "RVH", "RBBB"}, scp=(("INVT", 100.0),), clinical=0.06,
    ),
    Finding(
        "LQT", "long QT interval", 4, do.long_qt,
        ("Prolonged QT interval", "Long QT interval", "QT prolongation, QTc {qtc} ms", "QTc prolonged"),
        excludes=_BROAD | _NO_SINUS | {"STACH", "WENCK", "RBBB"}, scp=(("LNGQT", 100.0),), plain=True, clinical=0.06,
    ),
    Finding(
        "LVOLT", "low QRS voltage", 5, do.low_voltage,
        ("Low QRS voltage", "Low voltage in limb leads", "Generalized low QRS voltages", "Low limb lead voltage"),
        excludes=_BROAD | {"LVH", "RVH", "LAFB", "RBBB", "OIMI", "OAMI", "3AVB", "PERI"}, scp=(("LVOLT", 0.0),),
        chronic=True, plain=True,
        clinical=0.04, summary="Borderline ECG",
    ),
)  # fmt: skip


def _closed(table: tuple[Finding, ...]) -> dict[str, Finding]:
    """The table by code, exclusions made mutual; a normal ECG excludes everything."""
    codes = frozenset(f.code for f in table)
    unknown = {e for f in table for e in f.excludes} - codes
    assert not unknown, f"exclusions name unknown findings: {sorted(unknown)}"
    out = {}
    for one in table:
        others = codes - {one.code}
        mutual = {o.code for o in table if one.code in o.excludes} | one.excludes | {NORMAL}
        out[one.code] = replace(one, excludes=others if one.code == NORMAL else frozenset(mutual & others))
    return out


FINDINGS: dict[str, Finding] = _closed(_TABLE)
"""Code -> finding, in the order of the table."""


def compatible(
    code: str, present: tuple[str, ...] | list[str], age: float, youngest: Mapping[str, float] = MappingProxyType({})
) -> bool:
    """Whether `code` can join the findings already present in a person of this age in years.

    youngest: finding -> years from which it occurs, where these are others than the table's.
    """
    one = FINDINGS[code]
    return age >= youngest.get(code, one.youngest) and code not in present and not one.excludes.intersection(present)
