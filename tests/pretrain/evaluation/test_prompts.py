"""Prompt sets are complete, versioned data; a mistake in one is told with all the others."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.sources.vocabularies import snomed
from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.evaluation.prompts import PROMPT_SETS, PROMPTS, load_prompts
from cardialign.pretrain.text.encoder import TextEncoder
from tests.support.plug_ins import install, see
from tests.support.readme import SITE, blocks

OURS = sorted(path.stem for path in PROMPTS.glob("*.yaml"))


@pytest.mark.parametrize("name", OURS)
def test_every_shipped_set_loads_and_is_named_and_versioned_like_its_file(name):
    prompts = load_prompts(name)
    assert prompts.name == name
    assert name.endswith(f"-v{prompts.version}")
    assert len(prompts.codes) == len(set(prompts.codes)) >= 5


@pytest.mark.parametrize("name", OURS)
def test_no_two_classes_of_a_set_share_a_prompt_and_no_prompt_is_a_bare_code(name):
    prompts = load_prompts(name)
    all_prompts = [p.casefold() for c in prompts.classes for p in c.prompts]
    assert len(all_prompts) == len(set(all_prompts))
    assert not {p.casefold() for c in prompts.classes for p in c.prompts} & {code.casefold() for code in prompts.codes}


@pytest.mark.skipif(
    importlib.util.find_spec("cardialign.data_shards.cohort.findings") is None,
    reason="the virtual cohort has no findings module here",
)
def test_the_virtual_set_covers_every_finding_of_the_virtual_cohort():
    from cardialign.data_shards.cohort.findings import FINDINGS

    assert set(load_prompts("virtual-findings-v1").codes) == set(load_prompts("virtual-findings-v2").codes)
    assert set(load_prompts("virtual-findings-v2").codes) == set(FINDINGS)


def test_the_ptb_xl_sets_have_the_published_number_of_classes():
    sizes = {name: len(load_prompts(f"ptb-xl-{name}-v1").codes) for name in ("super", "sub", "form", "rhythm")}
    assert sizes == {"super": 5, "sub": 23, "form": 19, "rhythm": 12}


def test_the_ptb_xl_sets_name_exactly_the_codes_of_the_published_table(real_data):
    import csv

    with open(real_data / "ptb-xl" / "scp_statements.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert set(load_prompts("ptb-xl-super-v1").codes) == {r["diagnostic_class"] for r in rows} - {""}
    assert set(load_prompts("ptb-xl-sub-v1").codes) == {r["diagnostic_subclass"] for r in rows} - {""}
    assert set(load_prompts("ptb-xl-form-v1").codes) == {r[""] for r in rows if r["form"]}
    assert set(load_prompts("ptb-xl-rhythm-v1").codes) == {r[""] for r in rows if r["rhythm"]}


def classes_of_vocabularies() -> dict[str, set[str]]:
    """Label set -> every class that a reader of this release can give."""
    return {name: {each for names in table.values() for each in names} for name, table in snomed.LABEL_SETS.items()}


@pytest.mark.parametrize(
    ("label_set", "classes"), [("challenge", 26), ("chapman", 55), ("cpsc2018", 9)], ids=["scored", "csn", "cpsc2018"]
)
def test_every_class_that_a_reader_gives_has_words_and_no_words_stand_for_an_unknown_class(label_set, classes):
    sets = [load_prompts(name) for name in OURS]
    about = [each for each in sets if each.label_set == label_set]
    assert about, f"no prompt set answers to {label_set}"
    for prompts in about:
        assert set(prompts.codes) == classes_of_vocabularies()[label_set] and len(prompts.codes) == classes


@pytest.mark.parametrize("name", [each for each in OURS if "described" in each])
def test_a_described_class_has_several_descriptions_and_is_one_of_the_plain_set(name):
    """By leads, waves and intervals: at least one description of a class names one."""
    prompts, stem = load_prompts(name), name.partition("-described")[0]
    plain = load_prompts(max(each for each in OURS if each.startswith(f"{stem}-v")))
    assert prompts.codes == plain.codes and prompts.label_set == plain.label_set
    for entry in prompts.classes:
        assert len(entry.prompts) >= 2, entry.code
        seen = re.search(
            r"\b(P|Q|R|S|T|U|QRS|PR|QT|QTc|RR|ST|V[1-6]|aV[RLF]|I+|beats?|lead|axis|per minute)\b|wave",
            " ".join(entry.prompts),
        )
        assert seen or entry.against, (entry.code, entry.prompts)


SCORED_NAMES = {
    "AF": "atrial fibrillation", "AFL": "atrial flutter", "BBB": "bundle branch block", "Brady": "bradycardia",
    "IAVB": "first degree av block", "IRBBB": "incomplete right bundle branch block", "LAD": "left axis deviation",
    "LAnFB": "left anterior fascicular block", "LBBB": "left bundle branch block", "LPR": "prolonged pr interval",
    "LQRSV": "low qrs voltages", "LQT": "prolonged qt interval", "NSR": "sinus rhythm", "SA": "sinus arrhythmia",
    "NSIVCB": "nonspecific intraventricular conduction", "PAC": "premature atrial", "PR": "pac", "QAb": "q waves",
    "PRWP": "poor r wave progression", "PVC": "premature ventricular", "RAD": "right axis deviation",
    "RBBB": "right bundle branch block", "SB": "sinus bradycardia", "STach": "sinus tachycardia",
    "TAb": "t wave abnormality", "TInv": "t wave inversion",
}  # fmt: skip
"""The published list of scored diagnoses (Reyna et al. 2021, table of the mapping), by abbreviation."""


def test_the_first_words_of_a_scored_class_are_those_of_the_published_list():
    for entry in load_prompts("challenge-v1").classes:
        assert SCORED_NAMES[entry.code] in entry.prompts[0].casefold(), (entry.code, entry.prompts[0])
        assert len(entry.prompts) >= 2


def test_an_unknown_set_names_the_known_ones():
    with pytest.raises(UsageError, match=r"no prompt set 'ptb-xl-supper'(.|\n)*ptb-xl-super-v1"):
        load_prompts("ptb-xl-supper")


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nversion: one\nlabel_set: finding\nstyle: own\ncolour: red\n"
        "classes:\n  NO: {name: Normal, prompts: [a]}\n  A: {name: X, prompts: []}\n"
    )
    with pytest.raises(UsageError) as error:
        load_prompts(path)
    message = str(error.value)
    assert "4 mistakes" in message
    for part in (
        "colour: unknown key",
        "version: must be",
        "classes.False: the code was read as bool; put it in quotes",
        "classes.A: prompts must be",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (
            "A: {name: Ay, prompts: [Flutter, fib]}, B: {name: Be, prompts: [FIB, ' flutter']}",
            "B: has the prompts of A",
        ),
        ("A: {name: Ay, prompts: [a]}, B: {name: AY, prompts: [b]}", "B: has the name of A"),
        ("A: {name: Ay, prompts: [Normal ECG], against: [normal  ECG, x]}", "A: a prompt stands in `against`, too"),
    ],
)
def test_classes_that_no_word_tells_apart_are_refused(tmp_path, classes, told):
    """Asked with the same words, two classes have one score, and the score of a prompt less itself is 0."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nversion: 1\nlabel_set: finding\nstyle: own\nclasses: {{{classes}}}\n")
    with pytest.raises(UsageError, match=told):
        load_prompts(path)
    text = path.read_text().replace("[FIB, ' flutter']", "[fib]").replace("name: AY", "name: Be")
    path.write_text(text.replace("normal  ECG, ", "").replace("{A:", "{C: {name: Ce, prompts: [fib, c]}, A:"))
    assert "C" in load_prompts(path).codes


