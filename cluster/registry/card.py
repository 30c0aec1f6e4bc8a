"""The card of a registered version: what it is, what it was trained on, what was measured, and what it is not for.

It stands as Markdown in the version's description and in `card.md`, as data in `card.json`, both among the artifacts of
its run, and is written anew with each evaluation. `registry show` makes it from the registry as it is now.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.address import absolute_uri
from cardialign.cluster.registry.lookup import (
    DIGEST_TAG,
    LONGEST_TAG,
    Reference,
    digest_of,
    fetch_description,
    resolve,
)
from cardialign.cluster.registry.origin import Origin
from cardialign.cluster.registry.versioned import evidence_tags, finite
from cardialign.cluster.tracking import mlflow_store
from cardialign.cluster.tracking.groups import ungrouped
from cardialign.cluster.tracking.places import send_folder
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import write_json
from cardialign.data_shards.shown import shown
from cardialign.pretrain.export.missing_card import MissingnessCard
from cardialign.pretrain.export.model_card import (
    CONTRACT_KEYS,
    INTENDED,
    LIMITS,
    bullets,
    data_of,
    said,
    sets_table,
    table,
    what_it_is,
)
from cardialign.pretrain.run.integrity import CONTRACT, PROVENANCE, SETTINGS, VerifiedExport

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

FOLDER, TEXT, DATA = "cards", "card.md", "card.json"
BEGIN, END = "<!-- card -->", "<!-- end of card -->"
"""Around the card in a description: what a person wrote beside it stays."""
SBOM_TAG, SIGNED_TAG = "sbom", "signed"
SPEED, DEVICE_FIGURE = "speed/records_per_second", "data/device_wait_seconds"
"""Metrics of a training run (of an earlier release without their group); the second has only a run on CUDA."""


def make_card(client: MlflowClient, version: ModelVersion, parts: VerifiedExport) -> dict[str, Any]:
    """The card as data. Raises UserError where the export's JSON cannot be read."""
    run = client.get_run(version.run_id) if version.run_id else None
    origin = Origin.of(parts, run.data.tags if run else {})
    provenance, evaluations = parts.json(PROVENANCE), evidence_tags(version)
    contract = parts.json(CONTRACT)
    return {
        "name": version.name,
        "version": int(version.version),
        "digest": version.tags.get(DIGEST_TAG, parts.digest),
        "what": what_it_is(parts.json(SETTINGS), provenance),
        "data": data_of(provenance),
        "evaluations": [each for each in evaluations if not each["name"].startswith("missingness:")],
        "missingness": [each for each in evaluations if each["name"].startswith("missingness:")],
        "missing_leads": _missing_leads(parts),
        "contract": {key: contract.get(key) for key in CONTRACT_KEYS},
        "intended_use": list(INTENDED),
        "limits": list(LIMITS),
        "cost": _cost_of(client, run) if run else None,
        "origin": origin.to_dict(),
        "run_id": version.run_id,
        "sbom": version.tags.get(SBOM_TAG),
        "signed": version.tags.get(SIGNED_TAG),
    }


def _missing_leads(parts: VerifiedExport) -> dict[str, Any] | None:
    """What its export says is lost with leads missing; None where it carries no missingness card."""
    card = MissingnessCard.read(parts)
    return None if card is None else {"on": card.on, "points": card.points()}


def _cost_of(client: MlflowClient, run: Run) -> dict[str, float] | None:
    """Worker, core and GPU hours of a training run, and its records per second; None where it logged no speed.

    Each figure of speed holds for the steps since the one before. Ray reserves so many cores for each worker as its
    run logged; a run of before that logged none, and had one.
    """
    batch, workers = finite(run.data.params.get("training.global_batch")), finite(run.data.params.get("workers"))
    speed, device = (
        next((name for name in (key, ungrouped(key)) if name in run.data.metrics), "") for key in (SPEED, DEVICE_FIGURE)
    )
    if batch is None or workers is None or not speed:
        return None
    speeds = sorted(client.get_metric_history(run.info.run_id, speed), key=lambda point: int(point.step))
    speeds = [point for point in speeds if point.value > 0]
    steps = [0, *(int(point.step) for point in speeds)]
    seconds = sum(
        (after - before) * batch / point.value
        for before, after, point in zip(steps[:-1], steps[1:], speeds, strict=True)
    )
    hours, cores = seconds * workers / 3600, finite(run.data.params.get("cpus_per_worker")) or 1.0
    return {
        "hours": seconds / 3600,
        "core_hours": hours * cores,
        "gpu_hours": hours if device else 0.0,
        "records_per_second": steps[-1] * batch / seconds if seconds else 0.0,
    }


