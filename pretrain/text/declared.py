"""What the folder of a report encoder says about itself: how its tokens become one vector, and how many it reads.

Files of sentence-transformers (`modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`) and of
transformers (`config.json`, `tokenizer_config.json`). Nothing in them is run, and no path decides.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import parse_json, read_bytes
from cardialign.pretrain.text.folder import INNER

log = logging.getLogger(__name__)

POOLING_OF_CARD = {"ncbi/MedCPT-Query-Encoder": "cls", "ncbi/MedCPT-Article-Encoder": "cls"}
"""Exact Hugging Face id -> the pooling of its model card, for models whose files do not say it (Jin et al. 2023:
`last_hidden_state[:, 0, :]`). A folder that holds a copy has another name: there `text.pooling` says it.
"""
T5_ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
}
"""`model_type` of the T5 family -> the class of its encoder half. It has no first token that stands for the text:
where nothing else is said, the mean is taken, as in sentence-T5 (Ni et al. 2022)."""
FIRST_POSITION_AFTER_PADDING = (
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "xmod",
    "luke",
    "mluke",
)
"""`model_type` whose positions begin behind that of the padding token: two fewer of 514 can be used."""
MODES = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",
}
"""Words of sentence-transformers for the two poolings; `mean_sqrt_len_tokens` is the mean once it has unit length."""
WITHOUT_EFFECT = ("Normalize", "Dropout")
"""Modules behind the pooling that change nothing here: our vectors have unit length, and nothing is dropped."""


class Declared(NamedTuple):
    """What the files of a folder say.

    config      config.json.
    pooling     cls or mean, None where no file says it.
    positions   most tokens of a text that the model has positions for; None where there is no such limit.
    advised     most tokens that it was made for (`max_seq_length`, the tokenizer's `model_max_length`), or None.
    lower_case  texts are lower-cased before they are cut into tokens.
    """

    config: dict[str, Any]
    pooling: str | None
    positions: int | None
    advised: int | None
    lower_case: bool


def declared(folder: Path, encoder: str) -> Declared:
    """Read the files of `folder`; encoder: its word in `text.encoder`, for messages.

    Raises UserError for a file that cannot be read, for code that would have to be run, for a pooling or a module that
    is not ours, and for a model that is no encoder.
    """
    config = _object(folder / "config.json", encoder)
    tokenizer = _object(folder / "tokenizer_config.json", encoder, absent={})
    for name, values in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        _refuse_code(name, values, encoder)
    kind = config.get("model_type")
    if kind not in T5_ENCODERS and (config.get("is_encoder_decoder") or config.get("is_decoder")):
        raise UserError(
            f"text encoder {encoder} is a model of type {kind} that writes text (config.json: "
            f"{'is_encoder_decoder' if config.get('is_encoder_decoder') else 'is_decoder'})",
            "use an encoder, of the BERT or the T5 family for example",
        )
    sentence = _first_object(folder, "sentence_*_config.json", encoder)
    limits = [_count(sentence.get("max_seq_length")), _count(tokenizer.get("model_max_length"))]
    whole = _whole(folder)
    prompt = _object(whole / "config_sentence_transformers.json", encoder, absent={}).get("default_prompt_name")
    if prompt:
        log.warning("text_encoder=%s remark=its default prompt %r is not put before reports", encoder, prompt)
    return Declared(
        config,
        _pooling(whole, encoder),
        _positions(config),
        min((limit for limit in limits if limit is not None), default=None),
        sentence.get("do_lower_case") is True,
    )


def _whole(folder: Path) -> Path:
    """The folder of the whole model, where `folder` holds the model of its tokens alone (`0_Transformer`)."""
    inside = folder.match(INNER) and not (folder / "modules.json").exists()
    above = folder.parent
    return above if inside and ((above / "modules.json").exists() or any(above.glob("*_Pooling"))) else folder


def choose_pooling(found: Declared, encoder: str, setting: str | None) -> str:
    """cls, mean or last: the setting `text.pooling`, what the files say, a known id's model card, or what a T5 is for.

    A setting that differs from the files is named in the log. Raises UserError where nothing says it.
    """
    known = found.pooling or POOLING_OF_CARD.get(encoder)
    if known is None and found.config.get("model_type") in T5_ENCODERS:
        known = "mean"
    if setting is not None:
        if setting != "last" and known not in (None, setting):  # no file says `last`: a method reads otherwise
            log.warning("text_encoder=%s remark=text.pooling=%s is taken, the model says %s", encoder, setting, known)
        return setting
    if known is None:
        raise UserError(
            f"text encoder {encoder} does not say how its tokens become one vector: its folder has neither "
            "modules.json nor 1_Pooling/config.json",
            "set text.pooling to cls (the first token, as MedCPT wants it) or to mean, as the model's card says "
            "(text-bank: --pooling)",
        )
    return known


def check_length(found: Declared, encoder: str, max_tokens: int) -> None:
    """Raises UserError when texts of `max_tokens` have more tokens than the model has positions for."""
    if found.positions is not None and max_tokens > found.positions:
        raise UserError(
            f"text encoder {encoder} has positions for {found.positions} tokens, text.max_tokens is {max_tokens}",
            f"set text.max_tokens to {found.positions} or less" if found.positions >= 8 else "use another text encoder",
        )
    if found.advised is not None and max_tokens > found.advised:
        log.warning(
            "text_encoder=%s remark=it was made for texts of up to %d tokens, text.max_tokens is %d",
            encoder, found.advised, max_tokens,
        )  # fmt: skip


def _object(path: Path, encoder: str, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file; `absent` where there is no such file. Raises UserError."""
    if absent is not None and not path.exists():
        return absent
    values = _json(path, encoder)
    if not isinstance(values, dict):
        raise _unreadable(path, encoder, f"it holds a {type(values).__name__}, not an object")
    return values


def _json(path: Path, encoder: str) -> Any:
    try:
        return parse_json(read_bytes(path), long_numbers=True)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, encoder, f"{type(error).__name__}: {error}") from None