def test_the_digest_changes_with_any_word_and_not_with_the_file_name(tmp_path):
    text = "name: mine\nversion: 1\nlabel_set: finding\nstyle: own\nclasses:\n  A: {name: Ay, prompts: [alpha]}\n"
    for name, content in {"a": text, "b": text, "c": text.replace("alpha", "beta")}.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    a, b, c = (load_prompts(tmp_path / f"{name}.yaml").digest for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("classes: " + "[" * 3000, "too deep"),
        ("name: a\nname: b\n", "stands twice"),
        ("name: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        (
            "a0: &a0 [x, x, x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
            + "style: *a8\n",
            "more than 100000 values",
        ),
        ("name: x\nversion: true\nlabel_set: y\nstyle: z\nclasses: {A: {name: a, prompts: [b]}}\n", "version: must be"),
        ('classes: {"A\\e[2J": {name: a, prompts: [b]}}\n', "cannot be printed"),
        ('classes: {A: {name: a, prompts: ["b\\nc"]}}\n', "on one line"),
    ],
    ids=["deep", "twice", "tag", "aliases", "no number", "escape", "two lines"],
)
def test_a_hostile_file_is_answered_in_a_sentence(tmp_path, content, told):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UsageError) as caught:
        load_prompts(tmp_path / "mine.yaml")
    assert told in str(caught.value) and len(str(caught.value)) < 2000


