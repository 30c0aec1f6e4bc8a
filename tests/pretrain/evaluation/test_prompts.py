"""Prompt sets are complete, versioned data; a mistake in one is told with all the others."""

from __future__ import annotations

import importlib.util

import pytest

from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.evaluation.prompts import PROMPTS, load_prompts

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

    assert set(load_prompts("virtual-findings-v1").codes) == set(FINDINGS)


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


def test_the_digest_changes_with_any_word_and_not_with_the_file_name(tmp_path):
    text = "name: mine\nversion: 1\nlabel_set: finding\nstyle: own\nclasses:\n  A: {name: Ay, prompts: [alpha]}\n"
    for name, content in {"a": text, "b": text, "c": text.replace("alpha", "beta")}.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    a, b, c = (load_prompts(tmp_path / f"{name}.yaml").digest for name in "abc")
    assert a == b != c


def test_a_subset_keeps_the_order_of_the_set_and_refuses_unknown_codes():
    prompts = load_prompts("ptb-xl-super-v1")
    assert prompts.only(["HYP", "NORM"]).codes == ["NORM", "HYP"]
    with pytest.raises(UsageError, match=r"no class XYZ(.|\n)*choose from: NORM, MI"):
        prompts.only(["XYZ"])
