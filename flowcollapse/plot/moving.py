"""Films of a run: features, class means and classifier on their way to the simplex, with the errors beside them."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from .._checks import check_integer
from .._errors import UsageError
from ..metrics.registry import METRICS
from ._films import Film
from ._motion import NC, Motion, directions, even_frames, floor_of, motion_of, simplex
from ._read import Source
from ._style import GREY, STYLE, log_scale

CLASS_COLORS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7")
"""The colours of Okabe and Ito 2008, dark and light in turn, so that neighbours differ in grey too."""

CLASS_MARKS = ("o", "s", "^", "D", "v", "P", "X", "h")

ERRORS = (("#0072B2", "-"), ("#D55E00", "--"), ("black", ":"), ("#CC79A7", "-."))
"""The colours and dashes of the curves beside the motion."""

FASTEST = 50
"""The most frames a second that viewers of GIFs show."""

TURN = 65.0
"""Degrees by which the view of a tetrahedron turns during a film."""

DASHED_LINE: dict[str, Any] = {"color": GREY, "lw": 0.9, "ls": (0, (4, 3))}

MOST_NUMBERED = 30
"""The most classes whose numbers are written beside their corners."""

LANES = {"W": 0.5, "means": 0.0, "features": -0.5}
"""Heights at which a line, the picture of two classes, shows classifier, class means and features."""


def animate(run: Source, *, frames: int = 120, fps: int = 16, samples: int = 12) -> Film:
    """Film a run: features, class means and the rows of W move onto the simplex, and risk and errors grow beside them.

    Args:
        run: one run with its states: a `Trajectory` of `fc.simulate(..., save_states=True)`, its `to_xarray()`, or the
            file that holds it. A few hundred save times give an even film.
        frames: the most frames. Each is a saved state. They are chosen so that equally much happens between them, so
            the film passes quickly over the time near the origin.
        fps: frames a second.
        samples: the most samples of each class that are drawn; all of them are computed.

    Returns:
        The film, a `matplotlib.animation.FuncAnimation` whose figure shows the end of the run. `fc.plot.save` writes it
        as GIF or MP4. The directions are fixed and those of the class means at the end: a line for two classes, the
        plane of the triangle for three, the space of the tetrahedron, which turns slowly, for four, and for more
        classes the plane of the two longest axes, in which a simplex is a regular polygon. Small marks are features,
        large ones class means, and hollow ones with a line the rows of W, times the ratio of the lengths of means and
        rows at the end, which is 1/sqrt N after strong collapse. The dashed lines are the simplex that is nearest to
        the class means at the end.

    Raises:
        UsageError: for a run without states, for several runs at once, or numbers that are not positive integers.

    Source: the simplex frame of Mixon, Parshall and Pi; the projection and the choice of frames are derived here.

    Example:
        >>> import pathlib, tempfile, jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=0.1, key=jax.random.key(0))
        >>> descent = fc.Descent("sgd", 100, learning_rate=0.1)
        >>> film = fc.plot.animate(fc.simulate(model, start, descent, save_states=True), frames=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.plot.save(film, folder + "/collapse.gif")
        ...     [file.name for file in pathlib.Path(folder).iterdir()]
        ['collapse.gif']
    """
    check_numbers(frames, fps, samples)
    motion = motion_of(run, samples)
    basis = directions(motion.means[-1], (motion.W[-1].T, *reversed(motion.means)), motion.dimensions)
    chosen = even_frames(motion, basis, frames)
    last = len(chosen) - 1
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(6.4, 3.6))
        parts = [_stage(figure, motion, basis, chosen), *_curves(figure, motion, chosen)]

        def draw(frame: int) -> None:
            for part in parts:
                part(frame)

        draw(last)
        figure.draw_without_rendering()  # ticks take their style when they are first drawn
    return Film(figure, draw, range(last + 1), fps)


def check_numbers(frames: int, fps: int, samples: int) -> None:
    """Raise `UsageError` unless these are numbers that a film can have."""
    for name, value in (("frames", frames), ("fps", fps), ("samples", samples)):
        check_integer(name, value)
    if fps > FASTEST:
        raise UsageError(f"fps is {fps}, and viewers show at most {FASTEST} frames a second: lower it.")


Draw = Callable[[int], None]
"""Moves lines and marks to a frame."""


def _stage(figure: Figure, motion: Motion, basis: np.ndarray, chosen: np.ndarray) -> Draw:
    """Draw the frame, the features, the means and the classifier."""
    at = _positions(motion, basis, chosen)
    size = at["means"].shape[1]
    box = (0.0, 0.1, 0.52, 0.82)
    ax: Any = figure.add_axes(box, projection="3d", computed_zorder=False) if size == 3 else figure.add_axes(box)
    reach = 1.12 * max(float(np.abs(part).max(initial=0.0)) for part in at.values()) or 1.0
    framed = _frame(ax, motion, at["means"][-1], reach)
    marks = [_marks(ax, c, size) for c in range(len(motion.counts))]
    told = figure.text(0.03, 0.93, "")

    def draw(frame: int) -> None:
        for c, (features, mean, row) in enumerate(marks):
            _put(features, at["features"][frame][:, motion.classes[: at["features"].shape[2]] == c])
            _put(mean, at["means"][frame][:, [c]])
            tip = at["W"][frame][:, [c]]
            foot = np.zeros((size, 1)) if motion.dimensions > 1 else tip * [[0.0], [1.0]]
            _put(row, np.hstack([foot, tip]))
        told.set_text(f"{motion.clock} = {motion.times[chosen[frame]]:.4g}")
        if size == 3:
            ax.view_init(elev=18, azim=-60 + TURN * frame / max(1, len(chosen) - 1))

    _handles(figure, motion, drawn=at["features"].shape[2] > 0, framed=framed)
    return draw


def _positions(motion: Motion, basis: np.ndarray, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Where everything is drawn: arrays of shape (frames, 2 or 3, marks)."""
    try:
        H = motion.features(chosen)
    except UsageError:  # a single state of all samples is too large
        H = np.zeros((len(chosen), len(basis), 0))
    rows = motion.ratio * np.swapaxes(motion.W[chosen], 1, 2)
    at = {"W": basis.T @ rows, "means": basis.T @ motion.means[chosen], "features": basis.T @ H}
    if motion.dimensions > 1:
        return at
    reach = max(float(np.abs(part).max(initial=0.0)) for part in at.values())
    return {name: np.concatenate([x, np.full_like(x, reach * LANES[name])], axis=1) for name, x in at.items()}


def _frame(ax: Any, motion: Motion, ends: np.ndarray, reach: float) -> bool:
    """Set up the axes, and draw the simplex of the end, if there is one, with the numbers of the classes."""
    size, C = ends.shape
    if size == 3:
        ax.set_box_aspect((1, 1, 1), zoom=1.55)
    else:
        ax.set_aspect("equal")
    ax.set_axis_off()
    for name in ("x", "y", "z")[:size]:
        getattr(ax, f"set_{name}lim")(-reach, reach)
    ax.plot(*np.zeros((size, 1)), "+", color=GREY, ms=6, mew=0.8, zorder=1)
    ends = ends[: motion.dimensions]
    if np.linalg.norm(ends, axis=0).max() < 0.02 * reach:  # everything has gone to the origin
        return False
    there = motion.means.shape[1] >= C - 1  # fewer features hold no simplex
    corners = simplex(ends) if there else None
    if corners is not None and motion.dimensions == 1:
        ax.vlines(corners[0], *(reach * np.array([-0.65, 0.65])), zorder=1, **DASHED_LINE)
    elif corners is not None:
        for i, j in itertools.combinations(range(C), 2):
            if C <= 4 or j - i in (1, C - 1):
                ax.plot(*corners[:, [i, j]], zorder=1, **DASHED_LINE)
    labels = ends if corners is None else corners
    labels = np.vstack([labels, np.full(C, 0.85 * reach)]) if motion.dimensions == 1 else 1.2 * labels
    for c in range(C) if C <= MOST_NUMBERED else ():
        ax.text(*labels[:, c], f"{c + 1}", ha="center", va="center", color="black", fontsize=9)
    return corners is not None


def _marks(ax: Any, c: int, size: int) -> tuple[Line2D, Line2D, Line2D]:
    """The marks of a class, without places yet: features, class mean, row of W."""
    color, mark = CLASS_COLORS[c % len(CLASS_COLORS)], CLASS_MARKS[c % len(CLASS_MARKS)]
    nowhere = np.zeros((size, 0))
    (row,) = ax.plot(*nowhere, color="black", lw=1.1, marker=mark, ms=10, mfc="none", mec="black", mew=1.1, zorder=2)
    row.set_markevery([1])
    (features,) = ax.plot(*nowhere, ls="", marker=mark, ms=3.5, mfc=color, mec="black", mew=0.3, zorder=3)
    (mean,) = ax.plot(*nowhere, ls="", marker=mark, ms=7, mfc=color, mec="black", mew=0.8, zorder=4)
    return features, mean, row


def _put(line: Any, places: np.ndarray) -> None:
    (line.set_data if len(places) == 2 else line.set_data_3d)(*places)


def _handles(figure: Figure, motion: Motion, *, drawn: bool, framed: bool) -> None:
    """The meaning of the marks below the picture, and the sizes of the model above it."""
    counts = sorted(set(motion.counts))
    samples = " to ".join(f"{n:,}" for n in counts[:: max(1, len(counts) - 1)])
    most = int(np.bincount(motion.classes).max())
    note = "" if most == counts[-1] and drawn else f", {most} drawn" if drawn else ", none drawn"
    facts = [f"{len(motion.counts)} classes", f"{samples} samples a class{note}", f"{motion.means.shape[1]} features"]
    figure.text(0.98, 0.93, ", ".join(facts), ha="right", color=GREY, fontsize=8.5)
    look: dict[str, Any] = {"ls": "", "marker": "o", "mec": "black"}
    handles = [
        Line2D([], [], ms=3.5, mfc=GREY, mew=0.3, label="features", **look),
        Line2D([], [], ms=7, mfc=GREY, mew=0.8, label="class means", **look),
        Line2D([], [], ms=9, mfc="white", mew=1.1, label=rf"rows of $W$ $\times$ {motion.ratio:.3g}", **look),
        Line2D([], [], label="simplex", **DASHED_LINE),
    ]
    figure.legend(
        handles=handles[not drawn : 3 + framed], loc="lower left", bbox_to_anchor=(0.01, 0.0), ncols=4, frameon=False,
        fontsize=8.5, handletextpad=0.3, columnspacing=0.6, handlelength=1.6,
    )  # fmt: skip


def _curves(figure: Figure, motion: Motion, chosen: np.ndarray) -> list[Draw]:
    """Draw the risk above and the errors below, as far as there are any."""
    errors = [name for name in motion.curves if name != "risk"]
    groups = [names for names in (["risk"] if "risk" in motion.curves else [], errors) if names]
    height = 0.74 / max(1, len(groups)) - 0.07
    return [
        _panel(figure.add_axes((0.61, 0.15 + (len(groups) - 1 - i) * (height + 0.1), 0.36, height)), motion, names,
               chosen, bottom=i == len(groups) - 1)
        for i, names in enumerate(groups)
    ]  # fmt: skip


def _panel(ax: Axes, motion: Motion, names: Sequence[str], chosen: np.ndarray, *, bottom: bool) -> Draw:
    """Draw curves that grow with the film, on axes that show all of it: the risk linear, errors logarithmic."""
    times = motion.times[: chosen[-1] + 1]
    values = {name: motion.curves[name][: len(times)] for name in names}
    shown = np.concatenate([one[np.isfinite(one)] for one in values.values()])
    logarithmic = names != ["risk"] and bool(np.any(shown > 0))
    if logarithmic:
        low, high = floor_of(shown), float(shown.max())
        ax.set_ylim(0.5 * low, 2 * high)
        log_scale(ax, "y")
        ax.yaxis.set_major_locator(LogLocator(numticks=5))
    elif len(shown):
        ax.set_ylim(0, 1.05 * float(shown.max()) or 1.0)
    middle = float(np.median(motion.times[chosen]))
    ax.set_xlim(times[0], times[-1] if times[-1] > times[0] else times[0] + 1)
    if 0 < middle < 0.15 * times[-1]:  # most happens early
        ax.set_xlim(middle / 30, times[-1])
        log_scale(ax, "x")
    ax.set_xlabel(motion.clock) if bottom else ax.set_xticklabels([])
    lines, lowest = [], ax.get_ylim()[0]
    for (color, dashes), name in zip(ERRORS, names, strict=False):
        label = NC.get(name) or METRICS[name].label.removesuffix(" error") or name
        lines.append(
            (
                *ax.plot([], [], color=color, ls=dashes, lw=1.5, label=label),
                *ax.plot([], [], "o", color=color, ms=3.5, clip_on=False),
            )
        )
    ax.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.03, 0.96), ncols=4, handlelength=1.7,
              columnspacing=0.9, handletextpad=0.4)  # fmt: skip

    def draw(frame: int) -> None:
        now = chosen[frame] + 1
        for (line, head), one in zip(lines, values.values(), strict=True):
            line.set_data(times[:now], one[:now])
            head.set_data([times[now - 1]], [one[now - 1] if one[now - 1] >= lowest else np.nan])

    return draw
