"""A run that starts from weights that exist: another run, one of its checkpoints, or an exported encoder.

Verified, and accounted for by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import EncoderConfig, RunConfig
from cardialign.pretrain.config.named import encoder_section
from cardialign.pretrain.encoders.base import EcgEncoder
from cardialign.pretrain.methods.base import Method, method_class
from cardialign.pretrain.run.integrity import CONTRACT, DIGESTS, SETTINGS, read_export
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.condition import newest_sound
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.checkpoints.state import TrainerState

log = logging.getLogger(__name__)

EXPORTED = {"model": "ecg.", "text_head": "text.head.", "text_encoder": "text.transformer.", "scorings": ""}
"""Weight files of an exported encoder -> the method's names for what is in them."""


@dataclass(frozen=True)
class Initialised:
    """What became of the tensors of the method and of the source, by name.

    loaded from the source; fresh, because the source has none of that name; skipped: in the source, but not used.
    """

    source: str
    origin: dict[str, Any]
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """Verified weights by the method's names, and what they were trained as.

    encoder, normalisation and text as the run's configuration says them, sampling_rate in Hz (None: an old checkpoint
    that does not say); origin: what is written down about where they come from.
    """

    weights: dict[str, Tensor]
    encoder: EncoderConfig
    normalisation: str
    sampling_rate: float | None
    origin: dict[str, Any]
    text: Mapping[str, Any] = field(default_factory=dict)


def open_start(source: Path) -> Start:
    """A run directory (newest verified checkpoint), a checkpoint folder, or an exported encoder.

    Every file is verified before it is read. Raises UserError where there is none of them, or one is not as it was
    written.
    """
    if (source / DIGESTS).is_file():
        return _exported(source)
    if (source / files.MANIFEST).is_file() and (source / files.STATE).is_file():
        return _checkpoint(source)
    if files.checkpoints_folder(source).is_dir():
        sound, passed = newest_sound(source)
        said = "".join(f"; {one.said()}" for one in passed)
        if sound is None:
            raise UserError(
                f"init_from: run {source} has no verified checkpoint{said}",
                "train it to its first checkpoint, or name another start",
            )
        if passed:
            log.warning("init_from=%s starts from %s, not from its newest checkpoint%s", source, sound.path.name, said)
        return _checkpoint(sound.path)
    raise UserError(
        f"init_from: {source} is no run directory, no checkpoint and no exported encoder",
        "give the --run-dir of a run, a folder step-... of its checkpoints, or the folder that `cardialign export` or "
        "`registry pull` wrote",
    )


def _exported(source: Path) -> Start:
    export = read_export(source)
    values, contract = export.json(SETTINGS), export.json(CONTRACT)
    weights = {
        prefix + name: tensor
        for stem, prefix in EXPORTED.items()
        if f"{stem}.safetensors" in export.content
        for name, tensor in export.tensors(f"{stem}.safetensors").items()
    }
    encoder = encoder_section(values, str(source / SETTINGS))
    origin = {"export": str(source), "digest": export.digest}
    normalisation, rate = contract.get("normalisation"), contract.get("sampling_rate")
    if not isinstance(normalisation, str) or not isinstance(rate, int | float):
        raise export.wrong(CONTRACT, "it does not say normalisation and sampling_rate")
    return Start(weights, encoder, normalisation, rate, origin, _text_of(values))


def _checkpoint(path: Path) -> Start:
    weights, state = load_weights(path), TrainerState.read(path)
    encoder = encoder_section(state.config, f"configuration of {path}")
    rate = None if state.spec is None else state.spec.sampling_rate
    origin = {"checkpoint": str(path), "step": state.step, "digest": state.digest}
    data = state.config.get("data")
    normalisation = data.get("normalisation") if isinstance(data, dict) else None
    if not isinstance(normalisation, str):
        raise files.CheckpointError(
            f"checkpoint {path}: the configuration in its {files.STATE} does not say data.normalisation",
            "name another checkpoint, or an exported encoder",
        )
    return Start(weights, encoder, normalisation, rate, origin, _text_of(state.config))


