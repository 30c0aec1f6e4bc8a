"""The rules of the house as functions over a tree: each returns the places where the tree breaks its rule."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGE = "cardialign"
FLOORS = {
    "cluster": {"pretrain", "data_shards", "kernels"},
    "pretrain": {"data_shards", "kernels"},
    "data_shards": set(),
    "kernels": set(),
}
"""Floor -> the floors under it."""
FOREIGN = {
    "pretrain": {"ray", "mlflow"},
    "data_shards": {"ray", "mlflow", "torch", "deepspeed", "transformers"},
    "kernels": {"ray", "mlflow"},
}
"""Floor -> packages that it must not know."""
ROOMS: dict[str, list[set[str]]] = {
    "data_shards": [
        {
            "record",
            "report_text",
            "locations",
            "errors",
            "files",
            "rights",
            "cpus",
            "extras",
            "given_numbers",
            "plugins",
            "array_files",
            "shown",
            "secret",
            "offline",
        },
        {"signal", "reading", "cohort"},
        {"shard_set"},
        {"order"},
        {"stream", "text", "sources"},
        {"build", "checks"},
        {"benchmarks"},
    ],
    "pretrain": [
        {"choices", "config", "run", "recipes", "prompts", "protocols", "studies"},
        {"encoders", "text"},
        {"methods"},
        {"training"},
        {"export"},
        {"evaluation"},
        {"benchmarks", "__main__"},
    ],
}
"""Floor -> its rooms from the ground up. It imports from rooms under it, itself, and neighbours, in no circle."""
GROWING = {"data_shards/sources", "pretrain/methods", "cluster/commands"}
"""Lists: one file per entry, however many."""
DEVICE_CODE = (
    "kernels/attention/triton",
    "kernels/contrastive/triton",
    "kernels/patch_embed/triton",
    "kernels/triton_support",
)
LARGEST_FOLDER, LONGEST_MODULE, LONGEST_FUNCTION, MOST_PARAMETERS, COLUMNS = 15, 400, 60, 8, 120


def modules(root: Path) -> dict[str, Path]:
    """Dotted name (`cardialign.pretrain.config`) -> file, of every module of the four floors."""
    found = {}
    for floor in FLOORS:
        for path in sorted((root / floor).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join((PACKAGE, *(p for p in parts if p != "__init__")))] = path
    return found


class Function(NamedTuple):
    """lines: how many it has; parameters: how many it takes, self and cls aside."""

    line: int
    name: str
    lines: int
    parameters: int


class Facts(NamedTuple):
    """What the rules ask of a module. imports: at the top, inside functions, under TYPE_CHECKING; public: line and name
    of public functions, methods and classes without a decorator."""

    imports: frozenset[str]
    relative: bool
    functions: tuple[Function, ...]
    public: tuple[tuple[int, str], ...]


@functools.cache
def facts(text: str) -> Facts:
    """Of a module's text, which is parsed once for all rules."""
    names: set[str] = set()
    functions, public, relative = list[Function](), list[tuple[int, str]](), False
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            relative |= node.level != 0 or not node.module
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in given)
            length = (node.end_lineno or 0) - node.lineno + 1
            functions.append(Function(node.lineno, node.name, length, count))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not (node.name.startswith("_") or node.decorator_list):
            public.append((node.lineno, node.name))
    return Facts(frozenset(names), relative, tuple(functions), tuple(public))


def imports(path: Path) -> frozenset[str]:
    found = facts(path.read_text())
    assert not found.relative, f"{path}: relative import"
    return found.imports