def write_card(client: MlflowClient, version: ModelVersion, parts: VerifiedExport) -> None:
    """The card of a version, as files of its run and in its description."""
    card = make_card(client, version, parts)
    text = "\n".join(markdown(card)) + "\n"
    if version.run_id:
        with tempfile.TemporaryDirectory(prefix="card-") as scratch:
            Path(scratch, TEXT).write_text(text, encoding="utf-8")
            write_json(Path(scratch) / DATA, card, indent=1)
            send_folder(client, version.run_id, scratch, f"{FOLDER}/{version_key(version)}")
    described = _beside(version.description or "", text)
    client.update_model_version(version.name, version.version, description=described)


def refresh_card(client: MlflowClient, name: str, version: str, uri: str) -> None:
    """Write the card again from what the registry says now; what keeps it from being written is logged."""
    found = client.get_model_version(name, version)
    try:
        with tempfile.TemporaryDirectory(prefix="card-") as scratch:
            write_card(client, found, fetch_description(client, found, Path(scratch), uri))
    except UserError as error:
        log.warning("card=not-written model=%s version=%s reason=%s", name, version, error)


def read_card(reference: str, tracking_uri: str) -> dict[str, Any]:
    """The card of a registered encoder as the registry says it now. Raises UserError."""
    uri = absolute_uri(tracking_uri)
    client = mlflow_store.open_client(uri, make=False)
    with mlflow_store.speaking(uri, f"does not show {shown(reference)}"):
        version = resolve(client, Reference.parse(reference), uri)
        with tempfile.TemporaryDirectory(prefix="card-") as scratch:
            return make_card(client, version, fetch_description(client, version, Path(scratch), uri))


def version_key(version: ModelVersion) -> str:
    """A folder name for what belongs to one version: names of others may be long, or mean something to a disk."""
    return digest_of([version.name, str(version.version)])[:16]


def _beside(described: str, text: str) -> str:
    """The description with the card in it, no longer than any store takes."""
    before, found, rest = described.partition(BEGIN)
    after = rest.partition(END)[2] if found else ""
    own = [part for part in (before.strip(), after.strip()) if part]
    room = LONGEST_TAG - len("\n\n".join([*own, f"{BEGIN}\n\n{END}"])) - 2
    if room < 200:
        return described
    if len(text) > room:
        cut = f"\n(the rest is in {TEXT})\n"
        text = text[: room - len(cut)].rpartition("\n")[0] + cut
    return "\n\n".join(
        [*([before.strip()] if before.strip() else []), f"{BEGIN}\n{text}{END}", *own[bool(before.strip()) :]]
    )


def markdown(card: Mapping[str, Any]) -> list[str]:
    """The lines of a card. Words of others act neither on Markdown nor on a terminal."""
    return [
        f"# {said(card['name'])}, version {said(card['version'])}",
        "",
        *table("what it is", card["what"]),
        *sets_table(card["data"]),
        *_figures(card["evaluations"], "evaluations, macro AUROC with 95 % interval"),
        *table("signal contract", card["contract"]),
        *bullets("intended use", card["intended_use"]),
        *bullets("limits", card["limits"]),
        *_figures(card["missingness"], "missing leads and samples"),
        *_lost(card["missing_leads"]),
        *_cost(card["cost"]),
        *table(
            "origin",
            {
                **{key: value for key, value in card["origin"].items() if key != "versions"},
                "versions": ", ".join(f"{name} {number}" for name, number in card["origin"]["versions"].items()),
                "encoder_digest": card["digest"],
                "mlflow_run": card["run_id"],
                "signed_with": card["signed"],
                "sbom": card["sbom"],
            },
        ),
    ]


def _figures(evaluations: list[Mapping[str, Any]], title: str) -> Iterator[str]:
    yield from (f"## {title}", "")
    if not evaluations:
        yield from ("not measured", "")
        return
    yield from ("| on | figure | 95 % | records | patients | trained on these |", "|---|---|---|---|---|---|")
    for each in evaluations:
        low, high = each["low"], each["high"]
        interval = "none" if low is None or high is None else f"{low:.3f}-{high:.3f}"
        figure = "none" if each["macro"] is None else f"{each['macro']:.3f}"
        cells = (each["name"], figure, interval, each["n"], each["patients"], each["trained_on"])
        yield f"| {' | '.join(map(said, cells))} |"
    yield ""


def _lost(missing: Mapping[str, Any] | None) -> Iterator[str]:
    if missing is not None:
        yield from table(f"points of macro AUROC lost with leads missing, {said(missing['on'])}", missing["points"])


def _cost(cost: Mapping[str, float] | None) -> Iterator[str]:
    if cost is None:
        yield from ("## cost of training", "", "not measured", "")
        return
    yield from table(
        "cost of training",
        {
            "hours": f"{cost['hours']:.3g}",
            "core_hours": f"{cost['core_hours']:.3g} (cores reserved for the workers)",
            "gpu_hours": f"{cost['gpu_hours']:.3g}",
            "records_per_second": f"{cost['records_per_second']:.4g}",
        },
    )