def _text_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    text = values.get("text")
    return text if isinstance(text, dict) else {}


def require_start(config: RunConfig) -> None:
    """Raises UsageError where the method needs what an earlier stage learnt, and `init_from` names no run of it."""
    wanted = method_class(config).starts_from
    if wanted and config.init_from is None:
        raise UsageError(
            f"method {config.method.name} goes on from what a run of method {wanted} learnt, and init_from names none",
            f"train {wanted} first, then set init_from to its run directory",
        )


def initialise(method: Method, config: RunConfig, start: Start) -> Initialised:
    """Load what `start` has into the method, by name.

    The encoder (`ecg.`) must be complete and of the same kind: random weights there, or weights that would look at
    other leads, are an error. `config.init_fresh`: prefixes of tensors that are left as they are, although the source
    may have them. Raises UserError naming what differs, the encoder's tensors that are missing or of another shape, and
    fresh prefixes that fit nothing.
    """
    source, own = str(config.init_from), method.state_dict()
    weights, loaded = _matched(method, config, start)
    method.load_state_dict(loaded, strict=False)
    result = Initialised(
        source,
        start.origin,
        tuple(sorted(loaded)),
        tuple(sorted(set(own) - set(loaded))),
        tuple(sorted(set(weights) - set(loaded))),
    )
    log.info(
        "init_from=%s loaded=%d fresh=%s skipped=%s",
        source,
        len(result.loaded),
        list(result.fresh) or "none",
        list(result.skipped) or "none",
    )
    anew = [name for name in result.fresh if name.startswith(LEARNT_ALONG) and not _starts_fresh(name, config)]
    if "export" in start.origin and anew and any(name.startswith("text.") for name in result.loaded):
        log.warning(
            "init_from=%s an exported encoder has no %s: they begin anew; to go on from those that were learnt, start "
            "from the run directory or one of its checkpoints",
            source,
            ", ".join(anew),
        )
    return result


def check_whole_start(method: Method, config: RunConfig, start: Start) -> None:
    """Raises UserError as `initialise` does, and loads nothing: method and start may be on no device."""
    _matched(method, config, start)


def start_of(method: Method, config: RunConfig, spec: SignalSpec) -> Start:
    """What another run may start from once this one, whose method may be on no device, is trained."""
    values = config.resolved()
    origin = {"method": config.method.name}
    return Start(
        method.state_dict(), config.encoder, config.data.normalisation, spec.sampling_rate, origin, _text_of(values)
    )


def _matched(method: Method, config: RunConfig, start: Start) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """The tensors of a start by the method's names, and those of them that it takes. Raises as `initialise`."""
    fresh, own = config.init_fresh, method.state_dict()
    unknown = [prefix for prefix in fresh if not any(name.startswith(prefix) for name in own)]
    if unknown:
        raise UserError(
            f"init_fresh: no tensor of the method begins with {', '.join(unknown)}",
            f"prefixes there are: {', '.join(sorted({name.split('.')[0] + '.' for name in own}))}",
        )
    check_start(method.ecg, config, start)
    weights = method.taken(start.weights, start.encoder)
    wanted = {name: tensor for name, tensor in own.items() if not (fresh and name.startswith(tuple(fresh)))}
    loaded = {name: weights[name] for name, tensor in wanted.items() if _fits(weights, name, tensor)}
    _check_reports(loaded, config, start)
    return weights, loaded


def check_start(ecg: EcgEncoder, config: RunConfig, start: Start) -> None:
    """Raises UserError where the encoder of a start is another one than `ecg`, whose weights may be on no device."""
    _check_kind(ecg, config, start)
    own = {f"ecg.{name}": tensor for name, tensor in ecg.state_dict().items()}
    wanted = {name: tensor for name, tensor in own.items() if not _starts_fresh(name, config)}
    _check_encoder(wanted, start.weights, str(config.init_from))


LEARNT_ALONG = ("logit_scale", "logit_bias")
"""What towers are trained with and no exported encoder holds."""
OF_REPORTS = ("encoder", "pooling", "style")
"""Keys of `text` that say what the weights of the text tower read."""


