"""What a checkpoint says about its run, and what may change when the run continues from it."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.files import is_shallow, parse_json, read_bytes
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import RunConfig, TextConfig, parse_config
from cardialign.pretrain.config.named import upgrade
from cardialign.pretrain.config.places import place_encoder
from cardialign.pretrain.run.files import CONFIG
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.training.checkpoints.files import COMMITTED, STATE, CheckpointError
from cardialign.pretrain.training.checkpoints.state_values import DEEPEST, state_mistakes
from cardialign.pretrain.training.schedule import Plan

log = logging.getLogger(__name__)

# Keys that may differ between a checkpoint and the run that continues it: they change speed or what is reported, not
# what a step computes.
HARMLESS = (
    "name",
    "data.shards",  # the content is held to its fingerprint, wherever the folder lies
    "data.reports",  # and that of other reports to the digest of their text bank
    "data.threads",
    "data.prefetch",
    "data.max_bad_fraction",
    "data.slow_read_seconds",
    "training.micro_batch",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.checkpoint_writing",
    "training.neighbour_copy_every",
    "training.bad_steps",  # of a step that went well they change nothing
    "training.gradient_limit",
    "collapse.",
    "evaluation",  # looks on
)
DURATION = ("training.steps", "training.epochs")
"""Judged by what it does to the learning rate (`checkpoints.duration`)."""
_MIXTURE_PLACES = re.compile(r"data\.mixture\.\d+\.(shards|reports)")  # as data.shards and data.reports


@dataclass(frozen=True)
class TrainerState:
    """Everything but tensors: `step` optimizer steps are done, batches 0..step-1 are consumed.

    `digest` chains the sample ids of these batches. `spec` and `shards_fingerprint` say what the run was trained on, so
    that its encoder can be exported without its shards; `bank_digest`, the content of the text bank, that it goes on
    with no other. None in a checkpoint from before they were kept, and without a bank. `plan` is that of a run whose
    duration was changed (`training.schedule`), None where `config` says all of it.
    """

    step: int
    digest: str
    config: dict[str, Any]
    selection_fingerprint: str
    world_size: int
    order_version: int
    loss: float | None = None
    spec: SignalSpec | None = None
    shards_fingerprint: str | None = None
    bank_digest: str | None = None
    plan: Plan | None = None

    @staticmethod
    def read(path: Path) -> TrainerState:
        """The state in a checkpoint that has been verified.

        Its digests say that nothing changed since somebody sealed it, not that a run of ours wrote it: every value is
        looked at. Raises CheckpointError that names each that no run writes.
        """
        try:
            values = parse_json(read_bytes(path / STATE))
            mistakes = state_mistakes(values, _named_step(path))
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {path}: {STATE} cannot be read: {error.strerror or error}",
                "nothing was changed: run the same command again when the storage answers, or use another checkpoint",
            ) from None
        except ValueError as error:
            mistakes = [f"no JSON: {error}"]
        if mistakes:
            shown = "; ".join(mistakes[:5]) + (f"; and {len(mistakes) - 5} more" if len(mistakes) > 5 else "")
            raise CheckpointError(
                f"checkpoint {path}: {STATE} says nothing that this release understands ({shown})",
                "use the release that wrote it, or bring it back from a copy; moved out of its folder, the checkpoint "
                "before it is the newest",
            )
        return TrainerState.of(values)

    @staticmethod
    def of(values: dict[str, Any]) -> TrainerState:
        """The state whose values a run of ours has written."""
        spec, plan = values.pop("spec", None), values.pop("plan", None)
        stretches = None if plan is None else tuple((first, total) for first, total in plan)
        return TrainerState(**values, spec=None if spec is None else SignalSpec(**spec), plan=stretches)

    def text(self) -> str:
        """What stands in the file."""
        values = asdict(self)
        if self.plan is None:
            del values["plan"]  # earlier releases do not know the word
        return json.dumps(values, indent=1)

    def write(self, path: Path) -> None:
        (path / STATE).write_text(self.text())


def _named_step(path: Path) -> int | None:
    """The step in the name of a committed checkpoint; None where a copy of it has another name."""
    found = COMMITTED.fullmatch(path.name)
    return None if found is None else int(found[1])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(number): each for number, each in enumerate(value)}
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration with the keys that it lacks, because they were added later, at their defaults."""
    try:
        return json.loads(json.dumps(parse_config(saved).resolved()))
    except UsageError:  # it holds what this release does not know: compared as it stands, and refused
        with contextlib.suppress(UsageError):
            return upgrade(saved)
        return saved


