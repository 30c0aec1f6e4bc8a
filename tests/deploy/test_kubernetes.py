"""What lies in `deploy/` for Kubernetes: an API server would take every field, and the pods keep our rules."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cardialign.cluster.runs.driver import STOP_CHECKPOINT_SECONDS
from cardialign.data_shards.shown import SECRET_NAME
from tests.support.kubernetes import judge, objects, pods
from tests.support.readme import ROOT

DEPLOY = ROOT / "deploy"
MANIFESTS = sorted([*DEPLOY.glob("kuberay/*.yaml"), DEPLOY / "mlflow" / "kubernetes.yaml"])
EVERY = [(path, one) for path in MANIFESTS for one in objects(path)]
IDS = [f"{path.parent.name}-{path.stem}-{one['kind']}" for path, one in EVERY]


def of_kind(kind: str) -> dict[str, Any]:
    return copy.deepcopy(next(one for _, one in EVERY if one["kind"] == kind))


NAMED = zip(EVERY, IDS, strict=True)
CORE = [pytest.param(one, id=name) for (_, one), name in NAMED if "ray.io" not in one["apiVersion"]]


@pytest.mark.parametrize("manifest", CORE)
def test_core_objects_hold_nothing_unknown(manifest: dict[str, Any]) -> None:
    judge(manifest, None)


def test_rays_resources_are_those_that_the_operator_defines(definitions: Path) -> None:
    ours = [one for _, one in EVERY if one["apiVersion"].startswith("ray.io/")]
    assert {one["kind"] for one in ours} == {"RayJob", "RayCluster"}
    for one in ours:
        judge(one, definitions)


def _misspelled(job: dict[str, Any]) -> None:
    job["spec"]["backofLimit"] = job["spec"].pop("backoffLimit")


def _deep(job: dict[str, Any]) -> None:
    next(pods(job["spec"]["rayClusterSpec"]))["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True


def _typed(job: dict[str, Any]) -> None:
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "two"


@pytest.mark.parametrize("spoil", [_misspelled, _deep, _typed])
def test_a_field_that_the_operator_does_not_know_is_found(
    spoil: Callable[[dict[str, Any]], None], definitions: Path
) -> None:
    job = of_kind("RayJob")
    spoil(job)
    with pytest.raises(jsonschema.ValidationError):
        judge(job, definitions)


@pytest.mark.parametrize(("path", "manifest"), EVERY, ids=IDS)
def test_every_pod_is_locked_in(path: Path, manifest: dict[str, Any]) -> None:
    """The restricted profile of Kubernetes' pod security standards, a read-only root, and no token of the API."""
    for pod in pods(manifest):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret"}
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]} and not own.get("privileged")
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            written = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert written >= {"/tmp", "/home/cardialign"}, "what the image writes to"
            assert {mount["name"] for mount in container["volumeMounts"]} <= {one["name"] for one in pod["volumes"]}


@pytest.mark.parametrize(("path", "manifest"), EVERY, ids=IDS)
def test_no_secret_is_written_down(path: Path, manifest: dict[str, Any]) -> None:
    assert manifest["kind"] != "Secret"
    for pod in pods(manifest):
        for variable in (one for container in pod["containers"] for one in container.get("env", [])):
            named = variable["name"] != "SECRETS"  # the folder of files
            if (named and SECRET_NAME.search(variable["name"])) or variable["name"].endswith("USERNAME"):
                assert set(variable["valueFrom"]) == {"secretKeyRef"}, variable["name"]
    assert not re.search(r"://[^/\s]*:[^/\s]*@", path.read_text()), "a password in an address"


def test_the_job_and_the_cluster_that_stays_are_alike() -> None:
    job, cluster = of_kind("RayJob"), of_kind("RayCluster")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and cluster["spec"]["rayVersion"] == pinned[1]
    queue = "kueue.x-k8s.io/queue-name"
    assert job["metadata"]["labels"][queue] and job["spec"]["suspend"] is True
    assert job["spec"]["shutdownAfterJobFinishes"] is True, "Kueue wants it"


def test_a_job_that_lost_its_cluster_has_what_it_needs_to_go_on() -> None:
    job = of_kind("RayJob")
    assert job["spec"]["backoffLimit"] > 0 and job["spec"]["submitterConfig"]["backoffLimit"] > 0
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["keep-going", "cardialign", "pretrain"], "exit code 75 continues"
    run_dir = Path(words[words.index("--run-dir") + 1])
    claim = next(one for _, one in EVERY if one["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(job["spec"]["rayClusterSpec"]):
        container = pod["containers"][0]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        shared = next(one for one in pod["volumes"] if one["name"] == mounts["/shared"])
        assert shared["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        program, runs, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "ask-to-stop" and run_dir.parent == Path(runs)
        assert STOP_CHECKPOINT_SECONDS < int(seconds) < pod["terminationGracePeriodSeconds"]
        assert "/dev/shm" in mounts


def test_the_job_asks_for_what_its_cluster_has() -> None:
    """Its words are those of the command, and there is one GPU for every worker."""
    from cardialign.cluster.main import build_parser

    job = of_kind("RayJob")
    asked = build_parser("pretrain").parse_args(shlex.split(job["spec"]["entrypoint"])[2:])
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert asked.workers.most == group["replicas"] * int(limits["nvidia.com/gpu"]) and asked.device == "gpu"
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0", "no worker beside the driver"


def test_every_pod_of_a_run_falls_under_the_network_policy() -> None:
    policy = next(one for path, one in EVERY if one["kind"] == "NetworkPolicy" and path.parent.name == "kuberay")
    label = policy["spec"]["podSelector"]["matchLabels"]
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    job = of_kind("RayJob")["spec"]
    templates = [job["submitterPodTemplate"], job["rayClusterSpec"]["headGroupSpec"]["template"]]
    templates += [group["template"] for group in job["rayClusterSpec"]["workerGroupSpecs"]]
    assert all(label.items() <= template["metadata"]["labels"].items() for template in templates)


def test_prometheus_reaches_the_metrics_of_a_run() -> None:
    """Served beyond the pod, at a port that the head declares, by a job and by who runs on the cluster that stays."""
    from cardialign.cluster.main import build_parser

    job = of_kind("RayJob")
    asked = build_parser("pretrain").parse_args(shlex.split(job["spec"]["entrypoint"])[2:])
    assert asked.metrics_host == "0.0.0.0"
    for spec in (job["spec"]["rayClusterSpec"], of_kind("RayCluster")["spec"]):
        container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert ports["run-metrics"] == asked.metrics_port and max(map(len, ports)) <= 15, "Kubernetes' own limit"
    policy = next(one for path, one in EVERY if one["kind"] == "NetworkPolicy" and path.parent.name == "kuberay")
    watcher = {"kubernetes.io/metadata.name": "monitoring"}
    let_in = next(
        rule["ports"]
        for rule in policy["spec"]["ingress"]
        if any(one.get("namespaceSelector", {}).get("matchLabels") == watcher for one in rule["from"])
    )
    assert {one["port"] for one in let_in} == {8080, asked.metrics_port}


def test_the_page_of_the_metrics_finds_the_port_by_its_name() -> None:
    page = (DEPLOY / "grafana" / "README.md").read_text()
    found = next(yaml.safe_load(block) for block in re.findall("```yaml\n(.*?)```", page, re.DOTALL) if "_sd_" in block)
    assert found["kubernetes_sd_configs"] == [{"role": "pod"}]
    assert [rule["regex"] for rule in found["relabel_configs"]] == ["run-metrics"]
