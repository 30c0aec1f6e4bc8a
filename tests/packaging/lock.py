"""`make lock`: the hashes of every package in `constraints.txt`, as files of `locks/` that pip installs from.

uv (in an environment of its own, beside nothing else) asks the index that it is set up for; every file of a version is
listed, so one lock serves all systems and Pythons for which a wheel exists. It is checked that there is one for every
Python that we name, on Linux x86_64. torch is apart: with hashes pip takes what an index has, however new the wheel of
a folder is, unless the hash of that wheel is the only one. So its CPU build, which is in no index, has a lock of its
own with the hash of the wheel that is installed here.

    python -m tests.packaging.lock UV
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_28"
WITHOUT_WHEEL = ("deepspeed",)
LOCKS = {
    "torch": "torch as an index has it: on Linux a CUDA build, which cuda.lock completes.",
    "cpu": "torch for CPUs, from a folder that pip looks through (find-links): the wheel with which this was written.",
    "wheels": "What `make` installs beside torch: wheels alone, so nothing of a package runs while it is installed.",
    "built": "What comes as source: built in this environment, after wheels.lock and without isolation.",
    "stores": "What the extras s3 and gs add.",
    "cuda": "What torch's CUDA build asks for on Linux; its CPU build needs none of it.",
}
ENTRY = re.compile(r"^([A-Za-z0-9._-]+==[^\s;\\]+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def pinned(text: str) -> dict[str, list[str]]:
    """Lock -> its lines `name==version` of constraints.txt, whose comments begin the parts that `make` leaves out.

    The last of them, what builds the site, is in no lock.
    """
    parts = re.split(r"^# Not installed.*\n", text, flags=re.MULTILINE)
    lines = [[line for line in part.splitlines() if line and not line.startswith("#")] for part in parts]
    built = [line for line in lines[0] if line.partition("==")[0] in WITHOUT_WHEEL]
    torch = [line for line in lines[0] if line.startswith("torch==")]
    wheels = [line for line in lines[0] if line not in (*built, *torch)]
    return {"torch": torch, "cpu": torch, "wheels": wheels, "built": built, "stores": lines[1], "cuda": lines[2]}


def locked(text: str) -> dict[str, list[str]]:
    """`name==version` -> sha256 of each of its files, of the text of a lock."""
    return {entry: re.findall(r"sha256:([0-9a-f]{64})", hashes) for entry, hashes in ENTRY.findall(text)}


def compiled(uv: str, lines: list[str], python: str) -> dict[str, list[str]]:
    """The hashes of `lines`, none of which may lack a wheel for `python` unless it is known to come as source."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted, settings = Path(scratch) / "wanted.txt", Path(scratch) / "uv.toml"
        wanted.write_text("".join(f"{line}\n" for line in lines))
        source = [line.split("==") for line in lines if line.partition("==")[0] in WITHOUT_WHEEL]
        told = '[[dependency-metadata]]\nname = "{}"\nversion = "{}"\nrequires-dist = []\n'
        settings.write_text("".join(told.format(*each) for each in source))
        words = [uv, "pip", "compile", "--config-file", settings, "--no-deps", "--generate-hashes", "--no-header"]
        words += ["--no-annotate", "--no-emit-index-url", "--python-version", python, "--python-platform", PLATFORM]
        words += [] if source else ["--no-build"]
        made = subprocess.run([*words, wanted], check=True, capture_output=True, text=True)
    found = {entry.lower(): hashes for entry, hashes in locked(made.stdout).items()}
    return {line: found[as_indexed(line)] for line in lines}


def as_indexed(line: str) -> str:
    """`name==version` with the name as an index spells it."""
    name, _, version = line.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def from_a_folder(line: str) -> list[str]:
    """sha256 of the installed wheel where its version is a local one, which no index has; pip fetches it again."""
    name, _, version = line.partition("==")
    if importlib.metadata.version(name) == version:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        words = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", scratch, line]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(scratch).iterdir()]


def written(title: str, entries: dict[str, list[str]]) -> str:
    lines = [f"# {title} Written by `make lock` from constraints.txt."]
    for entry, hashes in entries.items():
        lines.append(" \\\n".join([entry, *(f"    --hash=sha256:{each}" for each in sorted(set(hashes)))]))
    return "\n".join(lines) + "\n"


def main(uv: str) -> None:
    for name, lines in pinned((ROOT / "constraints.txt").read_text()).items():
        if name == "cpu":
            entries = {line: from_a_folder(line) for line in lines}
            if not all(entries.values()):
                continue  # no CPU build is installed here: what is written stays
        else:
            entries = [compiled(uv, lines, python) for python in PYTHONS][-1]
        (ROOT / "locks" / f"{name}.lock").write_text(written(LOCKS[name], entries))


if __name__ == "__main__":
    main(sys.argv[1])
