"""Exports of others: what is loaded is what was checked; nothing is believed, executed or fetched on their word."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.encoders.base import create_encoder
from cardialign.pretrain.export.building import WithoutDrawing, at_most
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.archive import pickled_parts
from cardialign.pretrain.run.integrity import verify_export, write_digests
from cardialign.pretrain.text.folder import encoder_folder
from cardialign.pretrain.training.initialise import open_start
from tests.support.small_encoder import SPEC, small_config, small_model

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, model = small_model()
    out = tmp_path_factory.mktemp("export") / "encoder"
    return export_encoder(config, model.state_dict(), out, training={}, spec=SPEC, program=False)


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "copy")


def sealed(folder: Path) -> Path:
    """With a digest list that fits: anybody can write one."""
    (folder / "digests.json").unlink(missing_ok=True)
    write_digests(folder)
    return folder


def edited(folder: Path, name: str, **changes: Any) -> Path:
    values = json.loads((folder / name).read_text())
    for key, value in changes.items():
        where, _, last = key.rpartition("__")
        (values[where] if where else values)[last] = value
    (folder / name).write_text(json.dumps(values))
    return sealed(folder)


def signal() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.3, (2, 12, SPEC.samples)).astype(np.float32)


@pytest.mark.parametrize("load", [load_encoder, open_start])
def test_weights_that_change_after_the_check_are_not_loaded(
    copy: Path, load: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cardialign.pretrain.run import integrity

    expected = load_file(copy / "model.safetensors")
    check = integrity._verified

    def checked_then_swapped(folder: Path, **options: Any) -> Any:
        verified = check(folder, **options)
        save_file({name: torch.ones_like(t) for name, t in load_file(folder / "model.safetensors").items()},
                  folder / "model.safetensors")  # fmt: skip
        (folder / "config.json").write_text("{}")
        return verified

    monkeypatch.setattr(integrity, "_verified", checked_then_swapped)
    found = load(copy)
    state = found.ecg.state_dict() if load is load_encoder else {k[4:]: v for k, v in found.weights.items()}
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["MLmodel", "evil.py", "pytorch_model.bin", "text/tokenizer.json", ".DS_Store"])
def test_what_is_no_part_of_an_export_is_not_verified_by_being_listed(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"import os")
    with pytest.raises(UserError, match="no export holds"):
        verify_export(sealed(copy))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "signal_contract.json", "provenance.json"])
def test_an_export_without_a_needed_file_is_none(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"is not an exported encoder: it has no {name}"):
        load_encoder(sealed(copy))


@pytest.mark.parametrize("text", [DEEP, "[]", "null", "{nope", "", "\xff", "5"])
@pytest.mark.parametrize("name", ["digests.json", "config.json", "signal_contract.json", "provenance.json"])
def test_json_that_is_none_is_a_sentence_that_names_the_file(copy: Path, name: str, text: str) -> None:
    (copy / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        load_encoder(copy if name == "digests.json" else sealed(copy))
    assert name in caught.value.problem or "signal contract" in caught.value.problem
    assert caught.value.remedy and len(caught.value.problem) < 400


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"{}"])
@pytest.mark.parametrize("name", ["model.safetensors", "text_head.safetensors"])
def test_weights_that_are_none_are_a_sentence_that_names_the_file(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_encoder(sealed(copy))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Whatever asks for more than 3 GiB beyond what is there gets none."""
    here = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (here + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


CLAIMS: list[tuple[str, dict[str, Any]]] = [
    ("config.json", {"encoder__width": 20_000, "encoder__depth": 200}),
    ("config.json", {"encoder__depth": 900_000}),
    ("config.json", {"encoder__depth": 10**12}),
    ("config.json", {"encoder__embedding_dim": 10**8}),
    ("config.json", {"encoder__width": 48}),
    ("config.json", {"encoder": []}),
    ("config.json", {"encoder__name": ["cardialign"]}),
    ("config.json", {"text": None}),
    ("config.json", {"text__encoder": 5}),
    ("signal_contract.json", {"sampling_rate": 1e9, "samples": 2 * 10**9}),
    ("signal_contract.json", {"sampling_rate": float("nan")}),
    ("signal_contract.json", {"sampling_rate": float("inf")}),
    ("signal_contract.json", {"sampling_rate": "100"}),
    ("signal_contract.json", {"seconds": 1e8, "samples": 10**10}),
    ("signal_contract.json", {"samples": 100}),
    ("signal_contract.json", {"samples": None}),
    ("signal_contract.json", {"embedding_dim": 16}),
    ("signal_contract.json", {"leads": [["I"]]}),
    ("signal_contract.json", {"leads": None}),
    ("signal_contract.json", {"units": "uV"}),
    ("signal_contract.json", {"surplus": 1}),
    ("signal_contract.json", {"normalisation": "of another planet"}),
]


@pytest.mark.parametrize(("name", "claims"), CLAIMS)
def test_what_a_configuration_claims_beyond_the_weights_is_refused_and_takes_no_memory(
    copy: Path, name: str, claims: dict[str, Any], little_memory: None
) -> None:
    with pytest.raises(UserError) as caught:
        load_encoder(edited(copy, name, **claims))
    assert caught.value.remedy


@pytest.mark.parametrize("encoder", ["attacker/backdoored-bert", "/home/alice/models/MedCPT", "../../../etc"])
def test_a_text_encoder_is_not_looked_for_before_a_text_comes(
    copy: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "cardialign.pretrain.text.encoder.encoder_folder", lambda name: asked.append(name) or Path("/none")
    )
    found = load_encoder(edited(copy, "config.json", text__encoder=encoder))
    assert found.embed(signal(), sampling_rate=100).shape == (2, 8) and asked == []
    with pytest.raises((UserError, OSError)):
        found.embed_text(["Normal ECG"])
    assert asked == [encoder]


@pytest.mark.parametrize("described", [[], None, "minilm", {"fingerprint": None}])
def test_a_provenance_of_another_shape_says_nothing(copy: Path, described: Any) -> None:
    found = load_encoder(edited(copy, "provenance.json", text_encoder=described))
    assert found.embed_text(["Normal ECG"]).shape == (1, 8)


SET: dict[str, Any] = {"fingerprint": "f" * 64, "source": "wfdb", "salted": False, "folds": [1, 2], "split": None}


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": 5},
        {"fingerprint": None},
        {"folds": True},
        {"folds": ["x"]},
        {"split": "train"},
        {"split": {}},
        {"split": {"split": "train", "salt": "", "fractions": 5}},
        {"source": ["wfdb"]},
        {"salted": "no"},
        {"patients": torch.zeros(3)},
        {"recordings": torch.zeros(3, 1, dtype=torch.int64)},
    ],
    ids=str,
)
def test_what_an_export_says_of_its_training_is_judged_before_an_evaluation_asks(
    copy: Path, change: dict[str, Any]
) -> None:
    digests = {name: change.get(name, torch.arange(3)) for name in ("patients", "recordings")}
    facts = SET | {name: value for name, value in change.items() if name not in digests}
    save_file({f"0.{name}": tensor for name, tensor in digests.items()}, copy / "trained_on.safetensors")
    with pytest.raises(UserError, match=r"trained_on\.safetensors: does not fit provenance\.json"):
        load_encoder(edited(copy, "provenance.json", trained_on={"sets": [facts], "unknown": []}))


