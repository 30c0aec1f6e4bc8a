"""What is built from the checkout holds the package, all of it and nothing else, and works away from the checkout."""

from __future__ import annotations

import json
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.elsewhere import FLOORS, ROOT, Environment, build_sdist, build_wheel, copied_sources, install

DATA = (
    "cardialign/py.typed",
    "cardialign/pretrain/recipes/cardialign-base.yaml",
    "cardialign/pretrain/prompts/ptb-xl-super-v1.yaml",
    "cardialign/pretrain/protocols/merl-v1.yaml",
    "cardialign/data_shards/sources/template.py",
)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(tmp_path_factory.mktemp("package") / "sdist")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    return build_wheel(copied_sources(folder / "checkout"), folder / "wheel")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    return install(wheel, tmp_path_factory.mktemp("package") / "venv")


def package_files(wheel: Path) -> dict[str, bytes]:
    """Files of the package in a wheel, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def checked_out() -> dict[str, bytes]:
    """Files of the package in the checkout under the names they have when installed; pages are not shipped."""
    floors = {f"cardialign/{floor}": ROOT / floor for floor in FLOORS}
    own = {f"cardialign/{path.name}": path.read_bytes() for path in (ROOT / "cardialign").iterdir() if path.is_file()}
    return own | {
        f"{name}/{path.relative_to(folder)}": path.read_bytes()
        for name, folder in floors.items()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".md", ".pyc")
    }


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    files, expected = package_files(wheel), checked_out()
    assert sorted(expected.keys() - files.keys()) == [], "not in the wheel; see [tool.setuptools.package-data]"
    assert sorted(files.keys() - expected.keys()) == []
    assert files == expected
    assert set(DATA) <= files.keys()


def test_the_wheel_has_one_name_at_its_top_and_no_links(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    tops = {entry.filename.split("/")[0] for entry in entries}
    assert tops == {"cardialign", next(top for top in tops if top.endswith(".dist-info"))}
    assert not [entry.filename for entry in entries if stat.S_ISLNK(entry.external_attr >> 16)]


def test_the_source_distribution_is_the_package_with_its_build_files(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert checked_out().keys() <= names
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    deployed = {path.relative_to(ROOT).as_posix() for path in files}
    assert {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", ".containerignore"} | deployed <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "locks").iterdir()} <= names
    assert not [name for name in names if name.startswith("tests")], "a part of the tests tests nothing"


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    again = build_wheel(sdist, tmp_path / "wheel")
    assert again.name == wheel.name and package_files(again) == package_files(wheel)


def test_the_installed_package_is_the_one_that_is_imported(environment: Environment, tmp_path: Path) -> None:
    code = "import cardialign, cardialign.pretrain.recipes as r, importlib.metadata as m"
    code += "; print(cardialign.__file__, next(iter(r.__path__)), m.version('cardialign'))"
    module, recipes, version = environment.run("python", "-c", code, cwd=tmp_path).split()
    assert Path(module).is_relative_to(environment.folder) and Path(recipes).is_relative_to(environment.folder)
    assert environment.run("cardialign", "--version", cwd=tmp_path).split()[-1] == version
    code = "import sys; print([p for p in sys.path if p == sys.argv[1]])"
    assert environment.run("python", "-c", code, ROOT, cwd=tmp_path).strip() == "[]"


def test_the_installed_package_names_its_recipes_and_opens_one(environment: Environment, tmp_path: Path) -> None:
    code = "from cardialign.pretrain.config import load_config; print(load_config('cardialign-demo').name)"
    assert environment.run("python", "-c", code, cwd=tmp_path).split() == ["cardialign-demo"]


def test_the_installed_doctor_finds_a_whole_environment(environment: Environment, tmp_path: Path) -> None:
    answer = json.loads(environment.run("cardialign", "doctor", "--json", cwd=tmp_path).strip().splitlines()[-1])
    assert answer["ok"] is True
