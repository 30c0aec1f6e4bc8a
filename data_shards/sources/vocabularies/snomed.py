"""SNOMED CT codes of ECG findings: the codes that the PhysioNet Challenges of 2020 and 2021 and Chapman-Shaoxing-Ningbo
use, with the Challenge's abbreviations and a statement in English for each, so that sets without reports have text.

Codes and abbreviations are those of the Challenge's mapping tables (Perez Alday et al. 2020, Reyna et al. 2021) and of
Chapman-Shaoxing-Ningbo's table of condition names (Zheng et al. 2020). The wording of the statements is ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from cardialign.data_shards.sources.shared.ids import plain_id

_FINDINGS = """
164889003 AF atrial fibrillation
164890007 AFL atrial flutter
6374002 BBB bundle branch block
426627000 Brady bradycardia
733534002 CLBBB complete left bundle branch block
713427006 CRBBB complete right bundle branch block
270492004 IAVB first degree AV block
713426002 IRBBB incomplete right bundle branch block
39732003 LAD left axis deviation
445118002 LAnFB left anterior fascicular block
164909002 LBBB left bundle branch block
251146004 LQRSV low QRS voltages
698252002 NSIVCB nonspecific intraventricular conduction block
426783006 NSR sinus rhythm
284470004 PAC premature atrial complexes
10370003 PR pacing rhythm
365413008 PRWP poor R wave progression
427172004 PVC premature ventricular complexes
164947007 LPR prolonged PR interval
111975006 LQT prolonged QT interval
164917005 QAb abnormal Q waves
47665007 RAD right axis deviation
59118001 RBBB right bundle branch block
427393009 SA sinus arrhythmia
426177001 SB sinus bradycardia
427084000 STach sinus tachycardia
63593006 SVPB supraventricular premature beats
164934002 TAb T wave abnormality
59931005 TInv T wave inversion
17338001 VPB ventricular premature beats
233892002 AAR accelerated atrial escape rhythm
164951009 abQRS abnormal QRS
251187003 AED atrial escape beat
61277005 AIVR accelerated idioventricular rhythm
426664006 AJR accelerated junctional rhythm
251139008 ALR suspected reversal of the arm leads
57054005 AMI acute myocardial infarction
413444003 AMIs acute myocardial ischemia
426434006 AnMIs anterior ischemia
54329005 AnMI anterior myocardial infarction
251173003 AB atrial bigeminy
195080001 AFAFL atrial fibrillation and flutter
195126007 AH atrial hypertrophy
251268003 AP atrial pacing pattern
106068003 ARH atrial rhythm
713422000 ATach atrial tachycardia
233917008 AVB AV block
50799005 AVD AV dissociation
29320008 AVJR AV junctional rhythm
251166008 AVNRT AV nodal reentrant tachycardia
233896004 AVNRT AV nodal reentrant tachycardia
233897008 AVRT AV reentrant tachycardia
251170000 BPAC blocked premature atrial complex
418818005 BRU Brugada pattern
74615001 BTS bradycardia-tachycardia syndrome
426749004 CAF chronic atrial fibrillation
251199005 CCR counterclockwise rotation
61721007 CVCL/CCVCL clockwise or counterclockwise vectorcardiographic loop
698247007 CD cardiac dysrhythmia
27885002 CHB complete AV block
204384007 CIAHB congenital incomplete AV block
53741008 CHD coronary heart disease
413844008 CMI chronic myocardial ischemia
251198002 CR clockwise rotation
82226007 DIB diffuse intraventricular block
428417006 ERe early repolarization
13640000 FB fusion beats
164942001 FQRS fragmented QRS
84114007 HF heart failure
368009 HVD heart valve disorder
251259000 HTV high T wave voltage
251200008 ICA indeterminate axis
195042002 IIAVB second degree AV block
426183003 IIAVBII second degree AV block, Mobitz type II
28189009 IIAVBII second degree AV block, Mobitz type II
425419005 IIs inferior ischemia
251120003 ILBBB incomplete left bundle branch block
704997005 ISTD inferior ST depression
49260003 IR idioventricular rhythm
426995002 JE junctional escape
251164006 JPC junctional premature complex
426648003 JTach junctional tachycardia
253352002 LAA left atrial abnormality
67741000119109 LAE left atrial enlargement
446813000 LAH left atrial hypertrophy
425623009 LIs lateral ischemia
445211001 LPFB left posterior fascicular block
251147008 LQRSVL low QRS voltages in limb leads
251148003 LQRSVC low QRS voltages in chest leads
164873001 LVH left ventricular hypertrophy
55827005 LVHV left ventricular high voltage
370365005 LVS left ventricular strain
164865005 MI myocardial infarction
164861001 MIs myocardial ischemia
54016002 MoI second degree AV block, Mobitz type I
428750005 NSSTTA nonspecific ST-T abnormality
164867002 OldMI old myocardial infarction
282825002 PAF paroxysmal atrial fibrillation
251205003 PPW prolonged P wave
67198005 PSVT paroxysmal supraventricular tachycardia
425856008 PVT paroxysmal ventricular tachycardia
164912004 PWC P wave change
253339007 RAAb right atrial abnormality
164921003 RAb abnormal R wave
446358003 RAH right atrial hypertrophy
67751000119106 RAHV right atrial high voltage
314208002 RAF rapid atrial fibrillation
89792004 RVH right ventricular hypertrophy
17366009 SAAWR sinus to atrial wandering rhythm
65778007 SAB sinoatrial block
5609005 SARR sinus arrest
60423000 SND sinus node dysfunction
49578007 SPRI short PR interval
77867006 SQT short QT interval
55930002 STC ST changes
429622005 STD ST depression
164931005 STE ST elevation
164930006 STIAb ST interval abnormality
251168009 SVB supraventricular bigeminy
426761007 SVT supraventricular tachycardia
266257000 TIA transient ischemic attack
251223006 TPW tall P wave
164937009 UAb abnormal U wave
11157007 VBig ventricular bigeminy
164884008 VEB ventricular ectopic beats
75532003 VEsB ventricular escape beat
81898007 VEsR ventricular escape rhythm
164896001 VF ventricular fibrillation
111288001 VFL ventricular flutter
266249003 VH ventricular hypertrophy
195060002 VPEx ventricular preexcitation
251266004 VPP ventricular pacing pattern
251182009 VPVC paired ventricular premature complexes
164895002 VTach ventricular tachycardia
251180001 VTrig ventricular trigeminy
195101003 WAP wandering atrial pacemaker
74390002 WPW Wolff-Parkinson-White pattern
"""

_ROWS = [line.split(" ", 2) for line in _FINDINGS.strip().splitlines()]
ABBREVIATIONS: dict[str, str] = {code: abbreviation for code, abbreviation, _ in _ROWS}
"""SNOMED CT code -> the Challenge's abbreviation."""
STATEMENTS: dict[str, str] = {code: text[0].upper() + text[1:] for code, _, text in _ROWS}
"""SNOMED CT code -> report statement in English."""

