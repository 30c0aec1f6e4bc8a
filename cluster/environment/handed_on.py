"""Which of the driver's environment variables reach the workers, on a local Ray and on a joined cluster.

An allow-list, because an environment also holds what is nobody's business. They travel inside the job, not in Ray's
`runtime_env`: Ray writes that to its logs and shows it in its dashboard. What a node has set stays as the node has it.

A command that is submitted to a cluster (`cardialign.cluster.jobs`) has no such way to its driver: there the same list
counts, without secrets and without what names a place on the submitting machine. They are set on the nodes.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, MutableMapping

from cardialign.data_shards.files import parse_json
from cardialign.data_shards.offline import stay_offline
from cardialign.data_shards.rights import close_own_log, close_to_others

HANDED_ON = (
    "CARDIALIGN_*",
    "HF_*",
    "HUGGING_FACE_HUB_TOKEN",
    "TRANSFORMERS_CACHE",
    "SENTENCE_TRANSFORMERS_HOME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "CUBLAS_WORKSPACE_CONFIG",
    "NCCL_*",
    "TORCH_NCCL_*",
    "GLOO_*",
    "TP_SOCKET_IFNAME",
    "FI_*",
    "UCX_*",
    "TORCH_DISTRIBUTED_DEBUG",
    "TOKENIZERS_PARALLELISM",
)
"""Names and patterns that are handed on; those of proxies in both cases."""
ALLOW = "CARDIALIGN_PASS_ENV"
"""Further names and patterns, separated by commas or spaces, that the user allows: for example `AWS_* GOOGLE_*`."""
SUBMITTED = "CARDIALIGN_SUBMITTED_ENV"
"""In a driver that was submitted: what its submitter hands on, as one JSON object."""
OURS = (ALLOW, "CARDIALIGN_DEBUG", SUBMITTED, "CARDIALIGN_JOB", "CARDIALIGN_USER")
"""Of the driver alone."""


def handed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of the driver's environment that its workers get."""
    patterns = (*HANDED_ON, *environment.get(ALLOW, "").replace(",", " ").split())
    return {name: value for name, value in environment.items() if _fits(name, patterns) and name not in OURS}


def adopt_submitted(environment: MutableMapping[str, str] | None = None) -> list[str]:
    """In a submitted driver, before anything else: take over what its submitter handed on."""
    target = os.environ if environment is None else environment
    if SUBMITTED not in target:
        return []
    close_own_log()
    values = parse_json(target.pop(SUBMITTED))
    return adopt({str(name): str(value) for name, value in values.items()}, target)


def adopt(values: Mapping[str, str], environment: MutableMapping[str, str] | None = None) -> list[str]:
    """In a worker: take over what the driver handed on. A variable that the node has set is left as it is.

    Its files are closed to other users, as the driver's are (`cardialign.data_shards.rights`).
    Returns the names that were taken over; values are shown nowhere.
    """
    target = os.environ if environment is None else environment
    if target is os.environ:
        close_to_others()
    present = set(target)
    taken = []
    for name, value in sorted(values.items()):
        twins = {name.lower(), name.upper()} if name.lower().endswith("_proxy") else {name}
        if not twins & present:
            target[name] = value
            taken.append(name)
    if target is os.environ:
        stay_offline()  # where the driver is
    return taken


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    spelled = name.upper() if name.lower().endswith("_proxy") else name
    return any(fnmatch.fnmatchcase(spelled, pattern) for pattern in patterns)