@pytest.mark.parametrize("sets", [None, [5], [[]], "x", [None]])
def test_a_list_of_trained_sets_that_is_none_is_a_sentence(copy: Path, sets: Any) -> None:
    with pytest.raises(UserError, match="does not fit"):
        load_encoder(edited(copy, "provenance.json", trained_on={"sets": sets, "unknown": []}))


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as written:
        for name, content in members.items():
            written.writestr(f"encoder/{name}", content)
    return path


def pickled() -> bytes:
    stream = io.BytesIO()
    torch.save({"x": torch.ones(1)}, stream)
    return stream.getvalue()


PROGRAM = {
    "archive_format": b"pt2",
    "byteorder": b"little",
    ".data/version": b"6\n",
    "models/model.json": b'{"graph_module": {}}',
    "data/weights/model_weights_config.json": b'{"config": {"a": {"path_name": "weight_0", "use_pickle": false}}}',
    "data/weights/weight_0": b"PK any bytes at all .",
    "data/sample_inputs/model.pt": b"",
}
GRAPH = {
    "graph_module": {
        "graph": {"nodes": [{"target": "torch.ops.aten.add.Tensor", "inputs": []}]},
        "sizes": [{"as_expr": {"expr_str": "Mul(Integer(4), Symbol('s38', positive=True, integer=True))"}}],
        "module_call_graph": [{"signature": {"in_spec": '[1, {"type": "builtins.dict", "context": "[\\"age\\"]", '
                                                        '"children_spec": []}]'}}],
        "treespec_namedtuple_fields": {},
    },
    "guards_code": ["L['signal'].size()[0] == L['lead_mask'].size()[0]"],
}  # fmt: skip
CODE = {
    "a size that is Python": ("expr_str", "__import__('os').system('true') or Integer(4)"),
    "a size that opens a file": ("expr_str", "open('x')"),
    "a size that fills the memory": ("expr_str", "9**9**9**9"),
    "a size with an attribute": ("expr_str", "Integer(4).__class__"),
    "a size that is no text": ("expr_str", ["__import__('os')"]),
    "a condition that is Python": ("guards_code", ["__import__('os').system('true') == 0"]),
    "a condition with a call": ("guards_code", ["print(L['signal'])"]),
    "conditions that are one text": ("guards_code", "L['signal'].size()[0] == 1"),
    "a function of Python as an operator": ("target", "_operator.methodcaller"),
    "a module of torch's as an operator": ("target", "torch.os.system"),
    "an operator that opens a file": ("target", "torch.ops.aten.from_file.default"),
    "an operator of another library": ("target", "torch.ops.export.access_subclass_inner_tensor.default"),
    "a tree that imports a module": (
        "in_spec",
        '[1, {"type": "collections.defaultdict", "context": "{\\"default_factory_module\\": \\"antigravity\\"}", '
        '"children_spec": []}]',
    ),
    "a tree that names a class": (
        "in_spec",
        '[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": true, \\"fqn\\": \\"antigravity:X\\"}]", '
        '"children_spec": []}]',
    ),
    "named tuples": ("treespec_namedtuple_fields", {"os.stat_result": {"field_names": ["a"]}}),
}


