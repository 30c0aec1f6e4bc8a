"""What the language model is asked, and what counts as an answer. A change of either is a new version."""

from __future__ import annotations

import re

from cardialign.data_shards.files import parse_json
from cardialign.data_shards.report_text import clean_statements

PROMPT_VERSION = 1
"""Part of the key of every stored answer: answers to other words are no answers to these."""
MOST_FEATURES, MOST_WORDS = 15, 12

_TASK = (
    "You read reports of 12-lead ECGs. For the report that you are given, name the features of the waveform that such "
    "an ECG most likely shows and that the report does not mention: waves, segments, intervals, axes, voltages, each "
    "with its leads where that matters. Describe what is seen on the paper. Do not name diagnoses, do not repeat the "
    "report, and do not comment. Answer with one JSON list of strings and nothing else, at most "
    f"{MOST_FEATURES} entries of at most {MOST_WORDS} words each. Example: "
    '["P waves absent", "Irregular RR intervals"]. If nothing can be said, answer [].'
)
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)


def messages(report: str) -> list[dict[str, str]]:
    """The chat about one report."""
    return [{"role": "system", "content": _TASK}, {"role": "user", "content": f"Report: {report}"}]


def features_of(answer: str) -> list[str] | None:
    """The features in an answer, cleaned as statements of reports are, each once (letter case aside); None where it is
    no JSON list of strings.

    A thought in front (`<think>`) and a fence of code around the list are taken off; of anything else around it the
    answer is prose. Entries of more than MOST_WORDS words are left out, and so is what follows MOST_FEATURES of them.
    """
    text = _THOUGHT.sub("", answer).strip()
    fenced = _FENCE.match(text)
    try:
        values = parse_json(fenced[1] if fenced else text)
    except ValueError:
        return None
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        return None
    found: dict[str, str] = {}
    for feature in clean_statements(each for each in values if each.isprintable()):
        if len(feature.split()) <= MOST_WORDS:
            found.setdefault(feature.casefold(), feature)
    return list(found.values())[:MOST_FEATURES]
