"""A real Slurm that a test starts and ends: controller, munge, and a `slurmd` on each of one or two hosts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cardialign.cluster.drills.patience import Patience
from tests.support.hosts import Host, found, hosts, told

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
CONF = """
ClusterName=test
SlurmctldHost=node1(10.77.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """The controller is on the first host."""

    hosts: tuple[Host, ...]

    def run(self, *words: object) -> str:
        """stdout of a command on the first host."""
        return self.hosts[0].run(*words)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def told(self) -> str:
        return told(self.hosts[0].folder)


@contextlib.contextmanager
def slurm(environment: dict[str, str], *, nodes: int = 1, cpus: int = 2) -> Iterator[Slurm]:
    """A cluster of `nodes` with `cpus` each; skips the test where none can run."""
    if missing := [program for program in PROGRAMS if found(program) is None]:
        pytest.skip(f"a Slurm of this machine needs {', '.join(missing)} (Debian: slurm-wlm, munge)")
    with hosts(environment, nodes) as made:
        folder = made[0].folder
        _write(folder, nodes, cpus)
        for host in made:
            host.environment["SLURM_CONF"] = str(folder / "slurm.conf")
        cluster = Slurm(made)
        files = [f"--{kind}-file={folder / kind}" for kind in ("pid", "seed", "log")]
        cluster.run("munged", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket", *files)
        cluster.run("slurmctld")
        for number, host in enumerate(made, start=1):
            host.run("slurmd", "-N", f"node{number}")
        patience = Patience(60)
        while cluster.run("sinfo", "-h", "-N", "-o", "%T").split() != ["idle"] * nodes:
            assert not patience.over(), cluster.told()
            time.sleep(0.5)
        yield cluster


def _write(folder: Path, nodes: int, cpus: int) -> None:
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    names = range(1, nodes + 1)
    lines = [f"NodeName=node{n} NodeAddr=10.77.0.{n} NodeHostname=node{n} CPUs={cpus}" for n in names]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, nodes="\n".join(lines)))