def changed_at(values: object, key: str, to: object) -> object:
    if isinstance(values, dict):
        return {k: to if k == key else changed_at(v, key, to) for k, v in values.items()}
    return [changed_at(each, key, to) for each in values] if isinstance(values, list) else values


@pytest.mark.parametrize("kind", CODE)
def test_a_program_that_torch_would_evaluate_as_code_is_refused(tmp_path: Path, kind: str) -> None:
    """torch hands sizes to sympy and conditions to `exec`, imports what a tree names, and calls what a node names."""
    key, value = CODE[kind]
    hostile = json.dumps(changed_at(GRAPH, key, value))
    spelt = hostile.replace(f'"{key}"', f'"\\u{ord(key[0]):04x}{key[1:]}"')
    twice = json.dumps(GRAPH)[:-1] + ', "more": ' + hostile + "}"
    for graph in (hostile, spelt, twice):
        program = archive(tmp_path / "encoder.pt2", {**PROGRAM, "models/model.json": graph.encode()})
        assert pickled_parts(program) == ["encoder/models/model.json"], graph
    fine = archive(tmp_path / "encoder.pt2", {**PROGRAM, "models/model.json": json.dumps(GRAPH).encode()})
    assert pickled_parts(fine) == []


PICKLES = {
    "example inputs": {"data/sample_inputs/model.pt": pickled()},
    "example inputs of protocol 0": {"data/sample_inputs/model.pt": b"cposix\nsystem\n."},
    "a weight declared as pickled": {
        "data/weights/model_weights_config.json": b'{"config":{"a":{"use_pickle" :true}}}'
    },
    "an object among the constants": {"data/constants/custom_obj_0": b"\x80\x02."},
    "an opaque object": {"data/constants/opaque_obj_0": b"(."},
    "a library": {"data/aotinductor/model/x.so": b"\x7fELF"},
    "an index that is none": {"models/model.json": b"\x80\x02}."},
    "a note that is none": {"byteorder": b"\x80\x02}."},
    "the older format": {"serialized_example_inputs.pt": pickled()},
}


@pytest.mark.parametrize("kind", PICKLES)
def test_an_export_whose_program_may_hold_a_pickle_is_not_verified(copy: Path, kind: str) -> None:
    program = archive(copy / "encoder.pt2", PROGRAM)
    assert pickled_parts(program) == [] and verify_export(sealed(copy))
    archive(copy / "encoder.pt2", {**PROGRAM, **PICKLES[kind]})
    for look in (verify_export, load_encoder):
        with pytest.raises(UserError, match=r"encoder\.pt2: .* may be a pickle"):
            look(sealed(copy))


def test_two_members_of_one_name_and_what_is_no_archive_are_refused(copy: Path) -> None:
    with zipfile.ZipFile(copy / "encoder.pt2", "w") as written:
        written.writestr("encoder/byteorder", b"little")
        with pytest.warns(UserWarning, match="Duplicate"):
            written.writestr("encoder/byteorder", b"little")
    with pytest.raises(UserError, match="may be a pickle"):
        verify_export(sealed(copy))
    (copy / "encoder.pt2").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"encoder\.pt2: no zip archive"):
        verify_export(sealed(copy))