_SAME = """
164909002 733534002
59118001 713427006
284470004 63593006
17338001 427172004 164884008
28189009 426183003
233896004 251166008
195101003 17366009
251173003 251168009
446358003 253339007 67751000119106
67741000119109 446813000 253352002
"""
"""Codes of one finding. The first four lines are the pairs that the Challenge scores as one diagnosis (ventricular
ectopics, the code of CPSC2018's and PTB-XL's premature ventricular complexes, beside the third); the others are a
cardiologist's reading: two codes of Mobitz II, of AV nodal reentry, of the wandering pacemaker, of atrial bigeminy, of
an enlarged right and left atrium."""

_KINDS = """
164889003: 282825002 426749004 314208002 195080001
164890007: 195080001
164865005: 57054005 54329005 164867002
233917008: 270492004 195042002 27885002 204384007
195042002: 54016002 28189009
426761007: 67198005 233896004 233897008 713422000 426648003
284470004: 251173003 251170000
17338001: 11157007 251180001 251182009
195060002: 74390002
429622005: 704997005
164934002: 59931005 251259000
164912004: 251205003 251223006
10370003: 251268003 251266004
"""
"""Finding: its kinds. Who has ventricular bigeminy has ventricular premature beats; a Mobitz block is a second degree
block, and that an AV block; "fibrillation and flutter" is both, and a junctional tachycardia is supraventricular (ACC,
AHA and HRS 2015). A voltage criterion is no hypertrophy, and an incomplete bundle branch block is none of the
blocks without that word: the Challenge scores them apart, and so do we."""


def _relatives() -> dict[str, tuple[str, ...]]:
    """Code -> itself, the other codes of its finding, then those of every finding that it is a kind of."""
    same = {code: tuple(line.split()) for line in _SAME.split("\n") for code in line.split()}
    wider: dict[str, list[str]] = {}
    for line in filter(None, _KINDS.split("\n")):
        finding, _, kinds = line.partition(": ")
        for kind in kinds.split():
            wider.setdefault(kind, []).append(finding)
    found = {}
    for code in ABBREVIATIONS:
        reached = [code]
        for each in reached:  # grows while it is walked
            next_ones = (*same.get(each, ()), *wider.get(each, ()))
            reached += [other for other in next_ones if other not in reached]
        found[code] = tuple(reached)
    return found