def graph(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports. `from package import module` is an import of the module alone."""
    known = modules(root)
    arrows: dict[str, set[str]] = {}
    for name, path in known.items():
        named = {found for found in imports(path) if found in known and found != name}
        arrows[name] = {found for found in named if not any(other.startswith(f"{found}.") for other in named)}
    return arrows


def circles(arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """Every circle that a walk along the arrows meets, as "a -> b -> a"."""
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
            return
        if name in done:
            return
        for after in sorted(arrows.get(name, ())):
            visit(after, (*trail, name))
        done.add(name)

    for name in sorted(arrows):
        visit(name, ())
    return found


def floor_and_room(module: str) -> tuple[str, str]:
    """`cardialign.pretrain.config.run` -> ("pretrain", "config"); a floor itself is its own room ""."""
    parts = module.split(".")
    return parts[1], parts[2] if len(parts) > 2 else ""


def upward_floors(root: Path) -> list[str]:
    """Imports from a floor that is not under the importer's, foreign packages, and floors by their bare names."""
    found = []
    for name, path in modules(root).items():
        floor = name.split(".")[1]
        for imported in sorted(imports(path)):
            parts = imported.split(".")
            if parts[0] in FLOORS:
                found.append(f"{name} imports {imported} by its bare name")
            if (
                parts[0] == PACKAGE
                and len(parts) > 1
                and parts[1] in FLOORS
                and parts[1] not in {floor, *FLOORS[floor]}
            ):
                found.append(f"{name} imports {imported}, which is not under {floor}")
            if parts[0] in FOREIGN.get(floor, set()):
                found.append(f"{name} imports {imported}; {floor} must not know it")
    return found


def upward_rooms(root: Path) -> list[str]:
    """Imports from a room that lies above the importer's, and rooms that no floor plan knows."""
    found = []
    for name, targets in graph(root).items():
        floor, room = floor_and_room(name)
        if floor not in ROOMS or not room:
            continue
        level = {each: height for height, rooms in enumerate(ROOMS[floor]) for each in rooms}
        if room not in level:
            found.append(f"{name}: room {room} is in no plan")
            continue
        for target in sorted(targets):
            other_floor, other = floor_and_room(target)
            if other_floor == floor and other and level.get(other, -1) > level[room]:
                found.append(f"{name} imports {target}, which lies above it")
    return found


def room_circles(root: Path) -> list[str]:
    """Circles of rooms within a floor."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph(root).items():
        floor, room = floor_and_room(name)
        for target in targets:
            other_floor, other = floor_and_room(target)
            if floor == other_floor and room and other and room != other:
                rooms[f"{floor}/{room}"].add(f"{floor}/{other}")
    return circles(rooms)


def crowded_folders(root: Path) -> list[str]:
    """Folders with too many modules, or with three that share a first word (a folder in disguise)."""
    found = []
    folders = {path.parent for path in modules(root).values()}
    for folder in sorted(folders):
        name = folder.relative_to(root).as_posix()
        stems = [path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__")]
        if len(stems) > LARGEST_FOLDER and name not in GROWING:
            found.append(f"{name} has {len(stems)} modules")
        words = Counter(stem.split("_")[0] for stem in stems)
        found += [f"{name}: {count} modules begin with {word}" for word, count in words.items() if count >= 3]
    return found


def forbidden(root: Path, importers: Sequence[str], imported: Sequence[str]) -> list[str]:
    """Modules of the rooms `importers` that reach one of the rooms `imported` (as `floor.room`), on whatever way."""
    arrows = graph(root)

    def within(name: str, rooms: Sequence[str]) -> bool:
        return any(name == f"{PACKAGE}.{room}" or name.startswith(f"{PACKAGE}.{room}.") for room in rooms)

    found = []
    for name in arrows:
        if not within(name, importers):
            continue
        seen, todo = {name}, [name]
        while todo:
            for after in arrows.get(todo.pop(), ()):
                if within(after, imported):
                    found.append(f"{name} reaches {after}")
                elif after not in seen:
                    seen.add(after)
                    todo.append(after)
    return sorted(set(found))


def sizes(root: Path) -> list[str]:
    """Modules, functions and parameter lists beyond their limits; device code has no limit but the module's."""
    found = []
    for path in modules(root).values():
        name = path.relative_to(root).as_posix()
        text = path.read_text()
        if len(text.splitlines()) > LONGEST_MODULE:
            found.append(f"{name} has {len(text.splitlines())} lines")
        if name.startswith(DEVICE_CODE):
            continue
        for function in facts(text).functions:
            if function.lines > LONGEST_FUNCTION:
                found.append(f"{name}:{function.line} {function.name} has {function.lines} lines")
            if function.parameters > MOST_PARAMETERS:
                found.append(f"{name}:{function.line} {function.name} has {function.parameters} parameters")
    return found


PRAGMA = re.compile(r"  # (type: ignore|noqa).*$")


def wide_lines(paths: Iterable[Path]) -> list[str]:
    """Lines over the column limit, notes for the linters left out.

    Links, tables and fenced code of pages may be wider: they cannot be wrapped.
    """
    found = []
    for path in paths:
        fenced = False
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if path.suffix == ".md":
                fenced ^= line.startswith("```")
                if fenced or line.startswith("|") or "](" in line:
                    continue
            if len(PRAGMA.sub("", line)) > COLUMNS:
                found.append(f"{path}:{number} has {len(line)} columns")
    return found


def busy_inits(root: Path) -> list[str]:
    """`__init__.py` that hold more than a docstring, a table, look-ups in it, or imports handed on by `__all__`."""
    found = []
    for path in modules(root).values():
        if path.name != "__init__.py":
            continue
        tree = ast.parse(path.read_text())
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        statements = [n for n in tree.body if isinstance(n, ast.For | ast.While | ast.With | ast.Try)]
        plain = all(any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in c.bases) for c in classes)
        if statements or (classes and not plain):
            found.append(f"{path.relative_to(root)} does something")
    return found