def test_a_name_that_no_file_can_have_and_bytes_that_are_no_text_are_answered(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\xfe")
    for given in ("x" * 5000, tmp_path / "mine.yaml", tmp_path, "a\0b"):
        with pytest.raises(UsageError):
            load_prompts(given)


RELEASED = {
    "cpsc2018-v1": "2548ceed268d398d",
    "csn-chapman-v1": "6f40058414065785",
    "ptb-xl-form-v1": "64a317034ca314aa",
    "ptb-xl-rhythm-v1": "643ad01c2ef67ec4",
    "ptb-xl-sub-v1": "bdc3476aa6f31d27",
    "ptb-xl-super-v1": "262ceb7994b1a71c",
    "virtual-findings-v1": "d19e933900a18c1f",
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_set_keeps_its_bytes(name):
    assert hashlib.sha256((PROMPTS / f"{name}.yaml").read_bytes()).hexdigest()[:16] == RELEASED[name]


NEWEST = sorted({name.rpartition("-v")[0] for name in OURS})
NEWEST = [max((each for each in OURS if each.rpartition("-v")[0] == stem), key=OURS.index) for stem in NEWEST]
FORM_OF_A_REPORT = re.compile(r"\b(ecg|ekg|electrocardiogram|tracing|report)\b|\. ", re.IGNORECASE)
DENIAL = re.compile(r"\b(no|not|without|absent|absence of|unremarkable|rather than)\b", re.IGNORECASE)
HEDGE = re.compile(r"\b(possible|probable|consider|cannot|suggest\w*)\b", re.IGNORECASE)
UMBRELLA = re.compile(
    r"disturbance|disorder|^(hypertrophy|abnormality|arrhythmia|conduction block|av block)$", re.IGNORECASE
)


@pytest.mark.parametrize("name", NEWEST)
def test_a_prompt_says_one_finding_in_positive_words(name):
    for entry in load_prompts(name).classes:
        if entry.against:  # whatever form both have falls out, if they have the same
            assert [prompt.replace("Normal", "Abnormal") for prompt in entry.prompts] == list(entry.against)
        for prompt in () if entry.against else entry.prompts:
            for pattern in (FORM_OF_A_REPORT, DENIAL, HEDGE, UMBRELLA):
                assert not pattern.search(prompt), f"{entry.code}: {prompt}"


def units(texts: list[str]) -> np.ndarray:
    """What the shipped text encoder makes of each text, as unit vectors."""
    global _encoder
    _encoder = _encoder or TextEncoder(TextConfig())
    embedded = _encoder.embed(texts)
    return embedded / np.linalg.norm(embedded, axis=1, keepdims=True)


_encoder: TextEncoder | None = None
FORM = "Sinus rhythm. {}. Abnormal ECG"
"""A whole report around a finding."""
EMPTY = ["Sinus rhythm. Finding. Abnormal ECG", "Sinus rhythm. Abnormal ECG"]
"""The same with a word that says nothing, and with none."""
SAID = {
    "Normal ECG": ["Normal"],
    "Conduction disturbance": [
        "Left bundle branch block",
        "Right bundle branch block",
        "Left anterior fascicular block",
    ],
    "Hypertrophy": ["Left ventricular hypertrophy", "Left atrial enlargement"],
}
"""Statements that report a class whose name is an umbrella or itself half a form."""


def worth(name: str) -> dict[str, tuple[float, float, float]]:
    """Per code: cosine of the class with its finding said bare, with an empty form, and the share of the other
    classes' whole reports that its own bare finding outranks.

    Finding and form are set against each other: who follows the form ranks any report above the bare finding.
    """
    classes = load_prompts(name).classes
    said = [SAID.get(entry.name, [entry.name]) for entry in classes]
    whole = [units([FORM.format(text) for text in texts]) for texts in said]
    empty, found = units(EMPTY), {}
    for k, entry in enumerate(classes):
        words = units(list(entry.prompts)).mean(axis=0)
        words -= units(list(entry.against)).mean(axis=0) if entry.against else 0
        words /= np.linalg.norm(words)
        own = float((units(said[k]) @ words).mean())
        others = np.concatenate([reports @ words for j, reports in enumerate(whole) if j != k])
        found[entry.code] = own, float((empty @ words).max()), float((own > others).mean())
    return found


LARGE = [
    pytest.param(each, marks=pytest.mark.slow if each.startswith(("csn", "challenge")) or "described" in each else ())
    for each in NEWEST
]
"""With 55 and 26 classes, or long sentences, they take as long as all others together."""


@pytest.mark.parametrize("name", LARGE)
def test_the_form_of_a_report_alone_is_worth_less_than_the_finding(name):
    for code, (finding, form, share) in worth(name).items():
        assert form < finding and share >= 0.75, (code, finding, form, share)


@pytest.mark.parametrize("name", ["cpsc2018-v1", "ptb-xl-super-v1", "virtual-findings-v1"])
def test_the_first_words_for_a_normal_ecg_followed_the_form(name):
    values = worth(name)
    finding, form, share = values["Normal" if name.startswith("cpsc") else "NORM"]
    assert form > 2 * finding and share == 0


@pytest.mark.parametrize("name", LARGE)
def test_no_two_findings_have_words_that_are_nearly_the_same(name):
    """0.98 of the centred cosine: what "QRS axis shifted to the right" and "... to the left" were."""
    assert closest(name)[0] < 0.98, closest(name)


def closest(name: str) -> tuple[float, str, str]:
    classes = load_prompts(name).classes
    texts = [prompt for entry in classes for prompt in entry.prompts]
    of = np.array([k for k, entry in enumerate(classes) for _ in entry.prompts])
    values = units(texts)
    values -= values.mean(axis=0)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    alike = np.where(of[:, None] == of, -1, values @ values.T)
    i, j = np.unravel_index(alike.argmax(), alike.shape)
    return float(alike[i, j]), texts[i], texts[j]


def test_the_first_words_of_two_axis_deviations_were_nearly_the_same():
    assert closest("csn-chapman-v1")[0] > 0.98


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ("A: {name: Ay, prompts: [Normal ECG], against: ['normal  ECG.', x]}", "A: a prompt stands in `against`, too"),
        ("A: {name: Ay, prompts: [AF, 'af. ']}", "A: a prompt is listed twice"),
        ("A: {name: Ay, prompts: ['LVH?']}, B: {name: Be, prompts: ['LVH!']}", ""),
    ],
)
def test_a_full_stop_is_no_other_finding_and_a_question_mark_may_be(tmp_path, classes, told):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nversion: 1\nlabel_set: finding\nstyle: own\nclasses: {{{classes}}}\n")
    if not told:
        assert list(load_prompts(path).codes) == ["A", "B"]
        return
    with pytest.raises(UsageError, match=told):
        load_prompts(path)