_RELATIVES = _relatives()


def _closed(own: dict[str, str], *, one_each: bool = False) -> dict[str, tuple[str, ...]]:
    """A table of codes and classes, closed: code -> the classes of its finding and of every finding that it is a kind
    of, its own first. one_each: a code that stands in `own` keeps that class alone."""
    closed = {
        code: tuple(dict.fromkeys(own[other] for other in relatives if other in own))
        for code, relatives in _RELATIVES.items()
    }
    if one_each:
        closed |= {code: (name,) for code, name in own.items()}
    return {code: names for code, names in closed.items() if names}


_SCORED = (
    "AF AFL BBB Brady CLBBB CRBBB IAVB IRBBB LAD LAnFB LBBB LQRSV NSIVCB NSR PAC PR PRWP PVC LPR LQT QAb RAD RBBB SA "
    "SB STach SVPB TAb TInv VPB"
)
_SAME_SCORE = {"CLBBB": "LBBB", "CRBBB": "RBBB", "SVPB": "PAC", "VPB": "PVC"}
SCORED = _closed({c: _SAME_SCORE.get(a, a) for c, a in ABBREVIATIONS.items() if a in _SCORED.split()}, one_each=True)
"""Code -> classes that the Challenge of 2021 scores; the four pairs that it scores as one diagnosis are one class here
(26 classes). A scored code has the one class that the Challenge gives it. An unscored one that says the same, or is a
kind of it (ventricular trigeminy, paroxysmal atrial fibrillation), has that class too: no negative of it."""

_CHAPMAN = """
270492004=1AVB 195042002=2AVB 54016002=2AVB1 28189009=2AVB2 27885002=3AVB 251173003=ABI 39732003=ALS
284470004=APB 164917005=AQW 47665007=ARS 233917008=AVB 251199005=CCR 251198002=CR 428417006=ERV 164942001=FQRS
698252002=IDC 426995002=JEB 251164006=JPT 164909002=LBBB 164873001=LVH 251146004=LVQRSAL 251148003=LVQRSCL
251147008=LVQRSLL 164865005=MI 164947007=PRIE 164912004=PWC 111975006=QTIE 446358003=RAH 59118001=RBBB 89792004=RVH
429622005=STDD 164930006=STE 428750005=STTC 164931005=STTU 164934002=TWC 59931005=TWO 164937009=UW 11157007=VB
75532003=VEB 13640000=VFW 17338001=VPB 195060002=VPE 251180001=VET 74390002=WPW 426177001=SB 426783006=SR 164889003=AFIB
427084000=ST 164890007=AF 427393009=SA 426761007=SVT 713422000=AT 233896004=AVNRT 233897008=AVRT 195101003=SAAWR
"""

CHAPMAN = _closed(dict(pair.split("=") for pair in _CHAPMAN.split()))
"""Code -> acronyms of Chapman-Shaoxing-Ningbo (there AF is atrial flutter and AFIB atrial fibrillation).

Its table knows one code of a finding where its records use several; here every code of the finding, and of a kind of
it, has the acronym. Where the table gives one code to several conditions, the first acronym stands for all of them.
What is no finding of the table (a left anterior fascicular block) has none.
"""

_CPSC2018 = {
    "426783006": "Normal",
    "164889003": "AF",
    "270492004": "I-AVB",
    "164909002": "LBBB",
    "59118001": "RBBB",
    "284470004": "PAC",
    "164884008": "PVC",
    "429622005": "STD",
    "164931005": "STE",
}
"""Class by the code that the Challenge gives to CPSC2018's records."""
CPSC2018 = _closed(_CPSC2018)
"""Code -> classes of CPSC2018 (nine)."""
CPSC2018_CLASSES: tuple[str, ...] = tuple(_CPSC2018.values())
"""In the order of the numbers 1..9 in CPSC2018's REFERENCE.csv."""

LABEL_SETS: dict[str, dict[str, tuple[str, ...]]] = {"challenge": SCORED, "chapman": CHAPMAN, "cpsc2018": CPSC2018}
"""Label set -> the table that makes it from the codes of a record."""

