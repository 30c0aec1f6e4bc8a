"""What the ranks of a group that hangs are at: their Python stacks, and what the kernel says of their processes.

Each worker leaves a signal handler of C, which writes the stacks of its threads into memory, also where a call of C
holds the interpreter. A task of Ray on its node asks for them and reads /proc: a process that is stopped, or waits for
a disk that does not answer, runs no handler, and a node that mounts a dead disk cannot write there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import WORKERS

log = logging.getLogger(__name__)

ASK = signal.SIGUSR1
WAIT_SECONDS, SETTLED_READS = 10.0, 5
"""How long a process that lives may take to write its stacks, and how often they must read the same: it writes them in
many pieces."""
TASK_SECONDS = 120.0
"""How long all nodes together may take, on which a process is started for it: then the group is ended without."""
MOST_NAMED = 4
PROC = Path("/proc")
STATES = {
    "T": "is stopped (SIGSTOP)",
    "t": "is stopped by a debugger",
    "D": "waits in the kernel, for a disk or a file system",
    "Z": "has died",
    "X": "has died",
}
_offered: list[int] = []


def _name(group: str) -> str:
    return f"cardialign-stacks-{group}"


def offer(group: str) -> None:
    """In a worker: from now on it answers `look_at`. Where the system has no such memory, it writes into its log."""
    file = 2
    if hasattr(os, "memfd_create"):
        file = os.memfd_create(_name(group))
        _offered.append(file)
    faulthandler.register(ASK, file=file, all_threads=True, chain=False)


@dataclass(frozen=True)
class Seen:
    """Of one rank. state: of its process, a letter of ps; "" when nothing could be learnt. text: all that was found."""

    state: str
    text: str

    @property
    def told(self) -> str:
        """What it does, in a few words; "" for a rank that waits for others in an exchange."""
        if not self.state:
            return "gives no answer: nothing could be learnt of it"
        if self.state in STATES:
            return STATES[self.state]
        at = _train_thread(self.text)
        if not at:
            return "wrote no stacks: a call of C stands in it"
        if any("/torch/distributed/" in line for line in at):
            return ""
        ours = next((line for line in at if "/cardialign/" in line), at[0])
        return f"is at {_place(at[0])}" + (f", called by {_place(ours)}" if ours != at[0] else "")


def _train_thread(text: str) -> list[str]:
    """The frames of the thread in which the loop runs, the innermost first."""
    for block in re.split(r"\n(?=Thread 0x|Current thread 0x)", text):
        lines = [line.strip() for line in block.splitlines() if line.startswith("  File ")]
        if any("/training/loop.py" in line for line in lines):
            return lines
    return []


def _place(frame: str) -> str:
    found = re.match(r'File "(.*)", line (\d+) in (.*)', frame)
    return frame if found is None else f"{Path(found[1]).name}:{found[2]} in {found[3]}"


def look_at(pids: Mapping[int, int], group: str) -> dict[int, tuple[str, str]]:
    """rank -> (state, text) of processes of this machine (rank -> pid), as far as they are those of `group`."""
    memories = {rank: _memory(pid, group) for rank, pid in pids.items()}
    for rank, pid in pids.items():
        if memories[rank] is not None and _state(pid) not in STATES:
            with contextlib.suppress(OSError):
                os.kill(pid, ASK)
    found = {}
    deadline = time.monotonic() + WAIT_SECONDS
    for rank, pid in pids.items():
        memory = memories[rank]
        if memory is None:
            found[rank] = ("", f"process {pid} is gone, or is none of this group any more\n")
            continue
        state = _state(pid)
        stacks = "" if state in STATES else _written(memory, deadline)
        found[rank] = (state, _kernel(pid) + "\n" + (stacks or "its Python stacks could not be had\n"))
    return found


def _memory(pid: int, group: str) -> Path | None:
    """Where process `pid` writes its stacks; None for one that is not of `group`."""
    with contextlib.suppress(OSError):
        for link in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(link).startswith(f"/memfd:{_name(group)} "):
                    return link
    return None


def _written(memory: Path, deadline: float) -> str:
    """The stacks, once they do not grow any more."""
    text, same = "", 0
    while same < SETTLED_READS and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            before, text = text, memory.read_text(errors="replace")
            same = same + 1 if text and text == before else 0
        time.sleep(0.1)
    return text


def _state(pid: int) -> str:
    """The letter of ps; "" for a process that is not there."""
    with contextlib.suppress(OSError, IndexError):
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    return ""


def _kernel(pid: int) -> str:
    """What the kernel says of a process and of its threads."""
    lines = []
    with contextlib.suppress(OSError):
        status = (PROC / str(pid) / "status").read_text().splitlines()
        lines += [each for each in status if each.startswith(("Name:", "State:", "Pid:", "Threads:", "VmRSS:"))]
    for task in sorted((PROC / str(pid) / "task").glob("*"), key=lambda path: int(path.name)):
        told = [f"thread {task.name}", _read(task / "comm"), _state_of(task), _read(task / "wchan")]
        lines.append(" ".join(each for each in told if each and each != "0"))
        lines += [f"    {each}" for each in _read(task / "stack").splitlines()]  # for root alone
    return "\n".join(lines) + "\n"


def _state_of(task: Path) -> str:
    return _read(task / "stat").rpartition(")")[2].split()[0] if _read(task / "stat") else ""


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""


def take(run_dir: Path, nodes: Sequence[str], seconds: float = TASK_SECONDS) -> str:
    """In the controller: write the stacks of all ranks beside their logs; in words, which rank hangs and where.

    nodes: of each rank. It never raises: the group is ended anyway.
    """
    notes = {rank: read_json(run_dir / WORKERS / f"rank-{rank}.json") or {} for rank in range(len(nodes))}
    found: dict[int, Seen] = {}
    try:
        found = _ask(notes, nodes, seconds)
    except Exception as error:  # whatever Ray raises of a cluster that is in trouble
        log.warning("stacks=incomplete error=%s", error)
    named, written = [], set[str]()
    for rank, note in notes.items():
        seen = found.get(rank, Seen("", "nothing could be learnt of it: its node gave no answer in time\n"))
        who = f"rank {rank} (process {note.get('pid')} on {note.get('host')})"
        if seen.told:
            named.append(f"{who} {seen.told}")
        path = (run_dir / str(note.get("log") or f"rank-{rank}.log")).with_suffix(".stacks")
        with contextlib.suppress(OSError):
            path.write_text(f"{who} of a group that hung: {seen.told or 'waits for others'}\n\n{seen.text}")
            written.add(str(path.parent.relative_to(run_dir)))
    if not named:
        named = [f"all {len(nodes)} ranks wait in an exchange with the others"]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    where = f"; stacks in {', '.join(sorted(written))}" if written else ""
    return ", ".join(named[:MOST_NAMED]) + more + where


def _ask(notes: Mapping[int, Mapping[str, Any]], nodes: Sequence[str], seconds: float) -> dict[int, Seen]:
    """One task on each other node, which costs no CPU of Ray's; on the controller's own it is done at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked, found, own = [], dict[int, Seen](), ray.get_runtime_context().get_node_id()
    for node in dict.fromkeys(nodes):
        pids = {rank: int(notes[rank]["pid"]) for rank, its in enumerate(nodes) if its == node and "pid" in notes[rank]}
        groups = {str(notes[rank].get("group")) for rank in pids}
        if len(groups) == 1 and node == own:
            found |= {rank: Seen(*told) for rank, told in look_at(pids, groups.pop()).items()}
        elif len(groups) == 1:
            task = ray.remote(num_cpus=0, max_retries=0)(look_at)
            place = NodeAffinitySchedulingStrategy(node, soft=False)
            asked.append(task.options(scheduling_strategy=place).remote(pids, groups.pop()))
    done, _ = ray.wait(asked, num_returns=len(asked), timeout=seconds) if asked else ([], [])
    for each in done:
        try:
            found |= {rank: Seen(*told) for rank, told in ray.get(each).items()}
        except Exception as error:  # of one node; the others say what they have seen
            log.warning("stacks=incomplete error=%s", error)
    return found