def test_an_encoder_built_to_be_filled_is_the_one_that_was_built_as_ever(exported: Path) -> None:
    """No random numbers are drawn for weights that are replaced; whatever is not a weight is there all the same."""
    found = load_encoder(exported)
    config = small_config()
    plain = create_encoder(config.encoder, SPEC, config.data.normalisation)
    plain.load_state_dict(load_file(exported / "model.safetensors"))
    with torch.inference_mode():
        expected = plain.eval()(torch.from_numpy(signal()), torch.ones(2, 12, dtype=torch.bool)).embedding
    assert np.array_equal(found.embed(signal(), sampling_rate=100), expected.numpy())
    for (name, ours), (_, theirs) in zip(found.ecg.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name


class _Seeded(torch.nn.Module):
    """A plug-in's layer with a buffer that is drawn from a seed of its own and not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        drawn = torch.empty(50).normal_(generator=torch.Generator().manual_seed(7))
        self.register_buffer("directions", drawn, persistent=False)


def test_a_buffer_that_is_drawn_from_its_own_seed_is_drawn() -> None:
    with WithoutDrawing():
        found = _Seeded()
    assert torch.equal(found.get_buffer("directions"), _Seeded().get_buffer("directions"))


def test_building_ends_where_it_asks_for_more_than_is_there() -> None:
    with at_most(2, 12):
        torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="more than the 2 tensors and 12 weights"), at_most(2, 12):
        torch.nn.Linear(3, 30)
    torch.nn.Linear(300, 300)  # the limit is gone with the block


def test_an_export_names_no_place_of_the_machine_that_trained_it(tmp_path: Path) -> None:
    private = shutil.copytree(encoder_folder("minilm"), tmp_path / "alice" / "MedCPT")
    config, model = small_model()
    config = config.model_copy(
        update={
            "text": config.text.model_copy(update={"encoder": str(private)}),
            "init_from": str(tmp_path / "alice" / "run"),
            "data": config.data.model_copy(update={"shards": str(tmp_path / "alice" / "shards")}),
        }
    )
    run = tmp_path / "run"
    run.mkdir()
    out = export_encoder(config, model.state_dict(), run / "export", training={}, spec=SPEC, program=False)
    said = b"".join(path.read_bytes() for path in out.iterdir() if path.suffix == ".json")
    assert b"alice" not in said and str(tmp_path).encode() not in said and b'"./MedCPT"' in said


def test_the_report_encoder_of_an_export_is_found_in_its_run_or_where_its_reader_says_and_by_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = shutil.copytree(encoder_folder("minilm"), tmp_path / "alice" / "MedCPT")
    config, model = small_model()
    config = config.model_copy(update={"text": config.text.model_copy(update={"encoder": str(private)})})
    run = tmp_path / "run"
    run.mkdir()
    out = export_encoder(config, model.state_dict(), run / "export", training={}, spec=SPEC, program=False)
    (run / "config.resolved.json").write_text(json.dumps(config.resolved()))
    assert load_encoder(out).text_encoder.folder == private
    away = shutil.copytree(out, tmp_path / "bob" / "encoder")
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    assert load_encoder(away).text_encoder.folder == private, "who has just exported it looks at it, too"
    monkeypatch.setattr("cardialign.pretrain.text.folder._SEEN", {})
    with pytest.raises(UserError, match=r"MedCPT.*does not exist") as caught:
        assert load_encoder(away).text_encoder
    assert "CARDIALIGN_TEXT_ENCODERS" in caught.value.remedy
    monkeypatch.setenv("CARDIALIGN_TEXT_ENCODERS", f"/none:{private.parent}")
    assert load_encoder(away).text_encoder.folder == private
    assert load_encoder(away).training_run() == load_encoder(out).training_run()


@pytest.mark.parametrize(("revision", "wanted"), [("a" * 40, "a" * 40), ("main", None), (5, None), (None, None)])
def test_a_text_encoder_of_the_hub_is_the_commit_that_the_export_names(
    copy: Path, revision: object, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(model_id: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
        asked.append((model_id, revision))
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    described = json.loads((copy / "provenance.json").read_text())["text_encoder"]
    edited(copy, "provenance.json", text_encoder={**described, "revision": revision})
    with pytest.raises(UserError, match="could be fetched"):
        load_encoder(edited(copy, "config.json", text__encoder="some/bert")).embed_text(["Normal ECG"])
    assert asked == [("some/bert", wanted)]
