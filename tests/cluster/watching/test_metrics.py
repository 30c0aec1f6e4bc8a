"""What Prometheus finds at `/metrics`: figures under names by its conventions, and nothing else of the run."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cardialign.cluster.watching.metrics import RunCollector, exported
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.figures import RankFigures, write_figures
from cardialign.pretrain.run.files import ATTEMPTS, CONFIG, FAILURE, METRICS

REPORT = "sinus rhythm of Mrs Example"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that has been started twice, in which report text and a path lie about."""
    folder = tmp_path_factory.mktemp("secret-place")
    config = {"name": "tiny", "training": {"steps": 100}, "collapse": {"enabled": True, "min_rank": 2.0}}
    (folder / CONFIG).write_text(json.dumps(config | {"data": {"shards": "/secret-place/shards"}}))
    (folder / METRICS).write_text(json.dumps({"step": 40, "loss": 1.5, "effective_rank": 9.0, "note": REPORT}) + "\n")
    (folder / ATTEMPTS).write_text('{"time": 1.0}\n{"time": 2.0}\n')
    for rank in (0, 1):
        totals = {"steps": 40.0, "seconds": 20.0 + rank, "data": 3.0, "exchange": 2.0 + rank, "own": 14.0}
        write_figures(folder, RankFigures(
            rank, 2, "secret-host", "g.1", 5.0, 40, 100, 16, window_steps=10, window_seconds=5.0, own=4.0, exchange=1.0,
            p50=0.5, p99=0.7 + rank, shard=f"{REPORT}.tar", totals=totals,
        ))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    with exported(run_dir, "tiny", 0) as address:
        assert address is not None and address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.read().decode()


def test_the_figures_are_those_of_the_run_by_rank_and_in_seconds(page: str) -> None:
    samples = {(s.name, s.labels.get("rank")): s.value for f in text_string_to_metric_families(page) for s in f.samples}
    assert samples["cardialign_steps_total", None] == 40 and samples["cardialign_planned_steps", None] == 100
    assert samples["cardialign_loss", None] == 1.5 and samples["cardialign_effective_rank", None] == 9.0
    assert samples["cardialign_effective_rank_floor", None] == 2.0 and samples["cardialign_restarts_total", None] == 1
    assert samples["cardialign_records_per_second", None] == pytest.approx(32.0)  # 16 records in half a second
    assert samples["cardialign_compute_ratio", None] == pytest.approx(0.8)
    assert [samples["cardialign_step_p99_seconds", rank] for rank in "01"] == [0.7, 1.7]
    assert [samples["cardialign_step_seconds_total", rank] for rank in "01"] == [20.0, 21.0]
    assert [samples["cardialign_exchange_wait_seconds_total", rank] for rank in "01"] == [2.0, 3.0]
    assert ("cardialign_effective_negatives", None) not in samples, "what is not known is left out, not 0"


def test_labels_are_run_and_rank_alone_and_nothing_of_the_data_is_told(page: str) -> None:
    families = list(text_string_to_metric_families(page))
    assert {label for f in families for s in f.samples for label in s.labels} == {"run", "rank"}
    for secret in (REPORT, "secret", ".tar", "/"):
        assert secret not in "".join(line for line in page.splitlines() if not line.startswith("# ")), secret


def test_names_follow_the_conventions(page: str) -> None:
    """https://prometheus.io/docs/practices/naming: a prefix, base units at the end, `_total` on counters alone."""
    for family in text_string_to_metric_families(page):
        assert family.name.startswith("cardialign_") and family.documentation
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
        for unit in ("milliseconds", "minutes", "percent", "share"):
            assert unit not in family.name


def test_a_taken_port_is_an_error_with_a_way_out_and_the_server_is_gone_with_the_run(run_dir: Path) -> None:
    with exported(run_dir, "tiny", 0) as address:
        assert address is not None
        port = int(address.split(":")[2].split("/")[0])
        with pytest.raises(UserError, match=f"127.0.0.1:{port}") as caught, exported(run_dir, "other", port):
            pass
    assert "--metrics-port" in caught.value.remedy
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=2)
    with pytest.raises(UserError, match=r"no\.such\.host"), exported(run_dir, "tiny", 0, "no.such.host.invalid"):
        pass
    with exported(run_dir, "tiny", None) as unasked:
        assert unasked is None


def test_a_failure_is_a_figure_and_never_its_text(run_dir: Path) -> None:
    (run_dir / FAILURE).write_text(json.dumps({"type": "DataError", "problem": REPORT, "remedy": "", "rank": 0}))
    registry = CollectorRegistry()
    registry.register(RunCollector(run_dir, "tiny"))
    text = generate_latest(registry).decode()
    assert 'cardialign_failed{run="tiny"} 1.0' in text and REPORT not in text


def test_a_run_that_cannot_serve_its_metrics_says_so_before_it_changes_anything(
    cardialign: Callable[..., Any], tmp_path: Path
) -> None:
    words = ("pretrain", "--recipe", "cardialign-demo", "--shards", tmp_path, "--run-dir", tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = cardialign(*words, "--metrics-port", port)
    assert answer.code == 1 and f"127.0.0.1:{port}" in answer.json["problem"]
    assert "--metrics-port" in answer.json["remedy"] and not (tmp_path / "run").exists()
    assert cardialign(*words, "--metrics-port", 70_000).code == 2
    unset = cardialign(*words, "--metrics-port", 0, "--metrics-host", "")
    assert unset.code == 2 and "--metrics-host is empty" in unset.json["problem"], "it is not opened to everyone"
    alone = cardialign(*words, "--metrics-host", "0.0.0.0")
    assert alone.code == 2 and "--metrics-host 0.0.0.0 serves nothing without a port" in alone.json["problem"]
