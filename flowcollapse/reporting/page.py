"""One page about a result: charts, tables, and the command of every run, in a single HTML file."""

import base64
import hashlib
import html
import importlib.resources
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .. import __version__
from .._errors import UsageError
from .._files import check_writable, local_path, replacing
from ..plot._read import kind_of, read, short
from ..results.tables import verdicts as counted
from . import tables
from .data import page_data
from .rerun import rerun

TITLES = {
    "run": "A run",
    "sweep": "A sweep",
    "comparison": "Flow and descent",
    "measurement": "Collapse in features",
    "figures": "The runs of the paper's figures",
    "picture": "A picture of the gallery",
}
"""The titles of the pages, for each kind of Dataset."""


def report(results: Any, file: str | Path) -> None:
    """Write a page to explore results in a browser: one file that needs neither a network nor Python.

    A sweep, finished or not, gives its curves with bands for each eps, the limits against eps with their fitted and
    predicted powers, the verdicts, and the slowest and the failed runs. A click on a run shows the command that
    repeats it. Runs, comparisons and measurements show what they have of this. Large results are thinned until the
    page has less than 10 MB, and the page says where.

    Args:
        results: what `fc.simulate`, `fc.sweep`, `fc.compare`, `fc.measure` or `fc.gallery.run` returns, or the file or
            store of it.
        file: the page, which ends in .html.

    Raises:
        UsageError: for anything else, another suffix, a file that cannot be written, or if plotly is not installed.

    Source: derived here.

    Example:
        >>> import pathlib, tempfile, jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=0.1, key=jax.random.key(0))
        >>> run = fc.simulate(model, start, fc.Flow(t1=2.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.report(run, folder + "/run.html")
        ...     "<!doctype html>" in pathlib.Path(folder, "run.html").read_text(encoding="utf-8")
        True
    """
    place = check_page(file)
    dataset = read(results)
    if kind_of(dataset) not in TITLES:
        raise UsageError(
            f"results {short(results)} hold no run, sweep, comparison or measurement: pass one, or the file of one."
        )
    text = picture_page(dataset) if kind_of(dataset) == "picture" else page(dataset)
    with replacing(place) as part:
        part.write_text(text, encoding="utf-8")


def check_page(file: Any) -> Path:
    """The path of a page, once it is clear that one can be made and written there.

    Raises:
        UsageError: if not.
    """
    place = local_path(file, "file")
    if place.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"file {place} does not end in .html: give the page this ending.")
    check_writable(place)
    _plotly()
    return place


def _plotly() -> str:
    """The library that draws the charts in the browser."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UsageError('pages need plotly: pip install "flowcollapse[report]" or pip install plotly.') from None
    return get_plotlyjs()


def page(dataset: xr.Dataset) -> str:
    """The text of the page.

    Raises:
        UsageError: for a Dataset without metrics over time, epochs or layers.
    """
    lanes = "verdict" in dataset
    if lanes:  # runs that were selected from a sweep keep their places on its axes
        dataset = dataset.expand_dims(
            [name for name, one in dataset.coords.items() if one.ndim == 0 and name != "time"]
        )
    data = page_data(dataset)
    data["rerun"] = rerun(dataset)._asdict() if lanes else {"common": "", "axes": {}, "reason": ""}
    metrics = data["metrics"]
    parts = [_head(dataset, data["notes"])]
    parts.append(tables.section("Over time" if data["over"] == "time" else f"Over {data['over']}s", _chart("curves")))
    if data["axes"]:
        parts.append(tables.section("At the end", _chart("ends")))
        parts += [tables.verdicts(dataset), tables.failed(dataset, metrics), tables.slowest(dataset, metrics)]
    else:
        parts.append(tables.ends(dataset, metrics))
    if lanes and not data["axes"]:
        parts.append(tables.section("Again", f"<pre>{html.escape(_one(data['rerun']))}</pre>"))
    parts.append(tables.configuration(dataset))
    return _whole(TITLES[kind_of(dataset)], "".join(parts), data)


def picture_page(dataset: xr.Dataset) -> str:
    """The text of the page of a picture of the gallery: the picture, and each law against the measured value."""
    import matplotlib.pyplot as plt

    from ..gallery.registry import PICTURES, draw

    with io.BytesIO() as drawn:
        figure = next(iter(np.ravel(draw(dataset)))).get_figure()
        figure.savefig(drawn, format="svg")
        plt.close(figure)
        picture = base64.b64encode(drawn.getvalue()).decode()
    head = ("law", "expected", "measured", "allowed", "")
    rows = [
        tables.Row((one.law, f"{one.expected:.6g}", f"{one.measured:.6g}", f"{one.within:.1e}", HOLDS[one.holds]))
        for one in PICTURES[dataset.attrs["picture"]].checks(dataset)
    ]
    parts = [f'<p><img alt="{html.escape(dataset.attrs["title"])}" src="data:image/svg+xml;base64,{picture}"></p>']
    parts.append(tables.section("Laws", tables.table(head, rows), long=True) + tables.configuration(dataset))
    return _whole(dataset.attrs["title"], "".join(parts), None)


HOLDS = {True: "holds", False: "FAILS"}


def _one(rerun: dict[str, Any]) -> str:
    return rerun["reason"] or rerun["common"]


def _head(dataset: xr.Dataset, notes: list[str]) -> str:
    """The first lines: how many runs there are and how they ended, and where numbers were left out."""
    facts = []
    if "verdict" in dataset:
        sizes = " × ".join(f"{size} {axis}" for axis, size in dataset["verdict"].sizes.items())
        count = dataset["verdict"].size
        facts.append(f"{count} runs ({sizes}): " if count > 1 else "")
        facts[-1] += counted(dataset["verdict"].fillna(-1).values.astype(int)).replace("_", " ") + "."
    if "created" in dataset.attrs:
        facts.append(f"Made {dataset.attrs['created']}.")
    facts += [str(dataset.attrs[name]) for name in ("precision_note",) if name in dataset.attrs]
    lines = [f"<p>{html.escape(' '.join(facts))}</p>", *map(tables.note, notes)]
    return "".join(lines)


def _chart(name: str) -> str:
    return f'<div class=controls id="{name}-controls"></div><div class=chart id="{name}"></div>'


def _whole(title: str, body: str, data: dict[str, Any] | None) -> str:
    """The page around its sections. Its policy admits its two scripts and nothing else, and no request at all.

    Without data there are no charts, and so no scripts.
    """
    kept = importlib.resources.files(__package__ or "")
    style, script = (kept.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    scripts = [] if data is None else [_plotly(), script]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts]
    admitted = " ".join(hashes) or "'none'"
    policy = (
        f"default-src 'none'; script-src {admitted}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
    )
    numbers = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    title = f"{title} · flowcollapse"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="generator" content="flowcollapse {html.escape(__version__)}">',
            f"<title>{html.escape(title)}</title><style>{style}</style></head>",
            f"<body><h1>{html.escape(title)}</h1>",
            body,
            *(_drawing(numbers, scripts) if scripts else []),
            "</body></html>",
        ]
    )


def _drawing(numbers: str, scripts: list[str]) -> list[str]:
    """The end of a page with charts: the command of the lane that is chosen, the numbers, and the scripts."""
    return [
        "<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>",
        "<div class=lane id=lane hidden><strong id=lane-name></strong> <button id=copy>copy</button>",
        "<pre id=command></pre></div>",
        f'<script type="application/json" id="data">{numbers}</script>',
        *(f"<script>{one}</script>" for one in scripts),
    ]
