"""The locks name what constraints.txt names, each with the sha256 of its files."""

from __future__ import annotations

import re

import pytest

from tests.packaging.lock import LOCKS, ROOT, locked, pinned

TEXTS = {name: (ROOT / "locks" / f"{name}.lock").read_text() for name in LOCKS}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_the_packages_and_versions_of_the_constraints(name: str) -> None:
    assert list(locked(TEXTS[name])) == pinned((ROOT / "constraints.txt").read_text())[name]


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_has_a_hash_and_no_place(name: str) -> None:
    hashes = locked(TEXTS[name])
    assert all(hashes.values()) and all(re.fullmatch("[0-9a-f]{64}", each) for some in hashes.values() for each in some)
    lines = [line for line in TEXTS[name].splitlines() if not line.startswith("#")]
    assert len(lines) == len(hashes) + sum(map(len, hashes.values())), "nothing else stands in it"
    assert not re.search(r"://|--(?:index|extra|find|trusted)", TEXTS[name])


def test_the_constraints_pin_one_version_of_each_and_what_builds_too() -> None:
    parts = pinned((ROOT / "constraints.txt").read_text())
    assert parts["cpu"] == parts["torch"], "one version, two builds"
    lines = [line for name, some in parts.items() if name != "cpu" for line in some]
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
    assert len(set(names)) == len(names) and {"setuptools", "wheel", "ninja", "torch"} <= set(names)


def test_make_installs_from_the_locks_by_hash_alone() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile[makefile.index("ifdef LOCKED") : makefile.index("else", makefile.index("ifdef LOCKED"))]
    installs = re.findall(r"^.*\binstall\b.*$|^.*\$\(BY_HASH\).*$", recipe, re.MULTILINE)
    assert re.search(r"^BY_HASH := .*--no-deps --require-hashes", makefile, re.MULTILINE)
    assert installs and all("$(BY_HASH)" in line or "--no-deps --no-build-isolation -e ." in line for line in installs)
    assert set(re.findall(r"locks/(\w+)\.lock", recipe)) == {"wheels", "built", "cuda"}
    assert "locks/$(if $(filter cpu,$(LOCKED)),cpu,torch).lock" in recipe
