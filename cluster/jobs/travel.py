"""What of this machine's environment goes with a submitted command, and what must not stand in its words.

Whoever may look at a cluster's dashboard reads the words, the variables and the metadata of every job, and Ray writes
them to its logs. So a secret never travels: it is set on the nodes, for example from a secret of Kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cardialign.cluster.environment.handed_on import ALLOW, handed_on
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shown import SECRET_NAME, public

STORES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
"""What a submitted driver gets beside the allow-list: where it tracks."""
SALT = "CARDIALIGN_SALT"
"""Of pseudonyms: as secret as a password."""
NO_SECRET = ("TOKENIZERS_PARALLELISM",)
SECRET, PLACE = "a secret", "a place on this machine"
NOT_LISTED = f"not among those that travel, unless {ALLOW} names it"
LIKELY_NEEDED = ("MLFLOW_", "AWS_", "GOOGLE_", "GCS_", "AZURE_", "FSSPEC_")
"""What such names begin with opens stores: a driver that misses them fails where the same command works here."""
SHORTEST = 8
"""Characters of a secret that is looked for in words."""


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return name == SALT or (name not in NO_SECRET and bool(SECRET_NAME.search(name)))


def travelling(environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(what a submitted driver gets, name -> why it stays).

    It is the allow-list of `handed_on` and the MLflow stores, without secrets and without places of this machine. What
    stays is named where the list has it, and where stores are opened with it.
    """
    named = {name: environment[name] for name in STORES if environment.get(name)}
    wanted = dict(sorted({**handed_on(environment), **named}.items()))
    stays = {name: why for name, value in wanted.items() if (why := _why_it_stays(name, value))}
    for name in sorted(environment):
        if name not in wanted and environment[name] and name.startswith(LIKELY_NEEDED):
            stays[name] = _why_it_stays(name, environment[name]) or NOT_LISTED
    return {name: value for name, value in wanted.items() if name not in stays}, stays


def _why_it_stays(name: str, value: str) -> str:
    if is_secret(name) or public(value) != value:
        return SECRET
    return PLACE if value.startswith(("/", "~", "file:", "sqlite:")) else ""


def check_no_secret(words: Iterable[str], environment: Mapping[str, str]) -> None:
    """Raises UsageError for words that hold a password, a token, or the value of a variable that is a secret."""
    secrets = {name: value for name, value in environment.items() if is_secret(name) and len(value) >= SHORTEST}
    for word in words:
        option = word.partition("=")[0] if word.startswith("--") else ""
        for part in {word, word.partition("=")[2]}:
            if "://" in part and public(part) != part:
                what = f"{option or 'an address'} holds a user or a password ({public(part)})"
                raise UsageError(
                    f"{what}: everybody who sees the cluster's dashboard would read it",
                    "give the address without it, and set MLFLOW_TRACKING_USERNAME and _PASSWORD (or what the service "
                    "wants) in the environment of the cluster's nodes",
                )
        for name, value in secrets.items():
            if value in word:
                raise UsageError(
                    f"the value of {name} stands in the words of the command: the cluster's dashboard shows them",
                    f"leave it out, and set {name} in the environment of the cluster's nodes",
                )
