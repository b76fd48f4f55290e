"""The house is in order: small files and folders, and arrows between rooms that run one way."""

import ast
import graphlib
import re
from functools import cache
from pathlib import Path
from typing import Dict, Iterator, NamedTuple, Set

import pytest

from tests.helpers.paths import ROOT

LINES, MODULES = 450, 10

MAY_BE_FULL = {"rsb_d2/data"}  # looked at, and of one job: from a file to a batch, a step a module

MAY_BE_LONG = set()

# From the ground up. A room knows those on the floors below its own, and none beside it. The keys
# of the config are at the bottom; what loads and checks one looks at data and weights.
FLOORS = (
    {"errors"},
    {"config", "files", "memory", "transfer", "visualization"},
    {"modeling"},
    {"data", "solver", "checkpoint", "inference"},
    {"evaluation"},
    {"the checks in config"},
    {"engine", "model_zoo"},
    {"predict"},
    {"export", "report"},
    {"benchmark"},
    {"rsb_d2"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
KEYS = ("rsb_d2.config", "rsb_d2.config.defaults")


class Import(NamedTuple):
    """One module imports another, at its own import or, in a function, later."""

    module: str
    imported: str
    at_once: bool


def python_files() -> Iterator[Path]:
    yield from (ROOT / name for name in ("train_net.py", "setup.py"))
    for folder in ("rsb_d2", "tools", "tests"):
        yield from (ROOT / folder).rglob("*.py")


def modules_of(package: Path) -> Dict[str, Path]:
    """The modules of a package by their names."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(package: Path) -> Iterator[Import]:
    """All imports of a package's modules by one another."""
    modules = modules_of(package)

    def found(node: ast.AST, module: str, inside: str, at_once: bool) -> Iterator[Import]:
        """``inside`` is the package that a relative import starts from."""
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                start = inside.split(".")[: len(inside.split(".")) + 1 - child.level]
                origin = [*(start if child.level else []), *filter(None, [child.module])]
                names = [".".join([*origin, alias.name]) for alias in child.names]
            for name in names:
                # The name of a module, or of something in one.
                for candidate in (name, name.rpartition(".")[0]):
                    if candidate in modules:
                        yield Import(module, candidate, at_once)
                        break
            later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from found(child, module, inside, at_once and not later)

    for module, path in modules.items():
        inside = module if path.stem == "__init__" else module.rpartition(".")[0]
        yield from found(ast.parse(path.read_text()), module, inside, True)


def room_of(module: str) -> str:
    if module.startswith("rsb_d2.config.") and module not in KEYS:
        return "the checks in config"
    return module.split(".")[1] if "." in module else module


def parents_of(module: str) -> Set[str]:
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts))}


def circle_of(imports: Iterator[Import]) -> list:
    """Modules of which each imports the next while it is imported itself; empty if there are none.

    Importing ``a.b.c`` imports ``a.b`` before; to a module in ``a.b`` that is no news.
    """
    graph: Dict[str, Set[str]] = {}
    for module, imported, at_once in imports:
        if at_once and imported != module:
            graph.setdefault(module, set()).add(imported)
            for parent in parents_of(imported) - parents_of(module) - {module}:
                graph[module].add(parent)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        return e.args[1]
    return []


@cache
def package_imports() -> tuple:
    return tuple(imports_of(ROOT / "rsb_d2"))


def test_no_file_is_long():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in python_files()
    }
    long = {name for name, length in lengths.items() if length > LINES}
    assert len(lengths) > 150
    assert long == MAY_BE_LONG


def test_no_folder_has_two_jobs():
    folders = {path.parent for path in (ROOT / "rsb_d2").rglob("*.py")}
    counts = {
        folder.relative_to(ROOT).as_posix(): sum(
            path.stem != "__init__" for path in folder.glob("*.py")
        )
        for folder in folders
    }
    assert len(counts) > 15
    assert {name for name, count in counts.items() if count > MODULES} == MAY_BE_FULL


def test_every_room_is_on_a_floor():
    rooms = {room_of(module) for module in modules_of(ROOT / "rsb_d2")}
    assert rooms == FLOOR.keys() and sum(map(len, FLOORS)) == len(FLOOR)


def test_arrows_run_down():
    arrows = [(room_of(i.module), room_of(i.imported), i) for i in package_imports()]
    up = [f"{i.module} -> {i.imported}" for a, b, i in arrows if a != b and FLOOR[a] <= FLOOR[b]]
    assert up == []
    # Those that everything hangs on are seen.
    assert {("engine", "data"), ("engine", "the checks in config")} <= {a[:2] for a in arrows}


def test_no_module_waits_for_itself():
    assert circle_of(package_imports()) == []


def test_the_package_knows_nothing_that_uses_it():
    for path in (ROOT / "rsb_d2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not {n.split(".")[0] for n in names} & {"tools", "tests", "train_net"}, path


@pytest.mark.parametrize(
    "files, circle",
    [
        ({"a/x": "from ..b import y", "b/y": "from ..a import x"}, True),
        ({"a/x": "from ..b import y", "b/y": "def f():\n    from ..a import x"}, False),
        ({"a/x": "from p.b.y import z", "b/y": "if True:\n    import p.a.x"}, True),
        ({"a/x": "from .y import z", "a/y": "", "b/y": "from ..a import x"}, False),
        ({"a/x": "from ..b import y", "b/__init__": "from ..a.x import z", "b/y": ""}, True),
        ({"a/__init__": "from .x import z", "a/x": "from . import z"}, True),
        ({"a/__init__": "from .x import z", "a/x": "from . import y", "a/y": ""}, False),
        ({"a/__init__": "from .x import z", "a/x": "import p.b.y", "b/y": "import p.a"}, True),
    ],
)
def test_circles_are_found(tmp_path, files, circle):
    for name, text in {"__init__": "", "a/__init__": "", "b/__init__": "", **files}.items():
        path = tmp_path / "p" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert bool(circle_of(imports_of(tmp_path / "p"))) == circle


def test_each_helper_of_the_tests_is_named_once():
    folder = ROOT / "tests" / "helpers"
    text = (folder / "__init__.py").read_text()
    named = re.findall(r"^([a-z_0-9/]+)  +\S", text, re.M)
    there = [p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.py")]
    assert sorted(named) == sorted(name for name in there if not name.endswith("__init__"))
