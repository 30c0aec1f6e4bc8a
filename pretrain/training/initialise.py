"""A run that starts from weights that exist: another run, one of its checkpoints, or an exported encoder.

Verified, and accounted for by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.integrity import DIGESTS, verify_export
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.load import load_weights

log = logging.getLogger(__name__)

EXPORTED = {"model": "ecg.", "text_head": "text.head.", "text_encoder": "text.transformer."}
"""Weight files of an exported encoder -> the method's names for what is in them."""


@dataclass(frozen=True)
class Initialised:
    """What became of the tensors of the method and of the source, by name.

    loaded from the source; fresh, because the source has none of that name; skipped: in the source, but not used.
    """

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    skipped: tuple[str, ...]


def starting_weights(source: Path) -> dict[str, Tensor]:
    """Method-wide names -> tensors of a run directory (newest verified checkpoint), a checkpoint folder, or an exported
    encoder; every file is verified before it is read. Raises UserError where there is none of them, or one is not as it
    was written.
    """
    if (source / DIGESTS).is_file():
        verify_export(source)
        return {
            prefix + name: tensor
            for stem, prefix in EXPORTED.items()
            if (source / f"{stem}.safetensors").is_file()
            for name, tensor in load_file(source / f"{stem}.safetensors").items()
        }
    if files.checkpoints_folder(source).is_dir():
        sound = next((c.path for c in reversed(files.list_checkpoints(source)) if not files.problems(c.path)), None)
        if sound is None:
            raise UserError(
                f"init_from: run {source} has no verified checkpoint",
                "train it to its first checkpoint, or name another start",
            )
        return load_weights(sound)
    if (source / files.MANIFEST).is_file():
        return load_weights(source)
    raise UserError(
        f"init_from: {source} is no run directory, no checkpoint and no exported encoder",
        "give the --run-dir of a run, a folder step-... of its checkpoints, "
        "or the folder that `cardialign export` or `registry pull` wrote",
    )


def initialise(method: nn.Module, source: str, fresh: Sequence[str] = ()) -> Initialised:
    """Load what `source` has into the method, by name.

    The encoder (`ecg.`) must be complete: random weights there are an error.

    fresh: prefixes of tensors that are left as they are, although the source may have them (`init_fresh` of the
    recipe).
    Raises UserError naming the encoder's tensors that are missing or of another shape, and fresh prefixes that fit
    nothing.
    """
    weights = starting_weights(Path(source).expanduser())
    own = method.state_dict()
    unknown = [prefix for prefix in fresh if not any(name.startswith(prefix) for name in own)]
    if unknown:
        raise UserError(
            f"init_fresh: no tensor of the method begins with {', '.join(unknown)}",
            f"prefixes there are: {', '.join(sorted({name.split('.')[0] + '.' for name in own}))}",
        )
    wanted = {name: tensor for name, tensor in own.items() if not name.startswith(tuple(fresh))}
    _check_encoder(wanted, weights, source)
    loaded = {name: weights[name] for name, tensor in wanted.items() if _fits(weights, name, tensor)}
    method.load_state_dict(loaded, strict=False)
    result = Initialised(
        source,
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
    return result


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