def test_a_file_cannot_give_its_figures_the_name_of_a_shipped_set(tmp_path):
    [shipped] = [path for path in PROMPTS.iterdir() if path.stem == "ptb-xl-super-v1"]
    copy = shutil.copy(shipped, tmp_path / "mine.yaml")
    assert load_prompts(copy).digest == load_prompts("ptb-xl-super-v1").digest
    copy.write_text(copy.read_text() + '  OTHER: {name: Other, prompts: ["Something else"]}\n')
    with pytest.raises(UsageError, match=r"has the name of another one, ptb-xl-super-v1(.|\n)*a name of its own"):
        load_prompts(copy)
    copy.write_text(copy.read_text().replace("name: ptb-xl-super-v1", "name: mine"))
    assert "OTHER" in load_prompts(copy).codes


def test_what_stands_against_a_class_is_part_of_the_digest_and_checked(tmp_path):
    text = "name: m\nversion: 1\nlabel_set: l\nstyle: s\n"
    text += "classes: {A: {name: Ay, prompts: [normal], against: [abnormal]}}\n"
    path = tmp_path / "m.yaml"
    path.write_text(text)
    paired = load_prompts(path)
    assert paired.classes[0].against == ("abnormal",)
    path.write_text(text.replace(", against: [abnormal]", ""))
    assert load_prompts(path).digest != paired.digest
    path.write_text(text.replace("[abnormal]", "abnormal"))
    with pytest.raises(UsageError, match="against must be a non-empty list"):
        load_prompts(path)


