"""Statements of the AHA/ACC/HRS recommendations for the interpretation of the electrocardiogram, part II (Mason et al.
2007), by number.

Data sets write them with the letter of their category (C22, D30) and modifiers (D30+Modifier308); the number alone
tells the statement. The wording is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_STATEMENTS = """
1 normal ECG
2 otherwise normal ECG
3 abnormal ECG
4 uninterpretable ECG
10 extremity electrode reversal
11 misplaced precordial electrodes
12 missing leads
13 right-sided precordial electrodes
14 artifact
15 poor-quality data
16 posterior electrodes
20 sinus rhythm
21 sinus tachycardia
22 sinus bradycardia
23 sinus arrhythmia
24 sinoatrial block, type I
25 sinoatrial block, type II
26 sinus pause or arrest
27 uncertain supraventricular rhythm
30 atrial premature complexes
31 nonconducted atrial premature complexes
32 retrograde atrial activation
33 wandering atrial pacemaker
34 ectopic atrial rhythm
35 multifocal ectopic atrial rhythm
36 junctional premature complexes
37 junctional escape complexes
38 junctional rhythm
39 accelerated junctional rhythm
40 supraventricular rhythm
41 supraventricular complexes
42 bradycardia, nonsinus
50 atrial fibrillation
51 atrial flutter
52 ectopic atrial tachycardia, unifocal
53 ectopic atrial tachycardia, multifocal
54 junctional tachycardia
55 supraventricular tachycardia
56 narrow-QRS tachycardia
60 ventricular premature complexes
61 fusion complexes
62 ventricular escape complexes
63 idioventricular rhythm
64 accelerated idioventricular rhythm
65 fascicular rhythm
66 parasystole
70 ventricular tachycardia
71 nonsustained ventricular tachycardia
72 polymorphic ventricular tachycardia
73 torsades de pointes
74 ventricular fibrillation
75 fascicular tachycardia
76 wide-QRS tachycardia
80 short PR interval
81 abnormal AV conduction ratio
82 prolonged PR interval
83 second degree AV block, Mobitz type I
84 second degree AV block, Mobitz type II
85 2:1 AV block
86 AV block, varying conduction
87 advanced AV block
88 complete AV block
89 AV dissociation
100 aberrant conduction of supraventricular beats
101 left anterior fascicular block
102 left posterior fascicular block
104 left bundle branch block
105 incomplete right bundle branch block
106 right bundle branch block
107 intraventricular conduction delay
108 ventricular preexcitation
109 right atrial conduction abnormality
110 left atrial conduction abnormality
111 epsilon wave
120 right axis deviation
121 left axis deviation
122 right superior axis
123 indeterminate axis
124 electrical alternans
125 low voltage
128 abnormal precordial R wave progression
131 abnormal P wave axis
140 left atrial enlargement
141 right atrial enlargement
142 left ventricular hypertrophy
143 right ventricular hypertrophy
144 biventricular hypertrophy
145 ST deviation
146 ST deviation with T wave change
147 T wave abnormality
148 prolonged QT interval
149 short QT interval
150 prominent U waves
151 inverted U waves
152 TU fusion
153 ST-T change due to ventricular hypertrophy
154 Osborn wave
155 early repolarization
160 anterior myocardial infarction
161 inferior myocardial infarction
162 posterior myocardial infarction
163 lateral myocardial infarction
165 anteroseptal myocardial infarction
166 extensive anterior myocardial infarction
173 myocardial infarction in the presence of left bundle branch block
174 right ventricular myocardial infarction
180 atrial-paced rhythm
181 ventricular-paced rhythm
182 ventricular pacing from outside the right ventricular apex
183 atrial-sensed ventricular-paced rhythm
184 AV dual-paced rhythm
185 failure of atrial capture
186 failure of ventricular capture
187 failure of atrial inhibition
188 failure of ventricular inhibition
189 failure of atrial pacing
190 failure of ventricular pacing
"""
AHA_STATEMENTS: dict[int, str] = {
    int(number): text[0].upper() + text[1:]
    for number, _, text in (line.partition(" ") for line in _STATEMENTS.strip().splitlines())
}
_CODE = re.compile(r"([A-Z]?(\d+))(?:\+.*)?")


_WRITTEN = re.compile(r"([A-Za-z]?)[ _-]?([0-9]{1,3})(?:\.0)?((?:\s*\+\s*[A-Za-z]*\s*[0-9]+)*)")
_MODIFIER = re.compile(r"\+\s*(?:modifier|mod|m)?\s*([0-9]+)", re.IGNORECASE)
_BETWEEN = re.compile(r"\s*[,;|/&]\s*|\s+(?=[A-Za-z][0-9])")


def parse_codes(text: str) -> tuple[str, ...]:
    """`'C22';'D30+Modifier308'`, `['c22', "L145 + Modifier 362"]`, `C22,C23` -> codes as the table writes them (C22,
    D30+Modifier308), each once, in their order; what is no code, a finding in words, stays as it is."""
    found: list[str] = []
    for item in (part.strip(" '\"") for part in text.strip("[]{} ").split(";")):
        codes = [_as_written(part.strip(" '\"")) for part in _BETWEEN.split(item)]
        several = all(codes) and len(codes) > 1
        found += [code for code in codes if code] if several else [_as_written(item) or item]
    return tuple(dict.fromkeys(item for item in found if item and item.casefold() != "null"))


def _as_written(word: str) -> str:
    """A code in the spelling of the table; "" for what is none."""
    match = _WRITTEN.fullmatch(word)
    if match is None:
        return ""
    return "".join([match[1].upper(), match[2], *(f"+Modifier{number}" for number in _MODIFIER.findall(match[3]))])


def is_code(word: str) -> bool:
    """Whether `word` has the form of an AHA code: C22, L145+Modifier362."""
    return word[:1].isalpha() and _CODE.fullmatch(word) is not None


def statement(word: str) -> str | None:
    """The statement of a code; a finding that is written out (some have no code) is its own statement; None for what
    looks like a code and is not in the table."""
    match = _CODE.fullmatch(word)
    if match is not None:
        return AHA_STATEMENTS.get(int(match[2]))
    return word[0].upper() + word[1:] if word else None


def with_plain_codes(words: Iterable[str]) -> tuple[str, ...]:
    """Codes as given, each once, and behind one with modifiers the code without: who has D30+Modifier308 has D30."""
    found: list[str] = []
    for word in words:
        match = _CODE.fullmatch(word)
        found += [word, match[1]] if match is not None and is_code(word) else [word]
    return tuple(dict.fromkeys(found))
