"""The pages of the documentation: what they name is there, their programs run, and their commands are understood.

The build of the site checks the links (`python -m sphinx -W`, a step of the gate).
"""

import importlib.util
import inspect
import operator
import re
from pathlib import Path
from types import ModuleType

import public_names
import pytest

import flowcollapse as fc
import flowcollapse.reproduce  # `reproduce.run` is public but not loaded by its name

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
PAGES = {name: text for name, text in PAGES.items() if not name.startswith("_build/")}


def gallery() -> ModuleType:
    """The script that draws the pictures of the gallery."""
    spec = importlib.util.spec_from_file_location("make_gallery", DOCS / "make_gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GALLERY = gallery()


def test_every_public_name_has_its_entry():
    """A name may stand under any of its public paths. Add a missing one to a page of `docs/reference/`."""
    entries = re.findall(r"^\.\. (?:auto|py:)\w+:: flowcollapse\.(\S+)$", "\n".join(PAGES.values()), re.MULTILINE)
    assert len(entries) == len(set(entries))
    listed = {id(operator.attrgetter(name)(fc)) for name in entries}
    assert [name for name, value in public_names.public().items() if id(value) not in listed] == []


def test_every_registry_has_its_entry():
    for registry in ("losses.LOSSES", "initial.STARTS", "metrics.METRICS", "gallery.PICTURES"):
        assert any(f"flowcollapse.{registry}\n" in text for text in PAGES.values()), registry


def test_every_page_is_in_a_toctree():
    named = {"index.md"}
    for page, text in PAGES.items():
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            lines = [line for line in tree.splitlines() if line and not line.startswith(":")]
            named |= {(Path(page).parent / f"{line}.md").as_posix() for line in lines}
    assert PAGES.keys() - named == set()


def test_every_notebook_has_its_line():
    table = PAGES["tutorials/index.md"]
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(../../notebooks/{notebook.name})" in table, notebook.name


MARKDOWN = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *map(DOCS.joinpath, PAGES),
]


@pytest.mark.parametrize("file", MARKDOWN, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_links_hold_in_a_plain_view_of_the_repository(file):
    text = re.sub(r"^```.*?^```$|`[^`]*`|\$[^$]*\$", "", file.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target}
    assert [target for target in targets if not (file.parent / target).exists()] == []


ELSEWHERE = {
    "explanation/descent.md": "takes minutes",
    "gallery.md": "docs/make_gallery.py",
    "howto/extending.md": "tests/test_extending.py",
    "howto/measuring.md": "needs a network and its data",
}
"""Pages whose programs run elsewhere, or not at all."""


def programs(page: str) -> list[str]:
    return [text for language, text in GALLERY.blocks(PAGES[page]) if language == "python"]


@pytest.mark.parametrize("page", sorted(name for name in PAGES if programs(name) and name not in ELSEWHERE))
def test_the_programs_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for program in programs(page):
        exec(compile(program, page, "exec"), space)
    assert capsys.readouterr().out


TEXTS = PAGES | {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")}


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_the_commands_of_a_page_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CONFIG.toml").touch()
    for language, text in GALLERY.blocks(TEXTS[page]):
        for words in GALLERY.commands(text) if language == "bash" else ():
            GALLERY.parse(words)


def test_a_command_that_is_not_understood_is_found():
    with pytest.raises(fc.UsageError, match="sedes"):
        GALLERY.parse(["sweep", "--sedes", "3"])


def test_the_pictures_of_the_gallery_are_there_and_small():
    assert GALLERY.pictures(PAGES["gallery.md"])
    assert GALLERY.faults(PAGES["gallery.md"]) == []


COMMANDS = {
    "animate": "animate",
    "comparison": "compare",
    "figure1": "reproduce",
    "figure2": "reproduce",
    "measurement": "measure",
    "path": "simulate",
    "stability": "plot",
    "sweep": "plot",
}
"""The commands of the gallery that draw what a plot function draws."""


def test_every_kind_of_picture_is_in_the_gallery():
    """A plot function is called on the page, or stands behind one of its commands; so does a picture of the theory."""
    page = PAGES["gallery.md"]
    said = [words for language, text in GALLERY.blocks(page) if language == "bash" for words in GALLERY.commands(text)]
    for name in fc.plot.__dict__.keys() - {"save"}:
        if not name.startswith("_") and inspect.isfunction(getattr(fc.plot, name)):
            drawn = COMMANDS.get(name) in {words[0] for words in said}
            assert drawn or f"fc.plot.{name}(" in page, name
    assert {words[1] for words in said if words[0] == "show"} == set(fc.gallery.PICTURES)