_OPEN = """
55930002: 429622005 164931005
164930006: 429622005 164931005
428750005: 429622005 164934002 59931005
164934002: 59931005
233917008: 270492004 195042002 27885002 54016002 28189009
195042002: 54016002 28189009
6374002: 164909002 59118001 713426002 698252002
82226007: 698252002 164909002 59118001
426761007: 233896004 233897008 713422000
63593006: 251164006
55827005: 164873001
266249003: 164873001 89792004
195126007: 446358003 67741000119109
251146004: 251147008 251148003
"""
"""Code: findings that it neither states nor excludes, a cardiologist's reading. "ST changes" are elevation or
depression; high voltage is a criterion of hypertrophy, not its absence; "AV block" does not say of which degree; a
diffuse intraventricular block may be one of a bundle. A record with the code alone is no negative of these findings."""


def left_open(label_set: str) -> dict[str, tuple[str, ...]]:
    """Code -> classes of this label set (of `LABEL_SETS`) that the code neither states nor excludes; {} for another."""
    table = LABEL_SETS.get(label_set, {})
    found = {}
    for line in filter(None, _OPEN.split("\n")):
        code, _, findings = line.partition(": ")
        names = dict.fromkeys(name for finding in findings.split() for name in table.get(finding, ()))
        found[code] = tuple(name for name in names if name not in table.get(code, ()))
    return {code: names for code, names in found.items() if names}


_NOTHING = {"", "unknown", "nan", "none", "undefined"}
_CODE_OF = {abbreviation.casefold(): code for code, abbreviation in reversed(ABBREVIATIONS.items())}
_CODE_OF_NAME = {name.casefold(): code for code, name in reversed(STATEMENTS.items())}
_CODE_BESIDE_NAME = re.compile(r"(?<!\d)\d{6,18}(?!\d)")
_NAME_AND_ABBREVIATION = re.compile(r"([^()]+?)\s*\(([^()]+)\)?")
_CPSC_CODE_OF = {name.casefold(): code for code, name in _CPSC2018.items()}


def parse_dx(text: str) -> tuple[str, ...]:
    """`164889003,59118001`, `[164889003 59118001]`, `AF, I-AVB`, `164889003 (AF)` -> codes, each once, in their order.

    An abbreviation or a name becomes its code where it has one. A code that a spreadsheet wrote (`1.64889003E8`) or
    that stands beside its name is that code. Whatever is not known stays as it is; blank, "Unknown" and "NaN" give ().
    """
    text = re.sub(r"(?<=\d)\.0\b", "", text.strip("[]{} "))
    words = (word.strip(" '\"") for word in re.split(r"[,;|]|(?<=\d)(?:\s+|\s*[/+&]\s*)(?=\d)", text))
    codes = (_one_code(word) for word in words if word.casefold() not in _NOTHING)
    return tuple(dict.fromkeys(codes))


def _one_code(word: str) -> str:
    if word.isdigit():
        return word if word in STATEMENTS else _plain(word)
    found = code_of(word)
    if found is not word:
        return found
    if both := _NAME_AND_ABBREVIATION.fullmatch(word):  # atrial fibrillation (AF)
        known = {code for part in both.groups() if (code := code_of(part)) != part}
        if len(known) == 1:
            return known.pop()
    beside = _CODE_BESIDE_NAME.findall(word)
    return beside[0] if len(beside) == 1 and beside[0] in STATEMENTS else _plain(word)


def _plain(word: str) -> str:
    """A known code in one of its other spellings, else the word as it is."""
    plain = plain_id(word).lstrip("0")
    return plain if plain in STATEMENTS else word.strip("() ")


def code_of(abbreviation: str) -> str:
    """The code of an abbreviation of CPSC2018 or of the Challenge, or of a finding's name, in any case; the word itself
    when it is none of these."""
    word = abbreviation.casefold()
    return _CPSC_CODE_OF.get(word) or _CODE_OF.get(word) or _CODE_OF_NAME.get(word) or abbreviation


def classes(codes: Iterable[str], table: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The classes of `codes` in one of the tables of `LABEL_SETS`, each once; those that the codes name come first."""
    found = [table[code] for code in codes if code in table]
    return tuple(dict.fromkeys([names[0] for names in found] + [name for names in found for name in names]))


def statements(codes: Iterable[str]) -> tuple[str, ...]:
    """Report statements of the codes that have one, each once, in their order."""
    return tuple(dict.fromkeys(STATEMENTS[code] for code in codes if code in STATEMENTS))


def unknown(codes: Iterable[str]) -> Counter[str]:
    """The codes that this table lacks, with how often they occur."""
    return Counter(code for code in codes if code not in STATEMENTS)