def test_a_subset_keeps_the_order_of_the_set_and_refuses_unknown_codes():
    prompts = load_prompts("ptb-xl-super-v1")
    assert prompts.only(["HYP", "NORM"]).codes == ["NORM", "HYP"]
    with pytest.raises(UsageError, match=r"no class XYZ(.|\n)*choose from: NORM, MI"):
        prompts.only(["XYZ"])


def test_how_prompts_are_combined_is_a_word_of_the_set_and_of_its_digest(tmp_path):
    path, text = tmp_path / "mine.yaml", (PROMPTS / "cpsc2018-v2.yaml").read_text()
    plain = load_prompts("cpsc2018-v2")
    path.write_text(f"combine: mean\n{text}")
    assert load_prompts(path).digest == plain.digest, "the mean is what it always was"
    path.write_text(f"combine: median\n{text}")
    with pytest.raises(UsageError, match=r"combine: must be one of mean, max, got 'median'"):
        load_prompts(path)
    names = "name: m\nversion: 1\nlabel_set: l\nstyle: s\ncombine: max\nclasses:\n"
    path.write_text(names + "  A: {name: A, prompts: [a, b]}\n")
    assert load_prompts(path).combine == load_prompts(path).only(["A"]).combine == "max"
    path.write_text(names + "  A: {name: A, prompts: [a], against: [b]}\n")
    with pytest.raises(UsageError, match="combine: max takes no `against`, which A has"):
        load_prompts(path)


def test_a_set_of_another_package_is_read_by_its_name_and_its_name_is_taken(tmp_path, monkeypatch):
    head = "name: clinic-v1\nversion: 1\nlabel_set: finding\nstyle: own\n"
    text = head + "classes: {A: {name: Ay, prompts: [Normal ECG]}}\n"
    (tmp_path / "theirs.yaml").write_text(text)
    code = f"PATH = {str(tmp_path / 'theirs.yaml')!r}\n"
    install(tmp_path / "site", "clinic_prompts", code, {"clinic-v1": "clinic_prompts:PATH"}, "cardialign.prompts")
    see(tmp_path / "site", PROMPT_SETS, monkeypatch)
    assert load_prompts("clinic-v1").codes == load_prompts(tmp_path / "theirs.yaml").codes == ["A"]
    (tmp_path / "mine.yaml").write_text(text.replace("Normal ECG", "Sinus rhythm"))
    with pytest.raises(UsageError, match="has the name of another one, clinic-v1"):
        load_prompts(tmp_path / "mine.yaml")


def test_the_words_of_ones_own_in_the_guide_are_a_prompt_set(tmp_path: Path) -> None:
    (text,) = [block for block in blocks("yaml", f"{SITE}/guides/evaluation.md") if "label_set: labels" in block]
    (tmp_path / "my-words.yaml").write_text(text)
    own = load_prompts(str(tmp_path / "my-words.yaml"))
    assert own.label_set == "labels" and [each.code for each in own.classes] == ["AFIB", "LBBB"]
