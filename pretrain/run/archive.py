"""The members of a `torch.export` archive, judged without torch: what a program needs, and whatever may be a pickle.

`torch.export.load` unpickles example inputs, objects among the constants, and every tensor that its index declares as
pickled. A program of ours has none of them; it is JSON and raw bytes. But torch evaluates some of that JSON as Python:
sizes (`expr_str`, by sympy) and conditions (`guards_code`, by exec); it imports what a tree of inputs names, and calls
what a node names. So each of them is what `torch.export.save` writes of an encoder, or the program is refused.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from cardialign.data_shards.files import parse_json

RAW = re.compile(r"/data/(weights/weight|constants/tensor)_\d+$")
PLAIN = re.compile(r"/(models/\w+\.json|data/(weights|constants)/\w+\.json|archive_format|archive_version|byteorder)$")
NOTES = re.compile(r"/\.data/\w+$")
_SIZE = re.compile(
    r"(?:Symbol\('[A-Za-z]\w{0,30}'|(?:Integer|Mul|Add|Max|Min|Mod|FloorDiv|CleanDiv|CeilDiv|PythonMod|Eq|Ne)\("
    r"|(?:positive|integer|nonnegative|nonzero|real)=(?:True|False)|-?[0-9]{1,19}|[a-z][0-9]{1,6}|[-+*(), ])+"
)
"""A size as sympy writes it: symbols, whole numbers, and arithmetic that makes no large number of a small text."""
_CONDITION = re.compile(
    r"(?:L\['\w{1,60}'\]|\.size\(\)\[[0-9]{1,2}\]|[0-9]{1,19}|==|!=|<=|>=|<|>|//| and | or |not |[-+*%() ])+"
)
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|_operator\.(?:getitem|add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge)"
    r"|torch\.sym_(?:int|float|max|min|not|ite|sum)"
)
"""What a node may call: arithmetic on tensors and on sizes. `from_file` of torch opens a file."""
_LONGEST = 1000
_TREES, _OF_TREES = ("in_spec", "out_spec"), (None, "builtins.tuple", "builtins.list", "builtins.dict")
LARGEST_INDEX = 2**28
"""Bytes of a member that is no tensor; the graph of a base encoder has about a hundredth of this."""


def pickled_parts(path: Path | BinaryIO) -> list[str]:
    """Members of a .pt2 archive that are, or may be, a pickle, or would run as code; [] when there is none.

    Raises ValueError or OSError for what is no archive, or one whose members cannot be read.
    """
    found = []
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found += sorted({name for name in names if names.count(name) > 1})  # readers differ in which one they take
            for member in archive.infolist():
                if (
                    RAW.search(member.filename) or not member.file_size
                ):  # torch writes no example inputs as an empty member
                    continue
                plain = PLAIN.search(member.filename) or NOTES.search(member.filename)
                if not plain or member.file_size > LARGEST_INDEX or not _is_plain(archive.read(member)):
                    found.append(member.filename)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"no zip archive that can be read: {error}") from None
    return found


def _is_plain(content: bytes) -> bool:
    """A short note, or JSON that declares no payload as pickled and nothing that torch would evaluate, import or call
    beyond arithmetic."""
    if content[:1] not in (b"{", b"["):
        return len(content) <= 64 and content.isascii() and b"\x80" not in content
    try:
        return _reads_as_harmless(content.decode()) or _is_harmless(parse_json(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _reads_as_harmless(text: str) -> bool:
    """As `_is_harmless`, without parsing all of it, which takes seconds for a large graph; False where that is not
    enough: a key may be spelt with escapes, or stand where a value does."""
    if "\\u" in text:
        return False
    keys = list(_KEY.finditer(text))
    if len(keys) != sum(text.count(f'"{key}"') for key in _JUDGES):
        return False
    return all(_JUDGES[found[1]](parse_json(found[2])) for found in keys)


def _is_harmless(values: Any) -> bool:
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if not all(_JUDGES[key](of) for key, of in value.items() if key in _JUDGES):
                return False
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return True


def _is_text(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and "**" not in value and bool(pattern.fullmatch(value))


def _are_conditions(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(_CONDITION, each) for each in value)


def _is_tree(value: Any) -> bool:
    """How inputs are nested: tuples, lists and dicts under plain keys. Others name what is imported."""
    if not value:
        return True
    if not isinstance(value, str):
        return False
    version, *waiting = parse_json(value)
    while waiting:
        node = waiting.pop()
        context = node.get("context")
        keys = parse_json(context) if isinstance(context, str) else context
        plain = keys is None or (isinstance(keys, list) and all(isinstance(key, str) for key in keys))
        if node.get("type") not in _OF_TREES or not plain:
            return False
        waiting += node["children_spec"]
    return isinstance(version, int)


_JUDGES: dict[str, Callable[[Any], bool]] = {
    "use_pickle": lambda value: value is False,
    "expr_str": lambda value: _is_text(_SIZE, value),
    "target": lambda value: _is_text(_OPERATOR, value),
    "guards_code": _are_conditions,
    "treespec_namedtuple_fields": lambda value: not value,
    **dict.fromkeys(_TREES, _is_tree),
}
"""Key of an object, wherever it stands in the JSON of a program -> whether its value is harmless."""
_TEXT = r'"(?:[^"\\]|\\.)*"'
_KEY = re.compile(
    rf'"({"|".join(_JUDGES)})"\s*:\s*({_TEXT}|\[\s*(?:{_TEXT}(?:\s*,\s*{_TEXT})*)?\s*\]|\{{\s*\}}|true|false|null)'
)
"""Such a key with its value, where that is a text, a list of texts, nothing or a word."""
