"""The package as a user gets it: built, installed into an environment of its own, and used where the checkout is not.

    python -m tests.packaging.elsewhere [pytest's words]

copies the tests and every page to a temporary folder and runs the tests there against the installed wheel. Dependencies
come from the environment that runs this: the new one sees its site-packages through a `.pth` file. Python reads no
second `.pth` file behind the first, so the editable install of the checkout, which is one, stays out of sight.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = ("cluster", "pretrain", "data_shards", "kernels")
WITHOUT_SOURCES = ("tests/test_house.py", "tests/test_links.py", "tests/packaging")
"""Tests of the checkout itself: its layout, what its pages name, and this package."""
SAME_ANYWHERE = tuple(f"tests/kernels/{room}" for room in ("attention", "contrastive", "patch_embed", "triton_support"))
SAME_ANYWHERE += (
    "tests/pretrain/encoders",
    "tests/pretrain/methods",
    "tests/pretrain/training",
    "tests/data_shards/signal",
)
"""Minutes of arithmetic by modules that are the same file in either form; trainings here run through them."""
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info")


def build_sdist(folder: Path) -> Path:
    """The source distribution of this checkout."""
    program = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    folder.mkdir(parents=True, exist_ok=True)
    name = _printed([sys.executable, "-c", program, folder], cwd=copied_sources(folder / "checkout")).splitlines()[-1]
    return folder / name


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of a source folder or of a source distribution, with the build tools that are installed."""
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    _printed([sys.executable, *words], cwd=folder.parent)
    return next(folder.glob("cardialign-*.whl"))


def copied_sources(folder: Path) -> Path:
    """What a build reads, links kept as links: builds leave files behind, and those do not belong in the checkout."""
    folder.mkdir(parents=True)
    for path in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "constraints.txt", ".containerignore"):
        shutil.copy(ROOT / path, folder)
    for package in ("cardialign", *FLOORS, "deploy", "locks"):
        shutil.copytree(ROOT / package, folder / package, symlinks=True, ignore=_NOT_COPIED)
    return folder


@dataclass(frozen=True)
class Environment:
    """An environment with the wheel and without the checkout."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def variables(self) -> dict[str, str]:
        """Environment variables of a shell in which this environment is active and nothing names the checkout."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return kept | {"PATH": f"{self.bin}{os.pathsep}{kept['PATH']}", "VIRTUAL_ENV": str(self.folder)}

    def run(self, *words: object, cwd: Path, deadline: float = 180) -> str:
        """stdout of a program of this environment; fails with everything it printed."""
        return _printed([self.bin / str(words[0]), *words[1:]], cwd, self.variables(), deadline)


def install(wheel: Path, folder: Path) -> Environment:
    """A new environment in `folder` with the wheel; everything else is that of the environment which runs this."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    _printed([*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel], cwd=folder)
    return Environment(folder)


def copy_tests(folder: Path) -> None:
    """Tests, their configuration, what they deploy and the pages they read; no module of the package."""
    for path in ("pyproject.toml", "Makefile", "constraints.txt", ".containerignore"):
        shutil.copy(ROOT / path, folder)
    for name in ("tests", "deploy", "locks"):
        shutil.copytree(ROOT / name, folder / name, ignore=_NOT_COPIED)
    for page in [*ROOT.glob("*.md"), *(path for package in FLOORS for path in (ROOT / package).rglob("*.md"))]:
        (folder / page.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, folder / page.relative_to(ROOT))


def _printed(words: list[object], cwd: Path, variables: dict[str, str] | None = None, deadline: float = 180) -> str:
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=deadline)
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done.stdout


def main(words: list[str]) -> int:
    """Run the copied tests against the wheel; pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix="cardialign-wheel-") as name:
        folder = Path(name).resolve()
        environment = install(build_wheel(build_sdist(folder / "sdist"), folder / "wheel"), folder / "venv")
        place = folder / "place"
        place.mkdir()
        copy_tests(place)
        found = environment.run("python", "-c", "import cardialign; print(cardialign.__file__)", cwd=place).strip()
        if not Path(found).is_relative_to(environment.folder):
            print(f"cardialign is {found}, not the installed wheel", file=sys.stderr)
            return 1
        print(f"cardialign is {found}", flush=True)
        left_out = [f"--ignore={path}" for path in (*WITHOUT_SOURCES, *SAME_ANYWHERE)]
        pytest = [environment.bin / "python", "-m", "pytest", *left_out, *words]
        return subprocess.run(pytest, cwd=place, env=environment.variables()).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
