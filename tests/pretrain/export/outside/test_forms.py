"""Every form of an encoder gives what its model gives; what cannot be trusted, read or used is refused by name."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import cardialign
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.evaluation.probing.fine_tune import Classifier, FineTuneOptions, parameter_groups
from cardialign.pretrain.export.opening import open_encoder
from cardialign.pretrain.export.outside.plug_in import OUTSIDE_ENCODERS
from cardialign.pretrain.export.usable import UsableEncoder
from tests.support.outside_models import CONTRACT, STANDARD, Readout, write_contract, write_torchscript
from tests.support.plug_ins import install, see

SPEC = SignalSpec(50, 1)
PLAIN = {"leads": STANDARD, "units": "mV"}
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))), reason="onnx or onnxruntime is not installed"
)


def records(count: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    signal = np.random.default_rng(1).normal(0, 0.4, (count, 12, 50)).astype(np.float32)
    return signal, np.ones((count, 12), dtype=bool), np.full(count, 50)


def features(encoder: UsableEncoder) -> np.ndarray:
    return encoder.reader(SPEC)(*records()).features.numpy()


class Several(nn.Module):
    """Tokens (B, 25, 6) and their channels first (B, 6, 25), under names."""

    def forward(self, signal: Tensor) -> dict[str, Tensor]:
        tokens = signal[:, ::2, :6]
        return {"tokens": tokens, "channels": tokens.transpose(1, 2), "counts": signal.argmax(dim=1)}


@pytest.mark.parametrize(
    ("output", "pooling", "axis", "by_hand"),
    [
        ("tokens", "mean", "last", lambda x: x.mean(axis=1)),
        ("tokens", "max", "last", lambda x: x.max(axis=1)),
        ("tokens", "first", "last", lambda x: x[:, 0]),
        ("channels", "mean", "second", lambda x: x.mean(axis=1)),
    ],
)
def test_the_named_output_is_pooled_as_it_says(
    tmp_path: Path, output: str, pooling: str, axis: str, by_hand: Any
) -> None:
    changes = {"output": output, "pooling": pooling, "feature_axis": axis}
    encoder = open_encoder(write_torchscript(tmp_path / "e.pt", Several(), **PLAIN, **changes))
    wanted = by_hand(records()[0].swapaxes(1, 2)[:, ::2, :6])
    np.testing.assert_allclose(features(encoder), wanted, atol=1e-6)


class Odd(nn.Module):
    """What nobody should embed with: by its word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word, self.map = word, nn.Linear(12, 6)

    def forward(self, signal: Tensor) -> Tensor:
        found = self.map(signal.mean(dim=1))
        if self.word == "nan":
            return found * float("nan")
        if self.word == "constant":
            return found * 0 + 1
        if self.word == "zero":
            return found * 0
        if self.word == "dropout":
            return F.dropout(found, 0.5, True)
        if self.word == "batch":
            return found - found.mean(dim=0)
        return found.long()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("nan", "is not finite"),
        ("constant", "2 different signals have the same embedding"),
        ("zero", "an embedding is 0 throughout"),
        ("dropout", "another embedding the second time"),
        ("batch", "depends on the records beside it"),
        ("integers", "is of type torch.int64, not a vector"),
    ],
)
def test_embeddings_that_mean_nothing_are_refused_when_the_encoder_is_opened(
    tmp_path: Path, word: str, told: str
) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match=told):
        open_encoder(write_torchscript(tmp_path / "odd.pt", Odd(word), **PLAIN))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seconds": 2}, r"does not take what its contract says, \(2, 100, 12\) of float32 in layout time-leads"),
        ({"layout": "leads-time"}, r"does not take what its contract says, \(2, 12, 50\)"),
        ({"leads": STANDARD[:8]}, r"does not take what its contract says, \(2, 50, 8\)"),
        ({"dtype": "float64"}, r"does not take what its contract says, .* of float64"),
        ({"embedding_dim": 7}, r"has shape \(2, 6\) for 2 records, .* says \(2, 7\)"),
        ({"output": "pooled"}, "gives one output, the contract says output: pooled"),
        ({"pooling": "mean", "feature_axis": "last"}, r"has shape \(2, 6\): nothing to pool"),
        ({"call": "encode"}, "has no method 'encode'"),
        ({"blocks": "layers"}, "says blocks: layers; no weight is called layers.0"),
    ],
)
def test_a_contract_is_held_against_what_the_model_takes_and_gives(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        open_encoder(write_torchscript(tmp_path / "readout.pt", **changes))


def test_an_output_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no output pooled; its outputs are tokens, channels, counts"):
        open_encoder(write_torchscript(tmp_path / "e.pt", Several(), output="pooled"))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_a_pickle_is_never_loaded_by_whatever_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Trap()}, tmp_path / "checkpoint.pt")
    for name in ("model.pkl", "plain.pt", "model.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    for name in ("checkpoint.pt", "plain.pt", "model.pkl", "model.ckpt"):
        write_contract(tmp_path / name)
        with pytest.raises(UserError, match="pickle"):
            open_encoder(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def patch_tst(folder: Path, **changes: Any) -> nn.Module:
    """A real transformers model from a configuration, saved as its own library saves it."""
    from transformers import PatchTSTConfig, PatchTSTModel

    torch.manual_seed(0)
    size = {"d_model": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 8, "patch_length": 10}
    config = PatchTSTConfig(num_input_channels=12, context_length=50, patch_stride=10, **size)
    model = PatchTSTModel(config).eval()
    model.save_pretrained(folder)
    stated = {"input": "past_values", "output": "last_hidden_state", "pooling": "mean", "feature_axis": "last"}
    write_contract(folder, **{**PLAIN, **stated, "embedding_dim": 8, "blocks": "encoder.layers", **changes})
    return model


def test_a_hugging_face_folder_gives_its_hidden_state_and_can_be_made_anew(tmp_path: Path) -> None:
    model = patch_tst(tmp_path / "folder")
    encoder = open_encoder(tmp_path / "folder")
    with torch.no_grad():
        hidden = model(past_values=torch.from_numpy(records()[0]).transpose(1, 2)).last_hidden_state
    np.testing.assert_allclose(features(encoder), hidden.flatten(1, -2).mean(dim=1).numpy(), atol=1e-5)
    fresh, again, other = encoder.untrained(1), encoder.untrained(1), encoder.untrained(2)
    np.testing.assert_array_equal(features(fresh), features(again))
    assert np.abs(features(fresh) - features(other)).max() > 1e-3 < np.abs(features(fresh) - features(encoder)).max()
    assert len({each.computing_digest() for each in (encoder, fresh, other)}) == 3
    assert fresh.digest.startswith("untrained-seed-1")


def test_the_last_blocks_of_a_hugging_face_folder_are_those_its_contract_names(tmp_path: Path) -> None:
    patch_tst(tmp_path / "folder")
    model = Classifier(open_encoder(tmp_path / "folder").trainable(SPEC), 2, 0.0)
    parameter_groups(model, FineTuneOptions(train_blocks=1))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    blocks = {name for name in learning if ".encoder.layers." in name}
    assert blocks and all(".encoder.layers.1." in name for name in blocks) and "head.weight" in learning
    loss = model(*map(torch.from_numpy, records())).square().sum()
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in blocks)


def test_a_hugging_face_folder_is_refused_where_weights_are_missing_or_pickled(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    patch_tst(tmp_path / "less")
    file = tmp_path / "less/model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if "layers.1" in name)
    save_file({name: each for name, each in weights.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights, such as .*layers.1.*: they would be random"):
        open_encoder(tmp_path / "less")
    file.unlink()
    torch.save(weights, tmp_path / "less/pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no safetensors, only pytorch_model.bin: a pickle"):
        open_encoder(tmp_path / "less")
    patch_tst(tmp_path / "input", input=None)
    with pytest.raises(UserError, match="its contract has no `input`"):
        open_encoder(tmp_path / "input")
    (tmp_path / "input.contract.yaml").unlink()
    with pytest.raises(UserError, match="has no signal contract"):
        open_encoder(tmp_path / "input")


OWN_CODE = """
from pathlib import Path
import torch
from transformers import PretrainedConfig, PreTrainedModel

Path(r"SPRUNG").touch()


class EcgConfig(PretrainedConfig):
    model_type = "ecg-of-a-clinic"


class EcgModel(PreTrainedModel):
    config_class = EcgConfig

    def __init__(self, config):
        super().__init__(config)
        self.map = torch.nn.Linear(12, 6)
        self.words = torch.nn.Embedding(60, 6)
        self.post_init()

    def forward(self, signal):
        return {"out": self.map(signal.mean(dim=1))}

    def get_text_features(self, input_ids, attention_mask=None, token_type_ids=None):
        return self.words(input_ids[:, 1])
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose model is Python code beside the weights, with a text side of words."""
    from transformers import BertTokenizer

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "clinic"
    folder.mkdir()
    (folder / "modeling_ecg.py").write_text(OWN_CODE.replace("SPRUNG", str(tmp_path / "sprung")))
    where = {"AutoConfig": "modeling_ecg.EcgConfig", "AutoModel": "modeling_ecg.EcgModel"}
    kind = {"model_type": "ecg-of-a-clinic", "architectures": ["EcgModel"], "auto_map": where}
    (folder / "config.json").write_text(json.dumps(kind))
    torch.manual_seed(3)
    weights = {"map.weight": torch.randn(6, 12), "map.bias": torch.randn(6), "words.weight": torch.randn(60, 6)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "flutter", "normal"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    stated = {"input": "signal", "output": "out", "text": "get_text_features", "text_tokens": 8}
    write_contract(folder, **PLAIN, **stated)
    return folder


def test_code_of_a_folder_runs_only_when_it_is_asked_for(own_code: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Python code of its own(.|\n)*--trust-remote-code"):
        open_encoder(own_code)
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "modules").exists()
    encoder = open_encoder(own_code, trust_remote_code=True)
    assert (tmp_path / "sprung").exists()
    torch.manual_seed(3)
    weight, bias, words = torch.randn(6, 12), torch.randn(6), torch.randn(60, 6)
    by_hand = records()[0].mean(axis=2) @ weight.numpy().T + bias.numpy()
    np.testing.assert_allclose(features(encoder), by_hand, atol=1e-5)
    texts = encoder.embed_text(["normal", "flutter"])
    np.testing.assert_allclose(texts, F.normalize(words[[6, 5]], dim=1).numpy(), atol=1e-6)
    with pytest.raises(UsageError, match="brings no code"):
        open_encoder(tmp_path, trust_remote_code=True)


CODE = """
from pathlib import Path
import numpy as np
import torch


class Mean:
    contract = Path(__file__).with_name("mean.contract.yaml")
    digest = "1"

    def __call__(self, signal):
        return signal.mean(axis=1)[:, :6]

    def embed_text(self, texts):
        return np.array([[len(text), 1, 0, 0, 0, 0] for text in texts])


class Learns(torch.nn.Module):
    contract = Path(__file__).with_name("mean.contract.yaml")

    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(12, 6)

    def forward(self, signal):
        return self.map(signal.mean(dim=1))


class Breaks(Mean):
    def __call__(self, signal):
        raise RuntimeError("out of order")


class Silent(Mean):
    digest = ""


class Bare:
    pass
"""


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name.lower(): f"clinic_models:{name}" for name in ("Mean", "Learns", "Breaks", "Silent", "Bare")}
    install(tmp_path / "site", "clinic_models", CODE, names, OUTSIDE_ENCODERS.group)
    write_contract(tmp_path / "site/mean", **PLAIN)
    see(tmp_path / "site", OUTSIDE_ENCODERS, monkeypatch)
    monkeypatch.delitem(__import__("sys").modules, "clinic_models", raising=False)


@pytest.mark.usefixtures("plug_ins")
def test_a_plug_in_is_a_callable_or_a_module() -> None:
    assert OUTSIDE_ENCODERS.group == "cardialign.outside_encoders"
    encoder = open_encoder("outside:mean")
    np.testing.assert_allclose(features(encoder), records()[0].mean(axis=2)[:, :6], atol=1e-6)
    np.testing.assert_allclose(encoder.embed_text(["abc"])[0, :2], np.array([3, 1]) / np.sqrt(10), atol=1e-6)
    with pytest.raises(UserError, match=r"not an nn\.Module"):
        encoder.trainable(SPEC)
    learns = open_encoder("outside:learns")
    assert sum(each.numel() for each in learns.trainable(SPEC).parameters()) == 78
    with pytest.raises(UserError, match=r"no text side: it has no embed_text(.|\n)*linear-probe`, `cardialign"):
        learns.embed_text(["x"])
    for word, told in (
        ("breaks", "plug-in of clinic_models and cannot embed: RuntimeError: out of order"),
        ("silent", "does not say which weights it has"),
        ("bare", "no attribute `contract`"),
        ("means", r"unknown outside_encoder 'means' \(did you mean 'mean'\?\)"),
    ):
        with pytest.raises(UserError, match=told):
            open_encoder(f"outside:{word}")


def test_what_cannot_be_done_with_a_form_is_refused_with_what_can(tmp_path: Path) -> None:
    frozen = open_encoder(write_torchscript(tmp_path / "frozen.pt", freeze=True))
    with pytest.raises(UserError, match=r"cannot be fine-tuned: its weights are frozen(.|\n)*linear-probe"):
        frozen.trainable(SPEC)
    with pytest.raises(UserError, match=r"no untrained counterpart: TorchScript does not say"):
        frozen.untrained(0)
    whole = open_encoder(write_torchscript(tmp_path / "whole.pt", shorter="refuse"))
    with pytest.raises(UserError, match=r"it holds 0.5 s, the encoder reads 1 s and its contract says shorter: refuse"):
        whole.reader(SignalSpec(100, 0.5))
    assert whole.reader(SignalSpec(100, 5)) is not None
    (tmp_path / "model.h4").write_bytes(b"?")
    with pytest.raises(UserError, match=r"model.h4 is no form of an encoder that is known here"):
        open_encoder(tmp_path / "model.h4")


def test_onnx_without_its_runtime_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    (tmp_path / "e.onnx").write_bytes(b"?")
    write_contract(tmp_path / "e.onnx")
    with pytest.raises(UserError, match=r"needs onnxruntime, which is not installed\n.*cardialign\[onnx\]"):
        open_encoder(tmp_path / "e.onnx")


def write_onnx(path: Path, batch: int | str = "batch", **changes: Any) -> Path:
    """mean over time, a linear map: made of ONNX's own operators. `twice` is a second output."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    readout = Readout()
    weight = readout.map.weight[:, :12].detach().numpy().T
    nodes = [
        helper.make_node("ReduceMean", ["signal", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["features"]),
        helper.make_node("Add", ["features", "features"], ["twice"]),
    ]
    constants = {"axis": np.array([1], dtype=np.int64), "weight": np.ascontiguousarray(weight)}
    graph = helper.make_graph(
        nodes, "readout",
        [helper.make_tensor_value_info("signal", TensorProto.FLOAT, [batch, 50, 12])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 6]) for name in ("features", "twice")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    write_contract(path, **{**PLAIN, "output": "features", **changes})
    return path


@needs_onnx
@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_an_onnx_graph_gives_the_named_output_also_where_its_batch_is_fixed(tmp_path: Path, batch: int | str) -> None:
    weight = Readout().map.weight[:, :12].detach().numpy().T
    wanted = records()[0].mean(axis=2) @ weight
    np.testing.assert_allclose(features(open_encoder(write_onnx(tmp_path / "e.onnx", batch))), wanted, atol=1e-6)
    twice = open_encoder(write_onnx(tmp_path / "e.onnx", batch, output="twice"))
    np.testing.assert_allclose(features(twice), 2 * wanted, atol=1e-6)
    with pytest.raises(UserError, match=r"cannot be fine-tuned: an ONNX file holds a graph to be run"):
        twice.trainable(SPEC)


@needs_onnx
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seconds": 2}, r"takes signal of shape \(batch, 50, 12\), its contract says \(batch, 100, 12\)"),
        ({"layout": "leads-time"}, r"its contract says \(batch, 12, 50\) by leads, layout, sampling_rate and seconds"),
        ({"dtype": "float64"}, "takes float32, its contract says dtype: float64"),
        ({"output": "only"}, "has the outputs features, twice; its contract says output: only"),
        ({"input": "x"}, "has the inputs signal; its contract says input: x"),
    ],
)
def test_a_contract_is_held_against_what_an_onnx_file_declares(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        open_encoder(write_onnx(tmp_path / "e.onnx", **changes))


def test_an_encoder_is_known_by_its_file_and_its_contract(tmp_path: Path) -> None:
    first = cardialign.load_encoder(write_torchscript(tmp_path / "a.pt"))
    assert isinstance(first, UsableEncoder)
    other = open_encoder(write_torchscript(tmp_path / "b.pt", Readout(seed=1)))
    stated = open_encoder(write_torchscript(tmp_path / "a.pt", trained_on=["mimic-iv-ecg"]))
    assert len({each.computing_digest() for each in (first, other, stated)}) == 3
    assert stated.seen().unknown == (
        "its signal contract says that it was trained on mimic-iv-ecg, not on which records",
    )
    assert CONTRACT["trained_on"] == "unknown" and "does not say" in first.seen().unknown[0]
