"""One mistake in a configuration, one sentence: the dotted key, what is wrong, the value, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

REMEDIES = {
    "missing": "add it",
    "greater_than": "give a larger number",
    "greater_than_equal": "give a larger number",
    "less_than": "give a smaller number",
    "less_than_equal": "give a smaller number",
    "int_from_float": "write it without decimals",
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
    "float_type": "write a number",
    "float_parsing": "write a number",
    "finite_number": "give a number with digits",
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
    "string_type": "write text, in quotes if it looks like a number",
    "tuple_type": "write a list, e.g. [a, b]",
    "too_long": "give fewer values",
    "too_short": "give more values",
    "dict_type": "write `name: value` lines under it",
    "model_type": "write `key: value` lines under it",
    "path_type": "write a folder or a URL, in quotes if it looks like a number",
    "invalid_key": "write the key as text, in quotes if it looks like a number",
}
OTHER_WORDS = {
    "optimizer.lr": "lr learning_rate base_lr max_lr peak_lr",
    "optimizer.weight_decay": "wd l2",
    "optimizer.grad_clip": "clip clip_grad max_norm max_grad_norm gradient_clip gradient_clip_val",
    "schedule.warmup_fraction": "warmup warmup_steps warmup_ratio warmup_epochs num_warmup_steps",
    "training.global_batch": "batch bs batch_size train_batch_size total_batch_size",
    "training.micro_batch": "per_device_train_batch_size train_micro_batch_size_per_gpu micro_batch_size",
    "training.epochs": "num_epochs n_epochs max_epochs num_train_epochs",
    "training.steps": "num_steps max_steps total_steps iterations max_iters",
    "training.precision": "bf16 fp16 fp32 amp dtype mixed_precision",
    "training.zero_stage": "zero stage zero_optimization",
    "training.checkpoint_every": "save_every save_steps checkpoint_interval",
    "training.log_every": "logging_steps log_interval",
    "data.shards": "dataset data_dir data_path train_shards",
    "data.threads": "workers num_workers dataloader_num_workers",
    "text.encoder": "text_encoder text_model language_model tokenizer",
    "method.temperature": "tau temp",
    "encoder.depth": "layers num_layers n_layers num_hidden_layers",
    "encoder.width": "dim hidden_dim hidden_size d_model embed_dim",
    "encoder.heads": "num_heads n_heads nhead num_attention_heads",
    "encoder.name": "backbone arch architecture",
    "seed": "random_seed random_state",
}
"""Key of a recipe -> what other tools call it."""
REASONS = {
    "model_type": "input should be a mapping",
    "path_type": "input should be a path",
    "float_type": "is no number",
    "float_parsing": "is no number",
    "int_type": "is no whole number",
    "int_parsing": "is no whole number",
    "int_from_float": "is no whole number",
    "bool_type": "is neither true nor false",
    "bool_parsing": "is neither true nor false",
}
"""Kinds of mistakes that the library words with names of classes, or in terms of how it reads."""


def sentences(error: ValidationError, model: type[BaseModel], chosen: Mapping[str, type[BaseModel]]) -> list[str]:
    """Every mistake of `error` as lines "dotted.key: what is wrong (value); what to do".

    model is what was validated; chosen gives the class of each section that decides by its `name` which keys it has.
    """
    return [line for one in error.errors() for line in sentences_of(one, model, chosen)]


def told(value: Any) -> str:
    """A value as a recipe has it, for a message; the ends of one that is very long."""
    if value is None:
        return "null"
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 300 else f"{text[:200]}...{text[-60:]}"


def _known_keys(location: tuple[Any, ...], model: Any, chosen: Mapping[str, type[BaseModel]]) -> list[str]:
    """Keys of the section that `location` points into; through lists (patches) and sections."""
    for depth, part in enumerate(location[:-1]):
        if isinstance(part, str):
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field is not None else None
            model = next((a for a in get_args(model) if hasattr(a, "model_fields")), model)
            model = chosen.get(part, model) if depth == 0 else model
    return list(getattr(model, "model_fields", {}))


def _elsewhere(location: tuple[Any, ...], model: Any, chosen: Mapping[str, type[BaseModel]]) -> str:
    """What to say of a key that is none here: its word in our recipes, or the section that has a key of that name."""
    word = str(location[-1]).lower()
    found = [key for key, words in OTHER_WORDS.items() if word in words.split()]
    for section in getattr(model, "model_fields", {}) if word != "name" else ():
        if word in _known_keys((section, word), model, chosen) and f"{section}.{word}" not in found:
            found.append(f"{section}.{word}")
    here = [key for key in found if key.split(".")[:-1] == [str(part) for part in location[:-1]]]
    known = [key for key in here or found if key.split(".")[-1] in _known_keys(tuple(key.split(".")), model, chosen)]
    return f"did you mean {' or '.join(f'`{key}`' for key in known)}?" if known else ""


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean `{near[0]}`?" if near else ""


def sentences_of(error: Any, model: type[BaseModel], chosen: Mapping[str, type[BaseModel]]) -> list[str]:
    """One pydantic error -> lines "dotted.key: what is wrong (value); what to do"."""
    location = tuple(error["loc"])
    key = ".".join(str(part) for part in location) or "(recipe)"
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(location, model, chosen)
        near = _elsewhere(location, model, chosen) or _nearest(str(location[-1]), known)
        return [f"{key}: unknown key; {near or 'known keys here: ' + ', '.join(known)}"]
    if kind == "literal_error":
        words = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        near = _nearest(value if isinstance(value, str) else told(value), words)
        return [f"{key}: {told(value)} is not one of {', '.join(words)}; {near or 'use one of these'}"]
    shown = "" if isinstance(value, dict | list | BaseModel) else f" (got {told(value)})"
    if kind == "value_error":
        return [f"{key}: {line}" for line in error["msg"].removeprefix("Value error, ").splitlines()]
    reason = REASONS.get(kind) or (
        (error["msg"][:1].lower() + error["msg"][1:])
        .replace("valid tuple", "list")
        .replace("valid dictionary", "mapping")
    )
    return [f"{key}: {reason}{shown}; {REMEDIES.get(kind, 'correct the value')}"]
