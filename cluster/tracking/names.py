"""Names that end in MLflow, judged before anything is written: what it refuses is refused here, in one sentence.

Keys that we make from words of others (label codes, lead groups, metrics of a plug-in) are not refused but written so
that MLflow takes them: `safe` changes nothing in a plain word and never makes one name of two.
"""

from __future__ import annotations

import hashlib
import re

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shown import quoted

LONGEST_NAME = 250
"""Characters of a registered model, an experiment or a run: what every database behind MLflow keeps."""
LONGEST_KEY = 230
"""Of a parameter or metric: MLflow's 250, less what is put before the key of a changed parameter."""
LONGEST_ALIAS = 255
UNSAFE = re.compile(r"[^\w.\- ]|-(?=xh?[0-9a-f]*(?:-|[^\w.\- ]))|^\.(?=\.|\Z)")
"""What does not stay in a key; a `-` that would begin what is written for another character is none that stays."""


def check_model(name: str) -> None:
    """Raises UsageError for a name under which MLflow would not register, list or find an encoder again."""
    if not name.strip() or name != name.strip() or re.search(r"[/:@]", name) or not _plain(name):
        raise UsageError(
            f"{quoted(name)} cannot be the name of a registered encoder",
            f"write up to {LONGEST_NAME} printable characters without /, : and @, like my-encoder",
        )


def check_alias(alias: str) -> None:
    """Raises UsageError for an alias that MLflow does not take or keeps for itself."""
    if not re.fullmatch(r"[\w\-]+", alias) or len(alias) > LONGEST_ALIAS:
        raise UsageError(
            f"{quoted(alias)} cannot be an alias", "write letters, digits, _ and -, like production or eu-2"
        )
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UsageError(
            f"MLflow keeps the alias {alias!r} for itself",
            "choose another word; NAME alone is the newest version, NAME/2 is version 2",
        )


def check_experiment(name: str) -> None:
    """Raises UsageError for a name that no experiment of MLflow can have."""
    if not name.strip() or name != name.strip() or not _plain(name):
        raise UsageError(
            f"{quoted(name)} cannot be the name of an MLflow experiment",
            f"write up to {LONGEST_NAME} printable characters, not blank at either end",
        )


def safe(word: str) -> str:
    """One word as part of a key: letters, digits, blanks, `_`, `-` and `.` stay, everything else becomes `-xHEX-`.

    A `-` that would begin such a code is written as one (`ptb-xl` stays), and a longer word ends in its digest: no two
    words give the same.
    """
    written = UNSAFE.sub(lambda match: "".join(f"-x{ord(character):x}-" for character in match[0]), word) or "-x-"
    return shorten(written)


def shorten(written: str) -> str:
    """What `safe` wrote, no longer than a key may be: the end of a longer one is its digest."""
    if len(written) <= LONGEST_KEY:
        return written
    return f"{written[: LONGEST_KEY - 19]}-xh{hashlib.sha256(written.encode()).hexdigest()[:15]}-"


def safe_key(text: str) -> str:
    """A key whose parts are divided by `/`, each of them `safe`; a plain one stays as it is."""
    return shorten("/".join(safe(part) for part in text.split("/")))


def _plain(name: str) -> bool:
    return len(name) <= LONGEST_NAME and name.isprintable() and name not in (".", "..")