NAME = re.compile(r"[A-Za-z_]\w*")


def names_for_tests_alone(root: Path) -> list[str]:
    """Public functions, classes, methods and constants whose name stands nowhere else in the product.

    A name counts as used when it stands a second time in any file that is not a test: code, a recipe, a page's code or
    a table of names. Methods of classes that a library calls (`forward`, `backward`, validators) carry its names.
    """
    product = [*modules(root).values(), *(root / PACKAGE).glob("*.py")]
    uses: Counter[str] = Counter()
    for path in product:
        uses.update(NAME.findall(path.read_text()))
    for path in [root / "pyproject.toml", root / "README.md", *root.glob("*/README.md"), *root.glob("*/*/README.md")]:
        if path.is_file():
            uses.update(NAME.findall(path.read_text()))
    found = []
    for path in modules(root).values():
        if path.relative_to(root).as_posix() in TO_BE_COPIED:
            continue
        for line, name in facts(path.read_text()).public:
            if uses[name] == 1 and name not in CALLED_BY_LIBRARIES:
                found.append(f"{path.relative_to(root)}:{line} {name}")
    return found


CALLED_BY_LIBRARIES = {"forward", "backward", "error", "emit", "run", "add_arguments", "summary", "after_exception"} | {
    "make_decision",
    "make_decision_for_non_running_worker_group",
    "make_decision_for_running_worker_group",
    "after_controller_start",
    "on_controller_start_worker_group",
    "do_GET",
    "do_POST",
    "log_message",
    "redirect_request",
    "seekable",
}
TO_BE_COPIED = {"data_shards/sources/template.py"}

UNVERIFIED = re.compile(
    r"\bpickle\.loads?\(|weights_only\s*=\s*False|\bjoblib\.load\(|allow_pickle\s*=\s*True|"
    r"\btorch\.load\((?![^()]*(?:\([^()]*\)[^()]*)*weights_only\s*=\s*True)"
)


def unpickled(root: Path) -> list[str]:
    """Places that unpickle."""
    found = []
    for path in modules(root).values():
        text = path.read_text()
        found += [
            f"{path.relative_to(root)}:{text[: match.start()].count(chr(10)) + 1} {match.group(0)}"
            for match in UNVERIFIED.finditer(text)
        ]
    return found


DOORS = {
    r"\bjson\.loads?\((?!json\.dumps)|\bJSONDecoder\(": ("data_shards/files.py",),
    r"\byaml\.\w*[lL]oad\w*\(|\bSafeLoader\b": ("pretrain/config/yaml_text.py",),
    r"\b(?:np|numpy)\.(?:load|fromfile|loadtxt|genfromtxt)\(": ("data_shards/array_files.py",),
    r"\btorch\.load\(|\bsafe_open\(|safetensors\.(?:torch|numpy) import (?:.*\b)?load": ("pretrain/run/tensors.py",),
    r"\bElementTree\b|\bminidom\b|\bplistlib\b|\bmarshal\.load|\bshelve\b|\bread_pickle\b": (),
}
"""What parses a file of others -> the one module that may."""
OUTSIDE_THE_DOORS = ("kernels/", "data_shards/benchmarks/", "pretrain/benchmarks/")
"""Kernels know no other floor; benchmarks read what they wrote a moment ago."""


def side_doors(root: Path) -> list[str]:
    """Places that parse a file of others without the limits of the one door for its kind."""
    found = []
    for path in modules(root).values():
        name = path.relative_to(root).as_posix()
        text = path.read_text()
        for pattern, doors in DOORS.items():
            if name not in doors and not name.startswith(OUTSIDE_THE_DOORS):
                found += [f"{name}: {match[0]}" for match in re.finditer(pattern, text)]
    return found