def _check_reports(loaded: Mapping[str, Tensor], config: RunConfig, start: Start) -> None:
    """Raises UserError where weights of the text tower were made for another report encoder: shapes may be equal."""
    here, there = config.text.model_dump(mode="json"), start.text
    differ = [
        f"text.{key} is {here.get(key)!r}, the source was trained with {there[key]!r}"
        for key in OF_REPORTS
        if key in there and _last_name(here.get(key)) != _last_name(there[key])
    ]
    if differ and any(name.startswith("text.") for name in loaded):
        shown = "\n".join(f"  - {line}" for line in differ)
        raise UserError(
            f"init_from: the report encoder of {config.init_from} is another one:\n{shown}",
            "use the text section of the run that trained it, or take its ECG encoder alone: init_fresh: [text.]",
        )


def _last_name(value: Any) -> Any:
    """The same model may lie in another folder, or be named by its id."""
    return value.rstrip("/").rpartition("/")[2].lower() if isinstance(value, str) else value


MAY_DIFFER = {"dropout", "drop_path", "attention"}
"""Keys of an encoder that change no weight and not what it means."""
OF_PROJECTION = {"embedding_dim", "pooler", "pooling"}
"""Keys that say what the last layer makes of which features: another one is learnt where it starts fresh."""
OF_QUERIES = {"queries", "query_width", "query_heads"}
"""Keys of the pooling by learned queries."""


def _check_kind(ecg: EcgEncoder, config: RunConfig, start: Start) -> None:
    """Weights of equal shapes may still mean something else: other lead groups, patches, signals."""
    here, there = (section.model_dump(mode="json") for section in (config.encoder, start.encoder))
    may_differ = set(MAY_DIFFER)
    if _starts_fresh("ecg.projection.", config):
        may_differ |= OF_PROJECTION
    if _starts_fresh("ecg.pool.", config) or here.get("pooling") != "queries":
        may_differ |= OF_QUERIES
    same_kind = here["name"] == there["name"]  # else all keys differ
    compared = {*here, *there} - may_differ if same_kind else {"name"}
    if _starts_fresh("ecg.", config):
        compared = set()  # nothing of it is taken; what else is taken reads the same signals
    differ = [
        f"encoder.{key} is {here.get(key)!r}, the source was trained with {there.get(key)!r}"
        for key in sorted(compared)
        if here.get(key) != there.get(key)
    ]
    if config.data.normalisation != start.normalisation:
        differ.append(f"data.normalisation is {config.data.normalisation}, the source's was {start.normalisation}")
    if start.sampling_rate is not None and start.sampling_rate != ecg.sampling_rate:
        differ.append(f"the signals have {ecg.sampling_rate:g} Hz, the source's had {start.sampling_rate:g} Hz")
    if differ:
        shown = "\n".join(f"  - {line}" for line in differ)
        raise UserError(
            f"init_from: the encoder of {config.init_from} is another one:\n{shown}",
            "use the encoder section, the normalisation and the sampling rate of the run that trained it"
            + ("; where it only pools otherwise: init_fresh: [ecg.pool., ecg.projection.]" if same_kind else ""),
        )


def _starts_fresh(part: str, config: RunConfig) -> bool:
    return any(part.startswith(prefix) for prefix in config.init_fresh)


def _fits(weights: Mapping[str, Tensor], name: str, tensor: Tensor) -> bool:
    return name in weights and weights[name].shape == tensor.shape


def _check_encoder(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    problems = [
        f"{name} {tuple(tensor.shape)}: "
        + (f"the source has shape {tuple(weights[name].shape)}" if name in weights else "not in the source")
        for name, tensor in wanted.items()
        if name.startswith("ecg.") and not _fits(weights, name, tensor)
    ]
    if problems:
        shown = "\n".join(f"  - {line}" for line in problems[:8])
        more = f"\n  - and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"init_from: {len(problems)} tensors of the encoder cannot be taken from {source}:\n{shown}{more}",
            "use the encoder section of the run that trained them, or list what may start fresh under init_fresh",
        )
