"""The site. One command builds it, without network: `python -m sphinx -W --keep-going docs docs/_build/html`."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(ROOT))  # the package beside this folder is documented, whether it is installed or not

import flowcollapse  # noqa: E402

project = "flowcollapse"
author = copyright = "The flowcollapse developers"
version = release = flowcollapse.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "docstrings", "commands"]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]
root_doc = "index"
nitpicky = True
# Types of arguments that have no entry: those of other packages, and internal ones, whose names hold their module.
nitpick_ignore_regex = [
    ("py:.*", r"(?!flowcollapse\.).*"),
    ("py:class", r"flowcollapse\.[a-z_]+\.(?!\w+$).*|flowcollapse\._.*"),
]

# Markdown
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/test_notebooks.py runs the notebooks; the site shows the outputs that they keep

# docstrings
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88

# HTML
html_theme = "furo"
html_title = "flowcollapse"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

ELSEWHERE = {"notebooks/": "tutorials/", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
ELSEWHERE |= {"benchmarks/README.md": "benchmarks.md", "flowcollapse/metrics/__init__.py": "reference/metrics.md"}
"""Files outside this folder that have a page here."""


def bring_notebooks(app) -> None:
    """Copy the notebooks into this folder, because Sphinx reads no other.

    Their times stay, so that unchanged ones are not read again."""
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy2(notebook, HERE / "tutorials")


def remove_notebooks(app, exception) -> None:
    for notebook in (HERE / "tutorials").glob("*.ipynb"):
        notebook.unlink()


def point_to_pages(app, name: str, source: list[str]) -> None:
    """Links to files outside, which hold in a plain view of the repository, lead to their pages here."""
    up = "../" * (name.count("/") + 1)
    for outside, page in ELSEWHERE.items():
        source[0] = source[0].replace(f"]({up}{outside}", f"](/{page}")


def setup(app) -> None:
    app.connect("builder-inited", bring_notebooks)
    app.connect("build-finished", remove_notebooks)
    app.connect("source-read", point_to_pages)