def changed_keys(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (in the checkpoint, now) for every value that differs.

    A key that the checkpoint lacks counts as its default.
    """
    a, b = _flat(_with_defaults(saved)), _flat(current)
    changed = {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}
    encoder, pooling = changed.get("text.encoder"), changed.get("text.pooling")
    if encoder is not None and isinstance(encoder[0], str) and place_encoder(encoder[0]) == encoder[1]:
        del changed["text.encoder"]  # stored before relative folders were made absolute
    if pooling is not None and "text.encoder" not in changed and None in pooling:
        said = TextEncoder(TextConfig.model_validate({**current["text"], "pooling": None})).pooling
        if {word or said for word in pooling} == {said}:
            del changed["text.pooling"]  # said aloud in one of the two, by the model in the other
    return changed


def stored_config(run_dir: Path) -> RunConfig | None:
    """What `config.resolved.json` of a run says; None where the file is absent.

    Raises UserError that names the file where it holds nothing that a run writes, or cannot be read now.
    """
    path = run_dir / CONFIG
    try:
        values = parse_json(read_bytes(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _no_configuration(path, f"cannot be read: {error}") from None
    if not isinstance(values, dict) or not is_shallow(values, DEEPEST):
        raise _no_configuration(path, "holds no configuration")
    try:
        return parse_config(values, str(path))
    except UsageError as error:
        raise _no_configuration(
            path, f"holds no configuration that this release understands: {error.problem}"
        ) from None


def _no_configuration(path: Path, why: str) -> UserError:
    return UserError(f"{path} {why}", "bring it back from a copy; the checkpoints hold their own configuration")


def harmless_keys(config: RunConfig) -> tuple[str, ...]:
    """Dotted keys, or beginnings of some, that may change: those of every run, and those of this run's method."""
    everywhere = set(HARMLESS) - ({"training.micro_batch"} if config.depends_on_micro_batch else set())
    return (*everywhere, *(f"method.{key}" for key in config.method.harmless))


def check_continues(
    state: TrainerState,
    config: RunConfig,
    selection_fingerprint: str,
    order_version: int,
    path: Path,
    level: int = logging.WARNING,
) -> None:
    """Raises UsageError that names every change which would make the rest of the run another run.

    Harmless changes are logged, what they do to the trace at `level`. Duration is judged apart, by
    `checkpoints.duration`.
    """
    current = json.loads(json.dumps(config.resolved()))
    changed = changed_keys(state.config, current)
    harmless = harmless_keys(config)
    harmful = {
        key: pair
        for key, pair in changed.items()
        if not (key.startswith(harmless) or key in DURATION or _MIXTURE_PLACES.fullmatch(key))
    }
    for key, (old, new) in changed.items():
        if key not in harmful and key not in DURATION:
            log.info("resume=%s action=accept key=%s was=%s now=%s", path, key, old, new)
    reasons = [f"{key} was {old!r}, now {new!r}" for key, (old, new) in harmful.items()]
    if state.selection_fingerprint != selection_fingerprint:
        reasons.append(
            f"the selected records differ (fingerprint {state.selection_fingerprint[:12]} was, "
            f"{selection_fingerprint[:12]} now)"
        )
    if state.order_version != order_version:
        reasons.append(f"the data order is version {order_version}, the checkpoint's is {state.order_version}")
    if reasons:
        raise UsageError(
            f"checkpoint {path} belongs to another run: " + "; ".join(reasons),
            "set these back to continue it, or give a new run directory to start afresh",
        )
    if "training.micro_batch" in changed:
        log.log(
            level,
            "resume=%s key=training.micro_batch was=%s now=%s remark=from step %d on sums are taken in another order: "
            "the trace agrees to rounding, no longer bit for bit",
            path, *changed["training.micro_batch"], state.step + 1,
        )  # fmt: skip


def check_bank(state: TrainerState, bank_digest: str | None, path: Path) -> None:
    """Raises UserError when the text bank has another content than the one that the checkpoint was trained with: the
    same reports through the same encoder, but other numbers."""
    if state.bank_digest is None or state.bank_digest == bank_digest:
        return
    now = "no text bank" if bank_digest is None else f"digest {bank_digest[:12]}"
    raise UserError(
        f"checkpoint {path} was trained with another text bank (digest {state.bank_digest[:12]} was, {now} now)",
        "put back the bank that the run began with, or give a new run directory to start afresh",
    )
