"""The structure of the package: which module may import which, the length of files, and the map for contributors."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGE = ROOT / "flowcollapse"

FLOORS = (
    ("_errors",),
    ("_checks", "_files"),
    ("_registry", "programs", "settings"),
    ("_linalg", "compilation_cache"),
    ("losses",),
    ("model",),
    ("curvature", "initial", "endings"),
    ("methods", "metrics"),
    ("results",),
    ("simulation", "measuring"),
    ("sweeps", "theory"),
    ("comparison", "fitting"),
    ("plot",),
    ("reproduce", "gallery"),
    ("reporting",),
    ("",),
    ("cli",),
    ("__main__",),
)
"""The rooms, from the ground up: packages, and the modules next to them. "" is the package as users see it,
`import flowcollapse as fc`. A room may import from lower floors, but not from another room on the same floor. This is
the only place that defines the order."""

MAX_LINES = 400
"""The most lines of a file. A longer file holds more than one idea."""


def modules() -> dict[str, Path]:
    """The file of each module of the package, by the full name of the module."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports_of(name: str, text: str, package: bool) -> Iterator[tuple[str, str]]:
    """`(module, name)` for everything that a module imports from this package, anywhere in its text.

    Imports inside functions and under `TYPE_CHECKING` count, because they also make one module depend on another.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] == PACKAGE.name)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: len(name.split(".")) - node.level + package] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            if source.partition(".")[0] == PACKAGE.name:
                yield from ((source, alias.name) for alias in node.names)


def arrows_of(name: str, text: str, package: bool) -> set[str]:
    """The modules that a module imports. The version does not count: the package sets it before it loads any room."""
    pairs = set(imports_of(name, text, package)) - {(PACKAGE.name, "__version__")}
    return {f"{source}.{thing}" if f"{source}.{thing}" in MODULES else source for source, thing in pairs}


ARROWS = {name: arrows_of(name, file.read_text(), file.name == "__init__.py") for name, file in MODULES.items()}
ARROWS[PACKAGE.name] |= arrows_of(PACKAGE.name, (PACKAGE / "__init__.pyi").read_text(), True)  # loaded on request


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    return next(height for height, rooms in enumerate(FLOORS) if room(module) in rooms)


def upward(arrows: dict[str, set[str]]) -> list[str]:
    """The imports that neither lead to a lower floor nor stay in the room."""
    return [
        f"{name} imports {target}"
        for name, targets in arrows.items()
        for target in sorted(targets)
        if room(target) != room(name) and floor(target) >= floor(name)
    ]


def cycles(arrows: dict[str, set[str]]) -> set[str]:
    """The modules that import themselves, directly or through others."""
    reached = {name: set(targets) for name, targets in arrows.items()}
    for middle in arrows:  # Warshall's closure
        for targets in reached.values():
            if middle in targets:
                targets |= reached[middle]
    return {name for name, targets in reached.items() if name in targets}


def test_every_room_has_its_floor():
    named = [name for rooms in FLOORS for name in rooms]
    assert len(named) == len(set(named))
    assert set(named) == set(map(room, MODULES))


def test_no_import_leads_upward():
    assert upward(ARROWS) == []


def test_no_modules_import_each_other():
    assert cycles(ARROWS) == set()


def test_the_map_shows_the_floors():
    """The table in CONTRIBUTING.md, row by row; a row without a number is on the floor of the row above."""
    rows = re.findall(r"^\| *(\d*) *\| `([a-z_]+)(?:/|\.py)` \|", read("CONTRIBUTING.md"), re.MULTILINE)
    floors: list[set[str]] = []
    for number, name in rows:
        if number:
            assert int(number) == len(floors) + 1
            floors.append(set())
        floors[-1].add(name)
    assert [tuple(sorted(names)) for names in floors] == [
        tuple(sorted(names)) for rooms in FLOORS if (names := set(rooms) - {"", "__main__"})
    ]


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    written = re.findall(
        r'^(?:__version__ = |version: )"?([\d.]+)"?$', read("flowcollapse/__init__.py", "CITATION.cff"), re.M
    )
    assert written == [project["version"]] * 2


def read(*files: str) -> str:
    return "\n".join((ROOT / file).read_text() for file in files)


def test_no_file_is_too_long():
    files = [file for folder in (PACKAGE, TESTS) for file in folder.rglob("*.py*") if file.suffix in (".py", ".pyi")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert len(files) > len(MODULES)
    assert {file: lines for file, lines in lengths.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("text", "package", "found"),
    [
        ("from ..model.state import State", False, {"flowcollapse.model.state"}),
        ("from . import ufm", False, {"flowcollapse.model.ufm"}),
        ("from . import ufm", True, {"flowcollapse.model.ufm"}),
        ("from .ufm import UFM", True, {"flowcollapse.model.ufm"}),
        ("from . import UFM", False, {"flowcollapse.model"}),
        ("import flowcollapse.cli.words", False, {"flowcollapse.cli.words"}),
        ("def f():\n    from .. import sweeps", False, {"flowcollapse.sweeps"}),
        ("if TYPE_CHECKING:\n    from ..simulation import simulate", False, {"flowcollapse.simulation"}),
        ("from .. import __version__\nimport numpy", False, set()),
        ("import flowcollapse as fc", False, {"flowcollapse"}),
    ],
)
def test_imports_are_read(text, package, found):
    """`imports_of` finds imports of each form."""
    assert arrows_of("flowcollapse.model" if package else "flowcollapse.model.some", text, package) == found


def test_an_upward_import_and_a_cycle_are_found():
    assert upward({"flowcollapse.model.ufm": {"flowcollapse.simulation", "flowcollapse.losses.base"}}) == [
        "flowcollapse.model.ufm imports flowcollapse.simulation"
    ]
    assert upward({"flowcollapse.model.ufm": {"flowcollapse"}}) != []
    assert upward({"flowcollapse.sweeps.grid": {"flowcollapse.theory.exact"}}) != []
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"c"}}) == {"b", "c"}
