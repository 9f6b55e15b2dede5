"""The pictures of the page `gallery.md`, drawn by running the page.

    python docs/make_gallery.py                 # every block, from above to below, in new folders
    python docs/make_gallery.py --only Descent  # the blocks of one section
    python docs/make_gallery.py --check         # run nothing: do the commands parse, are the pictures there and small?

A picture `pictures/NAME.png` of the page is the file `NAME.png` that a block of its section writes, in fewer
pixels and colours.
"""

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
LARGEST = 100_000
"""Bytes that a picture may have."""
PIXELS = 110
"""Pixels an inch, so that letters have the same size in all pictures."""


def sections(page: str) -> dict[str, str]:
    """The text under each heading."""
    parts = re.split(r"^## (.*)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The language and the text of each block of code."""
    yield from re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of each `flowcollapse` command in a block of a shell."""
    lines = text.replace("\\\n", " ").splitlines()
    split = (shlex.split(line, comments=True) for line in lines)
    return [words[1:] for words in split if words[:1] == ["flowcollapse"]]


def pictures(text: str) -> list[str]:
    """The names of the pictures in a text."""
    return re.findall(r"\(pictures/([\w-]+)\.png\)", text)


def parse(words: list[str]) -> object:
    """A command, ready to run. A flag that does not exist ends the program."""
    import tyro

    from flowcollapse import cli

    name = words[0]
    command = cli.commands()[name]
    return tyro.cli(command, args=cli.said_once(command, name, words[1:])[1:], config=(tyro.conf.OmitArgPrefixes,))


def faults(page: str) -> list[str]:
    """The faults of the page."""
    found = []
    for language, text in blocks(page):
        if language == "python":
            ast.parse(text)
        for words in commands(text) if language == "bash" else ():
            parse(words)
    for name in pictures(page):
        file = HERE / "pictures" / f"{name}.png"
        size = file.stat().st_size if file.exists() else None
        if size is None or size > LARGEST:
            found.append(f"{file.name} is missing" if size is None else f"{file.name} has {size} bytes")
    return found


def run(text: str, folder: Path) -> None:
    """The blocks of a section, one after the other, in a folder."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "MPLBACKEND": "Agg"}
    for language, code in blocks(text):
        programs = [["-c", code]] if language == "python" else [["-m", "flowcollapse.cli", *w] for w in commands(code)]
        for words in programs:
            subprocess.run([sys.executable, *words], cwd=folder, env=environment, check=True)


def store(name: str, folder: Path) -> None:
    """Keep a picture, in fewer pixels and in 256 colours."""
    from PIL import Image

    (source,) = folder.rglob(f"{name}.png")
    with Image.open(source) as image:
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.convert("RGBA").getchannel("A"))
    scale = PIXELS / image.info["dpi"][0]
    small = white.resize([round(side * scale) for side in white.size], Image.Resampling.LANCZOS)
    small.quantize(256).save(HERE / "pictures" / f"{name}.png", optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run nothing")
    parser.add_argument("--only", nargs="*", help="names of sections")
    options = parser.parse_args()
    page = (HERE / "gallery.md").read_text(encoding="utf-8")
    if not options.check:
        (HERE / "pictures").mkdir(exist_ok=True)
        for title, text in sections(page).items():
            if options.only is None or title in options.only:
                with tempfile.TemporaryDirectory() as folder:
                    run(text, Path(folder))
                    for name in pictures(text):
                        store(name, Path(folder))
    found = faults(page)
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
