"""A wrong recipe is answered with every mistake at once, each with its place, its value and the way out."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any, Literal

import pytest

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.locations import url_of
from cardialign.pretrain.choices import METHODS
from cardialign.pretrain.config import RunConfig, Strict, load_config, parse_config, recipe_names
from cardialign.pretrain.config.sentences import OTHER_WORDS


def complaint(values: dict[str, Any]) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse_config(values, "my.yaml")
    assert caught.value.exit_code == 2
    return [line.removeprefix("  - ") for line in caught.value.problem.splitlines()]


def test_three_mistakes_are_reported_at_once_each_with_its_remedy() -> None:
    lines = complaint(
        {"optimizer": {"lr": -1}, "encoder": {"group_attention": "see"}, "training": {"global_bach": 64, "epochs": 1}}
    )
    assert lines == [
        "my.yaml has 3 mistakes:",
        "encoder.group_attention: 'see' is not one of se, eca; did you mean `se`?",
        "optimizer.lr: input should be greater than 0 (got -1); give a larger number",
        "training.global_bach: unknown key; did you mean `global_batch`?",
    ]


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("optimizer.learning_rate", "optimizer.lr"),
        ("learning_rate", "optimizer.lr"),
        ("training.lr", "optimizer.lr"),
        ("training.batch_size", "training.global_batch"),
        ("epochs", "training.epochs"),
        ("precision", "training.precision"),
        ("method.tau", "method.temperature"),
        ("encoder.num_layers", "encoder.depth"),
    ],
)
def test_a_word_of_other_tools_is_answered_with_ours(word: str, key: str) -> None:
    with pytest.raises(UsageError, match=f"{word}: unknown key; did you mean `{key}`"):
        load_config("cardialign-tiny", [f"{word}=1"])


def test_the_words_of_other_tools_lead_to_keys_that_are_there() -> None:
    values = load_config("cardialign-tiny").resolved()
    for key in OTHER_WORDS:
        found = values
        for part in key.split("."):
            assert part in found, key
            found = found[part]
    words = " ".join(OTHER_WORDS.values()).split()
    assert len(words) == len(set(words)), "one meaning each"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("encoder.agegate=true", "encoder.agegate: unknown key; did you mean `age_gate`?"),
        ("enocder.age_gate=true", "enocder: unknown key; did you mean `encoder`?"),
        ("model.agegate=true", "encoder.agegate: unknown key"),  # an old word of the section
        ("training.lead_masking={share: 2}", "training.lead_masking.share: input should be less"),
    ],
)
def test_a_mistake_of_a_set_is_told_as_its_own_and_not_as_the_files(tmp_path: Path, override: str, key: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("training: {global_batch: 8, epochs: 1}\n")
    with pytest.raises(UsageError) as caught:
        load_config(recipe, ["optimizer.lr=0.1", override])
    head, line = caught.value.problem.splitlines()
    assert head == f"what is set beside {recipe} has 1 mistake:"
    assert line.startswith(f"  - {key}") and line.endswith(f"(said by --set {override!r})")
    recipe.write_text("training: {global_bach: 8, epochs: 1}\n")
    with pytest.raises(UsageError) as caught:
        load_config(recipe, [override])
    head, *both = caught.value.problem.splitlines()
    assert head == f"{recipe} has 2 mistakes:" and sorted("said by --set" in each for each in both) == [False, True]


def test_a_mistake_of_a_whole_section_is_told_of_the_keys_that_it_names() -> None:
    """cardialign-tiny has epochs: steps make it wrong, and the batch, set last, does not."""
    with pytest.raises(UsageError) as caught:
        load_config("cardialign-tiny", ["training.steps=7", "training.global_batch=8"])
    head, line = caught.value.problem.splitlines()
    assert line.endswith("(said by --set 'training.steps=7')") and head.startswith("what is set beside")
    with pytest.raises(UsageError) as caught:
        load_config("cardialign-tiny", ["training.steps=7", "training.epochs=2", "training.steps=8"])
    assert caught.value.problem.endswith("(said by --set 'training.epochs=2', --set 'training.steps=8')")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("encoder.name=vit2d", "encoder: unknown encoder 'vit2d' (did you mean 'vit1d'?)"),
        ("method.name=simclrr", "method: unknown method 'simclrr' (did you mean 'simclr'?)"),
        ("optimizer.lr=fast", "optimizer.lr: is no number (got 'fast'); write a number"),
        ("training.steps=1.5", "training.steps: is no whole number (got 1.5)"),
        ("encoder.age_gate=perhaps", "encoder.age_gate: is neither true nor false (got 'perhaps')"),
    ],
)
def test_a_slip_beside_a_recipe_of_ours_is_told_of_what_was_typed_and_of_no_file(override: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("cardialign-tiny", [override])
    head, line = caught.value.problem.splitlines()
    assert head == "what is set beside recipe cardialign-tiny has 1 mistake:"
    assert line.startswith(f"  - {told}") and line.endswith(f"(said by --set {override!r})")


def test_an_innocent_set_is_not_blamed_for_what_the_file_says(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("training: {global_batch: 8, epochs: 1, steps: 5}\n")
    with pytest.raises(UsageError) as caught:
        load_config(recipe, ["training.log_every=3"])
    assert caught.value.problem.startswith(f"{recipe} has 1 mistake") and "said by" not in caught.value.problem


def test_the_small_recipes_suit_a_processor_without_bf16() -> None:
    assert {load_config(name).training.precision for name in recipe_names() if name.endswith("-tiny")} == {"fp32"}


HEADS = [
    *(("ts_tcc", ""), ("d_beta", ""), ("d_beta", "decoder_"), ("melp", ""), ("crt", "decoder_")),
    *(("st_mem", "decoder_"), ("jepa", "predictor_"), ("heartlang_quantiser", "decoder_")),
]
"""Methods with a transformer of their own, and what stands before its `width` and `heads`."""


@pytest.mark.parametrize("heads", [3, 4])
@pytest.mark.parametrize(("method", "of"), HEADS)
def test_heads_that_cannot_share_a_width_are_refused_by_the_names_of_their_keys(
    method: str, of: str, heads: int
) -> None:
    """10 is no multiple of 3 nor of 4: there is no such head."""
    text = "\n".join(complaint({"method": {"name": method, f"{of}width": 10, f"{of}heads": heads}}))
    assert f"{of}width 10" in text and f"{of}heads {heads}" in text


def test_methods_with_heads_are_all_asked() -> None:
    """Whoever adds one adds it to `HEADS`."""
    there = {
        (name, key.removesuffix("heads"))
        for name in METHODS
        for key in METHODS.find(name).Config.model_fields
        if key.endswith("heads")
    }
    assert there == set(HEADS)


def test_several_mistakes_of_one_section_are_all_named() -> None:
    groups = {"limb": ["I", "II"], "odd": ["I", "V9"], "none": []}
    lines = complaint({"encoder": {"width": 65, "lead_groups": groups}, "method": {"low": 0.9, "temperature": 3}})
    text = "\n".join(lines)
    for part in (
        "width 65 is not a multiple of heads 8",
        "unknown leads V9",
        "names I more than once",
        "empty group",
        "low 0.9",
        "temperature 3",
    ):
        assert part in text
    assert len(lines) == 7 and all("; " in line for line in lines[1:]), "every line says what to do"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"optimiser": {}}, "did you mean `optimizer`"),
        (
            {"encoder": {"patches": [{"kernel_ms": 50, "stride": 50}]}},
            "encoder.patches.0.stride: unknown key; did you mean `stride_ms`",
        ),
        ({"data": {"qqq": 1}}, "known keys here: shards, mixture, folds, normalisation"),
        ({"encoder": {"patches": [{"kernel_ms": 50, "stride_ms": 60}]}}, "set stride_ms to 50 or less"),
        ({"encoder": {"width": 12, "heads": 4}}, "is odd; choose an even head size"),
        ({"training": {"steps": 5, "epochs": 2}}, "steps 5 and epochs 2 are both set; set exactly one"),
        ({"training": {}}, "neither steps nor epochs is set"),
        ({"training": {"steps": 1.5}}, "write it without decimals"),
        ({"method": {"name": "siglop"}}, "unknown method 'siglop'"),
        ({"encoder": {"name": "resnet"}}, "unknown encoder 'resnet'"),
        ({"data": {"folds": "all"}}, "write a list"),
        ({"seed": "x"}, "write a whole number"),
        ({"seed": 10**30}, f"seed: input should be less than {2**64}"),
        ({"seed": -(10**30)}, f"seed: input should be greater than or equal to {-(2**63)}"),
        ({"method": {"name": None}}, "method: name is null; write a name, one of: astcl, barlow_twins, "),
        ({"method": {"name": 3}}, "method: name is 3; write a name"),
        ({"method": {"name": ["a"]}}, "method: name is ['a']; write a name"),
        ({"objective": {"name": {"a": 1}}}, "method: name is {'a': 1}; write a name"),
        ({"encoder": {"name": 2.5}}, "encoder: name is 2.5; write a name, one of: cardialign, "),
        ({"method": "siglip"}, "method: 'siglip' is not a section; write method: {name: siglip}"),
        ({"encoder": None}, "encoder: null is not a section; write encoder: {name: cardialign}"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: input should be a finite number (got inf)"),
        ({"optimizer": {"weight_decay": float("nan")}}, "optimizer.weight_decay: input should be a finite number"),
        ({"training": {"epochs": float("inf")}}, "training.epochs: input should be a finite number"),
        ({"data": 3}, "data: input should be a mapping (got 3); write `key: value` lines under it"),
        ({"data": {"shards": 3}}, "data.shards: input should be a path (got 3); write a folder or a URL"),
        ({"data": {1: 2}}, "data.1: keys should be strings (got 1); write the key as text"),
        ({"data": {"shards": "a", "mixture": [{"shards": "b"}]}}, "shards and mixture are both set; keep one of them"),
        (
            {"data": {"mixture": [{"shards": "a"}, {"shards": "a"}]}},
            "mixture names a twice with folds None and split None; name it once",
        ),
        (
            {"data": {"mixture": [{"shards": "a", "weight": 0}]}},
            "data.mixture.0.weight: input should be greater than 0 (got 0); give a larger",
        ),
        ({"data": {"mixture": [{"weight": 1}]}}, "data.mixture.0.shards: field required; add it"),
        (
            {"data": {"mixture": [{"shards": "a", "wieght": 1}]}},
            "data.mixture.0.wieght: unknown key; did you mean `weight`",
        ),
        (
            {"data": {"mixture": [{"shards": "a"}, {"shards": "b", "weight": 1e-6}]}},
            "raise its weight or the global batch",
        ),
    ],
)
def test_each_mistake_names_the_way_out(values: dict[str, Any], expected: str) -> None:
    assert expected in "\n".join(complaint(values))


def literals(model: type[Strict], prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], tuple[Any, ...]]]:
    found = []
    for name, field in model.model_fields.items():
        if typing.get_origin(field.annotation) is Literal:
            found.append(((*prefix, name), typing.get_args(field.annotation)))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
            found += literals(field.annotation, (*prefix, name))
    return found


@pytest.mark.parametrize(("path", "choices"), literals(RunConfig), ids=lambda value: ".".join(map(str, value)))
def test_every_choice_lists_its_values(path: tuple[str, ...], choices: tuple[Any, ...]) -> None:
    values: Any = "no-such-choice"
    for part in reversed(path):
        values = {part: values}
    line = next(line for line in complaint(values) if line.startswith(".".join(path)))
    assert all(str(choice) in line for choice in choices) and "no-such-choice" in line


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_says_its_own_name(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert parse_config(config.resolved()) == config, (
        "the resolved configuration stored with a run reads back as itself"
    )


def test_the_main_recipe_comes_in_four_sizes_and_warms_up() -> None:
    sizes = {"tiny": 64, "small": 256, "base": 384, "xl": 512}
    assert {"cardialign-demo", "cardialign-ptb-xl", *(f"cardialign-{size}" for size in sizes)} <= set(recipe_names())
    assert {size: load_config(f"cardialign-{size}").encoder.width for size in sizes} == sizes
    assert all(load_config(name).schedule.warmup_fraction > 0 for name in recipe_names())


def test_overrides_are_read_as_yaml_in_order() -> None:
    config = load_config(
        "cardialign-tiny",
        ["optimizer.lr=1e-3", "training.steps=7", "training.epochs=null", "data.folds=[1, 2]", "seed=1", "seed=2"],
    )
    assert (
        config.optimizer.lr == 1e-3 and config.training.steps == 7 and config.data.folds == (1, 2) and config.seed == 2
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [("optimizer.lr", "is not KEY=VALUE"), ("name.x=1", "is not a section"), ("optimizer.l=1", "did you mean `lr`")],
)
def test_wrong_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config("cardialign-tiny", [override])


def test_seeds_are_what_torch_takes() -> None:
    assert [parse_config({"seed": seed}).seed for seed in (-1, -(2**63), 2**64 - 1)] == [-1, -(2**63), 2**64 - 1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method={", r"line 1, column 2: .*expected the node content"),
        ("method=[", r"line 1, column 2: .*expected the node content"),
        ("training.steps=\t3", r"found character '\\t' that cannot start any token"),
        ("name=!!python/name:os.system x", "could not determine a constructor for the tag"),
        ("name=a\x07", "character 7 at position 1: special characters are not allowed"),
        ("name=2020-13-45", r"'2020-13-45' cannot be read \(month must be in 1\.\.12\)"),
        ("name=!!timestamp x", "'x' cannot be read"),
        ("seed=" + "9" * 5000, r"\.\.\. \(5005 characters\) is not valid YAML: .* cannot be read"),
        ("name=" + "[" * 5000, "stand too deep in one another"),
        ("optimizer={lr: 1, eps: 2, lr: 3}", "line 1, column 17: key 'lr' stands twice"),
    ],
    ids=range(10),
)
def test_overrides_that_yaml_cannot_read_are_refused_with_their_text(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_config("cardialign-tiny", [override])
    assert caught.value.problem.startswith(f"--set {override[:20]!r}"[:-1].replace("\x07", "\\x07"))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nname: 2020-13-45\n", r"line 2, column 7: '2020-13-45' cannot be read"),
        (b"seed: 1\ndata: {}\nseed: 2\n", "line 3, column 1: key 'seed' stands twice, keep one"),
        (b"name: \xff\n", r"is not UTF-8 text \(byte 6\)"),
        (b"[]\n", "does not hold a mapping"),
        (b"false\n", "does not hold a mapping"),
        (b"? [a]\n: b\n", "found unhashable key"),
        (b"seed: 1\n---\nseed: 2\n", "expected a single document"),
    ],
)
def test_recipes_that_cannot_be_read_are_named_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_bytes(content)
    with pytest.raises(UsageError, match=rf"mine\.yaml .*{message}") as caught:
        load_config(recipe)
    assert caught.value.remedy


def test_an_empty_recipe_is_every_default_and_a_merged_key_is_not_twice(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("# nothing yet\n")
    assert load_config(recipe) == RunConfig()
    recipe.write_text("optimizer: {<<: {lr: 1, eps: 0.1}, lr: 2}\n")
    assert (load_config(recipe).optimizer.lr, load_config(recipe).optimizer.eps) == (2, 0.1)


@pytest.mark.parametrize("recipe", ["a" * 5000, "a\0b", "."])
def test_a_recipe_that_can_be_no_file_is_not_there(recipe: str) -> None:
    with pytest.raises(UsageError, match="no recipe '") as caught:
        load_config(recipe)
    assert len(caught.value.problem) < 250


@pytest.mark.parametrize(
    ("override", "way"),
    [
        ("method.name=siglip", "--set 'method={name: siglip}'"),
        ("method=siglip", "--set 'method={name: siglip}'"),
        ("encoder.name=resnet1d", "--set 'encoder={name: resnet1d}'"),
        ("objective.name=siglip", "--set 'method={name: siglip}'"),
    ],
)
def test_who_changes_the_method_alone_is_told_to_give_the_whole_section(override: str, way: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("cardialign-tiny", [override])
    assert way in caught.value.remedy and "whole section" in caught.value.remedy
    section, _, value = way.removeprefix("--set ").strip("'").partition("=")
    assert f"name: {getattr(load_config('cardialign-tiny', [f'{section}={value}']), section).name}" in value


def test_a_mapping_changes_the_keys_that_it_names_and_no_others_of_its_section() -> None:
    plain = load_config("cardialign-demo", ["optimizer.lr=0.5", "training.epochs=3"])
    merged = load_config("cardialign-demo", ["optimizer.lr=0.5", "training.epochs=3", "optimizer={weight_decay: 0.25}"])
    assert merged.optimizer == plain.optimizer.model_copy(update={"weight_decay": 0.25})
    changed = load_config("cardialign-demo", ["model={embedding_dim: 64}"])
    usual = load_config("cardialign-demo")
    assert changed.encoder == usual.encoder.model_copy(update={"embedding_dim": 64})
    whole = load_config("cardialign-demo", ["encoder={name: resnet1d}"])
    assert whole.encoder.name == "resnet1d" and whole.encoder != usual.encoder
    assert load_config("cardialign-demo", ["optimizer.lr=0.5", "optimizer={}"]).optimizer == type(usual.optimizer)()


@pytest.mark.parametrize(
    ("override", "key"),
    [("text.encoder=''", "text.encoder"), ("data.shards=''", "data.shards"), ("init_from=''", "init_from"),
     ("init_from=' '", "init_from"), ("data.mixture=[{shards: ''}]", "data.mixture.0.shards")],
)  # fmt: skip
def test_an_empty_path_is_refused_by_its_key_and_is_never_the_folder_where_we_are(override: str, key: str) -> None:
    with pytest.raises(UsageError, match="names nothing; write a path") as caught:
        load_config("cardialign-tiny", [override])
    assert f"- {key}: '" in caught.value.problem
    section, _, word = key.partition(".")
    with pytest.raises(UsageError, match="names nothing"):
        parse_config(
            {section: {word: ""} if word and "." not in word else ""}
            if "mixture" not in key
            else {"data": {"mixture": [{"shards": ""}]}}
        )


@pytest.mark.parametrize("override", ["method.lo=1", "method.name=siglop", "optimizer.l=1"])
def test_other_mistakes_do_not_speak_of_whole_sections(override: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("cardialign-tiny", [override])
    assert "whole section" not in caught.value.remedy


@pytest.mark.parametrize("key", ["init_from", "data.shards"])
@pytest.mark.parametrize(
    ("folder", "message"), [("~nobody-here/set", "no such user's home"), ('"a\\0b"', "holds a NUL character")]
)
def test_what_can_be_no_path_is_refused(key: str, folder: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config("cardialign-tiny", [f"{key}={folder}"])


def test_old_words_are_told_where_they_stand(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("objective: {lo: 0.2}\n")
    with pytest.raises(UsageError, match="objective is called method now"):
        load_config(recipe)
    with pytest.raises(UsageError, match="model is called encoder now"):
        load_config("cardialign-tiny", ["model.wdith=32"])


def test_a_whole_section_under_its_old_word_replaces_the_new_one() -> None:
    old = load_config("cardialign-tiny", ["objective={name: diagsim, low: 0.2}"])
    assert old == load_config("cardialign-tiny", ["method={name: cardialign, low: 0.2}"])


def test_unreadable_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipe 'cardialign-huge'[\s\S]*cardialign-tiny"):
        load_config("cardialign-huge")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: {size: tiny\n")
    with pytest.raises(UsageError, match=r"broken\.yaml is not valid YAML"):
        load_config(broken)
    broken.write_text("- a\n- b\n")
    with pytest.raises(UsageError, match="does not hold a mapping"):
        load_config(broken)


def test_a_set_of_a_mixture_has_the_folds_and_split_of_the_data_unless_it_says_its_own() -> None:
    parts = [{"shards": "a", "weight": 3}, {"shards": "b", "folds": [9], "split": "val"}]
    first, second = parse_config({"data": {"mixture": parts, "folds": [1, 2], "split": "train"}}).data.parts
    assert (first.weight, first.folds, first.split) == (3, (1, 2), "train") and (second.folds, second.split) == (
        (9,),
        "val",
    )
    (alone,) = parse_config({"data": {"shards": "a", "folds": [4]}}).data.parts
    assert (str(alone.shards), alone.weight, alone.folds) == ("a", 1.0, (4,)) and parse_config({}).data.parts == ()


def test_relative_shard_folders_are_taken_from_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "mine.yaml"
    recipe.write_text("data: {mixture: [{shards: sets/a}, {shards: s3://bucket/b}, {shards: /c}]}\n")
    monkeypatch.chdir(tmp_path)
    alone = load_config("recipes/mine.yaml", ["data.mixture=[]", "data.shards=sets/a"])
    parts = load_config("recipes/mine.yaml").data.parts
    monkeypatch.chdir("/")
    assert alone.data.shards == parts[0].shards == tmp_path / "sets" / "a" and str(parts[2].shards) == "/c"
    assert url_of(parts[1].shards) == "s3://bucket/b"
    with pytest.raises(UsageError, match=r"data\.mixture\.0\.shards"):
        load_config(recipe, ["data.mixture=[{shards: [a]}]"])
