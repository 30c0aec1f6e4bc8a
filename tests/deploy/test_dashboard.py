"""Every panel of the dashboard on a real Prometheus that scrapes a real run: what it shows is what the run's files say.

Grafana itself is not run: here its part is done by hand, which is to put the variables into the queries, to ask for a
range, and to name each line by its legend.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import WORKERS
from cardialign.pretrain.run.trace import read_trace
from tests.support.mlflow_server import child, wait_for
from tests.support.processes import free_port
from tests.support.readme import ROOT, block_with
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(10800)]
GRAFANA = ROOT / "deploy" / "grafana"
STEPS, BATCH, EVERY, RANKS = 200, 16, 20, ("0", "1")
PEAK_TFLOPS = 0.08
"""Of one core with AVX2, as `plan` has it."""
Lines = dict[str, list[tuple[float, float]]]
"""Legend -> (time, value) of each point, in order."""


@dataclass(frozen=True)
class Prometheus:
    address: str

    def ask(self, path: str, **words: object) -> Any:
        asked = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(words, doseq=True)}"
        with urllib.request.urlopen(asked, timeout=30) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]


@dataclass(frozen=True)
class Watched:
    """A run that has ended, and the Prometheus that watched it. kill: when a worker was killed."""

    prometheus: Prometheus
    run_dir: Path
    begin: float
    kill: float
    end: float

    def lines(self, panel: dict[str, Any], *, first: int = 0, more: int = 0, step: int = 1) -> Lines:
        """What Grafana would draw of the queries of a panel, or of an annotation, from the first to `more` seconds."""
        names = self.prometheus.ask("label/run/values", **{"match[]": "cardialign_planned_steps"})
        chosen = "(" + "|".join(re.sub(r"[$^*{}\[\]'+?.()|\\]", r"\\\\\g<0>", name) for name in names) + ")"
        made: Lines = {}
        for target in panel.get("targets", [panel]):
            legend = target.get("legendFormat") or target["titleFormat"]
            found = self.prometheus.ask(
                "query_range",
                query=target["expr"].replace("$run", chosen),
                start=self.begin + first,
                end=self.end + more,
                step=step,
            )
            for series in found["result"]:
                line = re.sub(r"\{\{(\w+)\}\}", lambda name, of=series: of["metric"][name[1]], legend)
                assert line not in made, f"{panel.get('title')}: two lines are called {line!r}"
                made[line] = [(float(when), float(value)) for when, value in series["values"]]
        return made


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """As `deploy/grafana/README.md` sets it up, but for the pace."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    shutil.copy(GRAFANA / "alerts.yaml", folder)
    block = block_with("scrape_configs", "yaml", "deploy/grafana/README.md")
    assert "HOST:9464" in block and "15s" in block
    text = "global: {evaluation_interval: 1s}\n" + block.replace("HOST:9464", target).replace("15s", "1s")
    (folder / "prometheus.yml").write_text(text)
    port = free_port()
    words = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/series"]
    with child([*words, f"--web.listen-address=127.0.0.1:{port}"], folder / "prometheus.log", {}) as process:
        wait_for(f"http://127.0.0.1:{port}/-/ready", process, folder / "prometheus.log")
        yield Prometheus(f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def watched(banked_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """200 steps of two workers, one of which is killed in the middle."""
    folder, port = tmp_path_factory.mktemp("watched"), free_port()
    run_dir = folder / "run"
    words = [sys.executable, "-m", "cardialign", "pretrain", "--recipe", "cardialign-demo", "--workers", "2"]
    words += ["--shards", banked_shards, "--run-dir", run_dir, "--metrics-port", str(port), "--device", "cpu"]
    words += ["--peak-tflops", str(PEAK_TFLOPS)]
    own = [*SMALL, f"training.steps={STEPS}", f"training.checkpoint_every={EVERY}", "collapse.enabled=true"]
    words += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db"] + [part for one in own for part in ("--set", one)]
    with prometheus(folder, f"127.0.0.1:{port}") as server:
        log = folder / "run.log"
        for _ in range(5):
            begin = time.time()
            with log.open("w") as stream:
                process = subprocess.Popen(list(map(str, words)), stdout=stream, stderr=stream, cwd=folder)
            try:
                while len(read_trace(run_dir)) < STEPS // 2 and process.poll() is None and time.time() < begin + 600:
                    time.sleep(0.1)
                if "a local Ray could not be started" in log.read_text():
                    continue  # Ray gives its node 30 s, which a busy machine may need
                note = read_json(run_dir / WORKERS / "rank-1.json")
                assert note is not None, log.read_text()[-4000:]
                psutil.Process(note["pid"]).kill()
                kill = time.time()
                assert process.wait(timeout=500) == 0, log.read_text()[-4000:]
                yield Watched(server, run_dir, begin, kill, time.time())
                return
            finally:
                process.kill()
                process.wait()
        raise AssertionError(log.read_text()[-4000:])


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((GRAFANA / "dashboard.json").read_text())


@pytest.fixture(scope="module")
def drawn(watched: Watched, dashboard: dict[str, Any]) -> dict[str, Lines]:
    """Title of a panel -> its lines."""
    return {panel["title"]: watched.lines(panel) for panel in dashboard["panels"]}


def only(lines: Lines, begins: str = "", ends: str = "") -> dict[float, float]:
    """Time -> value of the one line that is called so."""
    (points,) = [points for name, points in lines.items() if name.startswith(begins) and name.endswith(ends)]
    return dict(points)


def test_every_panel_draws_what_its_title_promises_and_every_rule_can_be_evaluated(
    drawn: dict[str, Lines], watched: Watched
) -> None:
    one, ranks = [""], [f"rank {rank}" for rank in RANKS]
    promised: dict[str, list[str]] = dict.fromkeys(drawn, one)
    promised["Where the time goes"] = ["compute", "data", "exchange", "straggler", "checkpoint"]
    promised["Step by rank"] = [f"{word} {rank}" for word in ("p50", "p99") for rank in ranks]
    promised["Own work by rank"] = promised["Waiting in collectives by rank"] = ranks
    promised["Data by rank"] = [f"{word} {rank}" for word in ("waits", "reads", "decodes") for rank in ranks]
    promised["Effective rank"] = ["", "floor"]
    promised["Checkpoints"] = ["pause", "planned every", "age"]
    for title, lines in drawn.items():
        named = [re.sub(r"cardialign-demo 127\.0\.0\.1:\d+", "", name) for name in lines]
        assert sorted(" ".join(name.split()) for name in named) == sorted(promised[title]), title
        for name, points in lines.items():
            drawable = [value for _, value in points if math.isfinite(value)]
            assert len(drawable) > 10 and min(drawable) >= 0, f"{title}: {name}"
    rules = [rule for group in watched.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 7 and {rule["health"] for rule in rules} == {"ok"}


def test_step_and_loss_are_those_of_the_trace(drawn: dict[str, Lines], watched: Watched) -> None:
    step, loss = only(drawn["Step"]), only(drawn["Loss"])
    trace = {row["step"]: row["loss"] for row in read_trace(watched.run_dir)}
    assert sorted(trace) == list(range(1, STEPS + 1))
    for when, value in loss.items():
        assert value == trace[round(step[when] * STEPS / 100)]
    assert max(step.values()) == 100 and min(step[when] for when in step if when > watched.kill) >= 100 * EVERY / STEPS


def test_pace_checkpoints_and_the_time_to_the_end_agree(drawn: dict[str, Lines], watched: Watched) -> None:
    rate, step, stood = (only(drawn[title]) for title in ("Records per second", "Step", "Last step"))
    still = [when for when, seconds in stood.items() if when in rate and seconds > 90]
    assert all(rate[when] == 0 for when in still), "nothing is drawn of the pace before while the run stands"
    moving = [when for when, value in rate.items() if value > 0]
    for when, seconds in only(drawn["To the end"]).items():
        if rate.get(when, 0) > 0:
            assert seconds == pytest.approx((STEPS - step[when] * STEPS / 100) * BATCH / rate[when], rel=1e-6, abs=1e-6)
    before = [when for when in moving if when < watched.kill]
    done = (step[before[-1]] - step[before[0]]) * STEPS / 100
    measured = done * BATCH / (before[-1] - before[0])
    assert rate[before[-1]] == pytest.approx(measured, rel=0.4), "the pace is that at which the steps came"
    every, pause, age = (only(drawn["Checkpoints"], word) for word in ("planned every", "pause", "age"))
    for when in moving:
        assert every[when] == pytest.approx(EVERY * BATCH / rate[when], rel=0.01)
    assert age == only(drawn["Newest checkpoint"]) and max(pause.values()) < max(every.values())
    after = [when for when in age if when > watched.kill]
    assert sum(age[b] < age[a] for a, b in itertools.pairwise(after)) >= 2, "a commit makes the newest one young"


def test_a_killed_worker_is_a_restart_and_a_mark_at_every_zoom(
    drawn: dict[str, Lines], watched: Watched, dashboard: dict[str, Any]
) -> None:
    restarts = only(drawn["Restarts"])
    assert {value for when, value in restarts.items() if when < watched.kill} == {0}
    assert restarts[max(restarts)] == 1
    (marks,) = dashboard["annotations"]["list"]
    for phase in range(60):  # Grafana asks an annotation once in 60 s
        found = watched.lines(marks, first=phase, more=120, step=60)
        assert found, f"the restart falls between two of the questions that begin at {phase} s"
        assert all(watched.kill < when < watched.end + 120 for points in found.values() for when, _ in points)


def test_the_share_of_the_peak_follows_the_pace(drawn: dict[str, Lines]) -> None:
    share, rate = only(drawn["Share of the peak (MFU), where that is known"]), only(drawn["Records per second"])
    per_record = [share[when] / rate[when] for when in share if rate.get(when, 0) > 0]
    assert per_record and max(per_record) == pytest.approx(min(per_record), rel=1e-6)
    flop = per_record[0] * len(RANKS) * PEAK_TFLOPS * 1e12
    assert 1e6 < flop < 1e9, "a small encoder: some MFLOP a record and pass"


def test_the_shares_of_the_time_are_the_whole(drawn: dict[str, Lines]) -> None:
    shares = [dict(points) for points in drawn["Where the time goes"].values()]
    assert len({tuple(share) for share in shares}) == 1
    for when in shares[0]:
        assert sum(share[when] for share in shares) == pytest.approx(1, abs=1e-6)
    for rank in (f"rank {rank}" for rank in RANKS):
        own, waits = (only(drawn[title], ends=rank) for title in ("Own work by rank", "Waiting in collectives by rank"))
        data = only(drawn["Data by rank"], "waits", rank)
        whole = [own[when] + waits[when] + data[when] for when in own if math.isfinite(own[when])]
        assert min(whole) > 0.5 and max(whole) < 1.05, "the rest is pauses; a rate over a restart is an estimate"
        p50, p99 = (only(drawn["Step by rank"], word, rank) for word in ("p50", "p99"))
        assert all(p50[when] <= p99[when] for when in p50)


def test_the_figures_of_the_embeddings_are_possible_ones(drawn: dict[str, Lines]) -> None:
    floor, rank = only(drawn["Effective rank"], "floor"), only(drawn["Effective rank"], "cardialign-demo")
    assert all(1 <= floor[when] < value <= BATCH for when, value in rank.items()), "RankMe of 16 rows is 16 at most"
    assert all(0 < value <= BATCH - 1 for value in only(drawn["Effective negatives"]).values())
    assert set(only(drawn["Stalled"]).values()) <= {0, 1}