def _unreadable(path: Path, encoder: str, why: str) -> UserError:
    return UserError(f"text encoder {encoder}: {path.name} in {path.parent} cannot be read: {why}", "fetch it again")


def _first_object(folder: Path, pattern: str, encoder: str) -> dict[str, Any]:
    files = sorted(folder.glob(pattern))
    return _object(files[0], encoder) if files else {}


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none, and for the 1e30 that tokenizers write where they know no limit."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9 else None


def _refuse_code(name: str, values: dict[str, Any], encoder: str) -> None:
    code = values.get("auto_map")
    if code:
        shown = ", ".join(f"{key}: {where}" for key, where in code.items()) if isinstance(code, dict) else str(code)
        raise UserError(
            f"text encoder {encoder} wants to run code of its own ({name}: auto_map {shown}); nothing of a model's "
            "folder is run here",
            "use an encoder that the transformers library knows by itself",
        )


def _pooling(folder: Path, encoder: str) -> str | None:
    """What the modules of sentence-transformers say. None when there are none."""
    if not (folder / "modules.json").exists():
        files = sorted(folder.glob("*_Pooling/config.json"))
        return _mode(_object(files[0], encoder), encoder, files[0]) if files else None
    modules = _json(folder / "modules.json", encoder)
    pooling = None
    for module in modules if isinstance(modules, list) else [modules]:
        kind, place = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(place, str):
            raise _unreadable(folder / "modules.json", encoder, "a module has no type or no path")
        if not kind.startswith("sentence_transformers."):
            _refuse_code("modules.json", {"auto_map": kind}, encoder)
        word = kind.rpartition(".")[2]
        if word == "Pooling" and pooling is None and ".." not in Path(place).parts and not Path(place).is_absolute():
            path = folder / place / "config.json"
            pooling = _mode(_object(path, encoder), encoder, path)
        elif word != "Transformer" and word not in WITHOUT_EFFECT:
            raise UserError(
                f"text encoder {encoder}: its modules.json has a module {word} ({place}), which would be left out here",
                "use an encoder that ends with its pooling; or take a copy of the folder without modules.json and set "
                "text.pooling: then its plain token states are pooled",
            )
    return pooling


def _mode(values: dict[str, Any], encoder: str, path: Path) -> str:
    """One of cls and mean, of a Pooling module's file: `pooling_mode: "mean"`, or `pooling_mode_mean_tokens: true`."""
    given = values.get("pooling_mode")
    if given is not None:
        chosen = [str(word) for word in given] if isinstance(given, list) else [str(given)]
    else:
        switches = {key.removeprefix("pooling_mode_"): on for key, on in values.items() if "pooling_mode_" in key}
        chosen = (
            [word for word, on in switches.items() if on is True] if switches else ["mean"]
        )  # the library's default
    if len(chosen) == 1 and chosen[0] in MODES:
        return MODES[chosen[0]]
    raise UserError(
        f"text encoder {encoder}: {path.parent.name}/{path.name} asks for pooling {' with '.join(chosen) or 'none'}; "
        "only cls and mean are known here",
        "use another text encoder",
    )


def _positions(config: dict[str, Any]) -> int | None:
    kind = config.get("model_type")
    relative = config.get("relative_attention") is True and config.get("position_biased_input") is False  # DeBERTa v2
    if kind in T5_ENCODERS or relative:
        return None
    places = ("max_position_embeddings", "n_positions", "max_positions", "max_sequence_length")
    found = next((count for key in places if (count := _count(config.get(key))) is not None), None)
    if found is not None and kind in FIRST_POSITION_AFTER_PADDING:
        padding = config.get("pad_token_id", 1)
        found -= (padding if isinstance(padding, int) else 1) + 1
    return found
