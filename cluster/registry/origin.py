"""Where an encoder comes from, in the words of its export and of its MLflow run: data, order of the records, code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cardialign.cluster.environment.versions import CHANGED
from cardialign.cluster.registry.lookup import digest_of
from cardialign.data_shards.shown import shown
from cardialign.pretrain.run.integrity import PROVENANCE, SETTINGS, VerifiedExport

COMMITS = ("git.commit", "mlflow.source.git.commit")
"""Tags of a run that name the commit of its code: ours, and MLflow's own."""
_AGAIN = "train with this release and `cardialign pretrain --register`, or export the run again and register that"
_REMEDIES = {
    "recipe": _AGAIN,
    "shards_fingerprint": _AGAIN,
    "order_digest": _AGAIN,
    "commit": "train from a git checkout; for an installed wheel set the tag git.commit of MLflow run {run}",
    "versions": _AGAIN,
}
_COMMIT_FIRST = "commit the changes and train again from that commit; or --force REASON, which is recorded"
WORDS = {
    "recipe": "the recipe",
    "shards_fingerprint": "the fingerprint of the shards",
    "order_digest": "the digest of the records in their order",
    "commit": "the commit of the code",
    "versions": "the versions of the packages",
}


@dataclass(frozen=True)
class Origin:
    """recipe: its name and the sha256 of the whole configuration; order_digest: of every record as it was consumed;
    commit: of the code; versions: of the packages that trained. "" or {} for what is not known."""

    recipe: str = ""
    recipe_digest: str = ""
    shards_fingerprint: str = ""
    order_digest: str = ""
    commit: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: VerifiedExport, run_tags: Mapping[str, str]) -> Origin:
        """Raises UserError where the export's own JSON cannot be read."""
        config, provenance = parts.json(SETTINGS), parts.json(PROVENANCE)
        config.pop("model_type", None)  # for transformers: the recipe is the same without it
        training, versions = provenance.get("training"), provenance.get("versions")
        training = training if isinstance(training, dict) else {}
        versions = versions if isinstance(versions, dict) else {}
        commit = next((run_tags[tag] for tag in COMMITS if run_tags.get(tag)), "")
        return cls(
            _word(config.get("name")),
            digest_of(config) if config.get("name") else "",
            _word(training.get("shards_fingerprint")),
            _word(training.get("digest")),
            _word(commit),
            {_word(name): _word(number) for name, number in versions.items()},
        )

    def missing(self, run_id: str) -> list[tuple[str, str]]:
        """What is not known, and how to get it."""
        found = [
            (f"{words} is not known", _REMEDIES[name].format(run=run_id or "(it has none)"))
            for name, words in WORDS.items()
            if not getattr(self, name)
        ]
        if self.commit.endswith(CHANGED):
            commit = shown(self.commit.removesuffix(CHANGED))
            what = f"the code that ran was changed since commit {commit}: what it was is not known"
            found.append((what, _COMMIT_FIRST))
        return found

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "versions": dict(self.versions)}


def _word(value: Any) -> str:
    return value[:200] if isinstance(value, str) else ""
