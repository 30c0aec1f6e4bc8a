"""CardiAlign: ECG encoders pretrained against their clinical reports.

What users write is `import cardialign`; the rooms behind it may move.

    shards = cardialign.open_shards("work/shards")
    encoder = cardialign.load_encoder("work/run/export")
    embedding = encoder.embed(shards.read_record(7).millivolts(), sampling_rate=500)

Every name is imported when it is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cardialign.cluster.runs.lifecycle import run as train
    from cardialign.data_shards.build.build import SetPlan, build_shards
    from cardialign.data_shards.errors import UserError
    from cardialign.data_shards.record import SignalSpec
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.data_shards.signal.plot import draw_ecg
    from cardialign.data_shards.sources import open_source
    from cardialign.pretrain.config.load import load_config as load_recipe
    from cardialign.pretrain.evaluation.zero_shot import evaluate_zero_shot as evaluate
    from cardialign.pretrain.export.from_run import export_run as export
    from cardialign.pretrain.export.opening import open_encoder as load_encoder

    open_shards = ShardSet.open

if os.environ.get("CARDIALIGN_OFFLINE", "") not in ("", "0"):  # in every process that is ours, workers too
    import_module("cardialign.data_shards.offline").stay_offline()

NAMES = {
    "SetPlan": "cardialign.data_shards.build.build:SetPlan",
    "SignalSpec": "cardialign.data_shards.record:SignalSpec",
    "UserError": "cardialign.data_shards.errors:UserError",
    "open_source": "cardialign.data_shards.sources:open_source",
    "build_shards": "cardialign.data_shards.build.build:build_shards",
    "open_shards": "cardialign.data_shards.shard_set.shard_set:ShardSet.open",
    "draw_ecg": "cardialign.data_shards.signal.plot:draw_ecg",
    "load_recipe": "cardialign.pretrain.config.load:load_config",
    "train": "cardialign.cluster.runs.lifecycle:run",
    "export": "cardialign.pretrain.export.from_run:export_run",
    "load_encoder": "cardialign.pretrain.export.opening:open_encoder",
    "evaluate": "cardialign.pretrain.evaluation.zero_shot:evaluate_zero_shot",
}
"""Public name -> "module:attribute". `pretrain` is a room, so the verb is `train`."""

GOING: dict[str, tuple[str, str]] = {}
"""Public name that will go -> (what to write instead, the release that takes it away). It stays in NAMES until then."""

__all__ = [
    "SetPlan",
    "SignalSpec",
    "UserError",
    "build_shards",
    "draw_ecg",
    "evaluate",
    "export",
    "load_encoder",
    "load_recipe",
    "open_shards",
    "open_source",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("cardialign.cluster.environment.versions").version("cardialign")
    if name not in NAMES:
        raise AttributeError(f"module 'cardialign' has no attribute {name!r}; it has {', '.join(__all__)}")
    if name in GOING:
        import_module("warnings").warn(
            f"cardialign.{name} goes in {GOING[name][1]}: write {GOING[name][0]}", DeprecationWarning, stacklevel=2
        )
    thing_at = import_module("cardialign.data_shards.plugins").thing_at
    arguments = import_module("cardialign.arguments")
    with arguments.needed_by(name):
        found = arguments.checked(name, thing_at(NAMES[name]))
    if name not in GOING:  # that is told whenever it is taken
        globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*NAMES, *(name for name in globals() if name.startswith("__"))})
