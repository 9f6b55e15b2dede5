"""A film shows a run as it is: distances in the plane of its end, positions of its states, even steps of motion."""

import itertools
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import systems
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL.GifImagePlugin import GifImageFile

import flowcollapse as fc
from flowcollapse.model import columns
from flowcollapse.plot import _motion, moving

MODEL = fc.UFM(num_classes=3, samples_per_class=4, num_features=6)
EPS = np.finfo(np.float64).eps


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def descend(
    model: fc.UFM = MODEL, *, start: fc.State | None = None, ts: Any = 40, learning_rate: float = 0.05
) -> fc.Trajectory:
    start = fc.initial.sphere(model, 0.5, key=jax.random.key(0)) if start is None else start
    return fc.simulate(model, start, fc.Descent("sgd", 80, learning_rate=learning_rate), ts, save_states=True)


@pytest.fixture(scope="module")
def run() -> fc.Trajectory:
    return descend()


def rotated_simplex(C: int, p: int) -> np.ndarray:
    """The corners of a regular simplex in a random position around the origin of R^p, as columns."""
    rotation = np.linalg.qr(np.random.default_rng(C).standard_normal((p, p)))[0]
    return 1.7 * rotation[:, :C] @ (np.eye(C) - 1 / C)


def corners_of(points: np.ndarray) -> np.ndarray:
    corners = _motion.simplex(points)
    assert corners is not None
    return corners


def distances(points: np.ndarray) -> np.ndarray:
    """All distances between columns."""
    return np.array(
        [np.linalg.norm(points[:, i] - points[:, j]) for i, j in itertools.combinations(range(len(points.T)), 2)]
    )


@pytest.mark.parametrize(("C", "dimensions"), [(2, 1), (3, 2), (4, 3)])
def test_a_simplex_in_any_position_is_drawn_as_a_regular_one(C, dimensions):
    corners = rotated_simplex(C, 9)
    basis = _motion.directions(corners, (), dimensions)
    seen = basis.T @ corners
    np.testing.assert_allclose(distances(seen), 1.7 * np.sqrt(2), rtol=100 * EPS)
    np.testing.assert_allclose(np.linalg.norm(seen[:-1, 0]), 0, atol=100 * EPS)  # the first class is up
    assert seen[-1, 0] > 0
    np.testing.assert_allclose(corners_of(seen), seen, atol=100 * EPS)


@pytest.mark.parametrize("C", [5, 6, 10])
def test_more_classes_are_the_corners_of_a_regular_polygon(C):
    corners = rotated_simplex(C, 12)
    seen = _motion.directions(corners, (), 2).T @ corners
    angles = 2 * np.pi * np.arange(C) / C
    expected = 1.7 * np.sqrt(2 / C) * np.stack([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(seen, expected, atol=1e4 * EPS)  # singular vectors of values that differ by a tenth


def test_axes_of_different_lengths_come_before_the_polygon():
    """If one direction is much longer, it is drawn."""
    corners = rotated_simplex(6, 12)
    axis = np.linalg.svd(corners)[0][:, 2:3]
    stretched = corners + 3 * axis @ axis.T @ corners
    basis = _motion.directions(stretched, (), 2)
    np.testing.assert_allclose(basis @ basis.T @ axis, axis, atol=0.05)  # tilted by less than the polygon's share


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_distances_in_the_plane_of_the_end_are_those_of_the_space(dimensions):
    """For all states within it, whatever the class means at the end are."""
    random = np.random.default_rng(7)
    means = random.standard_normal((8, dimensions + 1))
    means -= means.mean(axis=1, keepdims=True)
    basis = _motion.directions(means, (), dimensions)
    states = means @ random.standard_normal((dimensions + 1, 5))
    np.testing.assert_allclose(distances(basis.T @ states), distances(states), rtol=1e3 * EPS)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_directions_that_the_end_leaves_open_come_from_the_run(rank):
    """The end at the origin, or with merged classes, still gives orthonormal directions, those of the run first."""
    random = np.random.default_rng(rank)
    means = random.standard_normal((6, rank)) @ random.standard_normal((rank, 4))
    before = random.standard_normal((6, 1)) @ np.ones((1, 4))
    basis = _motion.directions(means, (before,), 3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=100 * EPS)
    np.testing.assert_allclose(basis @ basis.T @ before, before, atol=1e3 * EPS)


def drawn(ax: Any) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """The class means, the features of each class and the tips of the rows of W in a picture."""
    lines = [line for line in ax.lines if line.get_marker() in moving.CLASS_MARKS]
    places = [np.array(line.get_data_3d() if hasattr(line, "get_data_3d") else line.get_data()) for line in lines]
    rows, features, means = places[0::3], places[1::3], places[2::3]
    return np.hstack(means), features, np.stack([row[:, 1] for row in rows], axis=1)


def flat(model: fc.UFM, H: Any) -> np.ndarray:
    """Class means, one column a class."""
    return np.stack(
        [part.mean(axis=1) for part in np.split(np.asarray(H), np.cumsum(model.counts)[:-1], axis=1)], axis=1
    )


@pytest.mark.parametrize("C", [3, 4])
def test_the_last_frame_is_the_end_of_the_run(C):
    model = fc.UFM(num_classes=C, samples_per_class=5, num_features=7)
    path = descend(model)
    film = fc.plot.animate(path, samples=3)
    means, features, rows = drawn(film.figure.axes[0])
    H, W = np.asarray(path.final.H), np.asarray(path.final.W)
    of_run = flat(model, H)
    np.testing.assert_allclose(distances(means), distances(of_run), rtol=1e-12)
    # The plane is that of the class means, which recover every other place in it.
    centred = of_run - of_run.mean(axis=1, keepdims=True)
    seen = means - means.mean(axis=1, keepdims=True)
    ratio = np.linalg.norm(of_run) / np.linalg.norm(W)
    np.testing.assert_allclose(seen.T @ rows, ratio * centred.T @ W.T, atol=1e-12)
    for c, places in enumerate(features):
        assert places.shape[1] == 3
        np.testing.assert_allclose(seen.T @ places, centred.T @ H[:, 5 * c : 5 * c + 3], atol=1e-12)


def test_rows_are_scaled_by_the_root_of_the_samples_after_strong_collapse():
    start = fc.initial.collapsed(MODEL, key=jax.random.key(1))
    motion = _motion.motion_of(descend(start=start, ts=3), 4)
    assert motion.ratio == pytest.approx(0.5, rel=1e-12)


def test_every_frame_is_a_saved_state_and_equally_much_happens_between_frames(run):
    """A run that waits for most of its time gets few frames there."""
    states = run.to_xarray()
    waiting = states.isel(time=np.r_[np.zeros(400, int), np.arange(40)])
    waiting = waiting.assign_coords(time=np.r_[np.linspace(0, 100, 400), 100.01 + run.ts])
    motion = _motion.motion_of(waiting, 4)
    basis = _motion.directions(motion.means[-1], (), 2)
    frames = _motion.even_frames(motion, basis, 30)
    assert (frames[0], frames[-1]) == (0, 439)
    share = _motion.PACE["time"] / sum(_motion.PACE.values())
    assert np.sum(frames < 400) <= 2 + 30 * share
    assert len(frames) <= 30
    still = waiting.isel(time=slice(0, 400))
    motion = _motion.motion_of(still.assign_coords(time=np.zeros(400)), 4)
    assert _motion.even_frames(motion, basis, 30).tolist() == [0, 399]


def test_a_run_its_dataset_and_its_file_give_the_same_film(run, tmp_path):
    dataset = run.to_xarray()
    dataset.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    first, *others = [fc.plot.animate(one) for one in (run, dataset, tmp_path / "run.nc")]
    for other in others:
        for one, two in zip(first.figure.axes, other.figure.axes, strict=True):
            assert one.get_xlabel() == two.get_xlabel()
            for line, same in zip(one.lines, two.lines, strict=True):
                np.testing.assert_allclose(np.asarray(line.get_xydata()), np.asarray(same.get_xydata()), atol=1e-12)
    curves = {line.get_label(): line for ax in first.figure.axes[1:] for line in ax.lines}
    for label, name in {"risk": "risk", "SNC1": "snc1", "SNC3": "snc3"}.items():
        np.testing.assert_array_equal(curves[label].get_ydata(), run.metrics[name])


COUNTS = (50, 20, 80)
MANY = fc.UFM(num_classes=3, samples_per_class=COUNTS, num_features=6)


@pytest.mark.parametrize("kind", ["samples", "origin", "drawn reduced", "Helmert"])
def test_some_samples_are_those_of_all(kind):
    model = fc.UFM(num_classes=3, samples_per_class=COUNTS, num_features=200) if kind == "Helmert" else MANY
    state = fc.initial.sphere(model, 0.5, key=jax.random.key(3), reduced=kind == "drawn reduced")
    state = fc.to_class_means(model, state) if kind in ("origin", "Helmert") else state
    some = _motion.drawn_samples(COUNTS, 3)
    assert some.tolist() == [0, 1, 2, 50, 51, 52, 70, 71, 72]
    found = state.columns.lift_some(state.X, some)
    np.testing.assert_allclose(found, np.asarray(state.H)[:, some], atol=1e-13)


VARIETY = {
    "a line": {"num_classes": 2},
    "one feature": {"num_features": 1},
    "fewer features than classes": {"num_classes": 5, "num_features": 2},
    "many classes": {"num_classes": 40, "samples_per_class": 2, "num_features": 50},
    "decay to the origin": {"weight_decay": 20.0},
    "cross-entropy": {"loss": "cross-entropy", "use_bias": False},
    "unequal": {"samples_per_class": (5, 1, 2)},
}


@pytest.mark.parametrize("name", VARIETY)
def test_films_of_every_kind_of_model(name, tmp_path):
    sizes: dict[str, Any] = {"num_classes": 3, "samples_per_class": 3, "num_features": 6} | VARIETY[name]
    film = fc.plot.animate(descend(fc.UFM(**sizes), ts=5, learning_rate=0.02), frames=2)
    fc.plot.save(film, tmp_path / "a.gif")
    with GifImageFile(str(tmp_path / "a.gif")) as picture:
        assert picture.n_frames == 2


def test_samples_that_would_not_fit_into_memory_are_left_out(run, monkeypatch, tmp_path):
    monkeypatch.setattr(columns, "MAX_LIFT_BYTES", 100)
    film = fc.plot.animate(run, frames=2)
    means, features, _ = drawn(film.figure.axes[0])
    assert means.shape == (2, 3)
    assert [places.shape for places in features] == [(2, 0)] * 3
    assert any("none drawn" in text.get_text() for text in film.figure.texts)
    assert "features" not in [text.get_text() for text in film.figure.legends[0].get_texts()]


def test_a_run_that_diverges_is_shown_as_far_as_it_is_finite():
    start = fc.initial.sphere(MODEL, 0.5, key=jax.random.key(0))
    path = fc.simulate(MODEL, start, fc.Descent("sgd", 80, learning_rate=5.0), 81, save_states=True)
    motion = _motion.motion_of(path, 4)
    assert 2 <= len(motion.times) < 81
    assert np.isfinite(motion.means).all()
    fc.plot.animate(path, frames=3)


def test_a_gif_has_the_frames_and_colours_of_the_film(run, tmp_path):
    film = fc.plot.animate(run, frames=12, fps=10)
    fc.plot.save(film, tmp_path / "a.gif")
    canvas = FigureCanvasAgg(film.figure)
    canvas.draw()
    wanted = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    with GifImageFile(str(tmp_path / "a.gif")) as picture:
        assert (picture.format, picture.size) == ("GIF", (640, 360))
        assert 10 <= picture.n_frames <= 12
        lengths = []
        for i in range(picture.n_frames):
            picture.seek(i)
            lengths.append(picture.info["duration"])
        last = np.asarray(picture.convert("RGB")).astype(int)
        assert picture.info["loop"] == 0
    assert lengths == [100] * (len(lengths) - 1) + [1600]
    assert (last[0, 0] == 255).all()
    assert np.abs(last - wanted).mean() < 0.5
    assert (np.abs(last - wanted).max(axis=2) > 32).mean() < 0.01  # edges of marks


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_an_mp4_is_written_by_ffmpeg(run, tmp_path):
    fc.plot.save(fc.plot.animate(run, frames=3), tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a script of Unix")
def test_an_ffmpeg_that_fails_is_told(run, tmp_path, monkeypatch):
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\ncat > /dev/null; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    with plt.rc_context({"animation.ffmpeg_path": str(broken)}):
        film = fc.plot.animate(run, frames=2)
        systems.assert_refused(lambda: fc.plot.save(film, tmp_path / "a.mp4"), ["ended with code 3", "in .gif"])
    assert [file.name for file in tmp_path.iterdir()] == ["ffmpeg"]


def test_classes_differ_in_grey_and_in_shape():
    weights = (0.2126, 0.7152, 0.0722)
    greys = [np.dot(weights, to_rgb(color)) for color in moving.CLASS_COLORS]
    assert np.abs(np.diff([*greys, greys[0]])).min() > 0.1
    assert len(set(moving.CLASS_MARKS)) == len(moving.CLASS_MARKS) == 8


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"frames": 0}, "frames must be a positive integer"),
        ({"fps": 0}, "fps must be a positive integer"),
        ({"fps": 60}, "at most 50 frames a second"),
        ({"samples": -1}, "samples must be a positive integer"),
    ],
)
def test_wrong_numbers_are_refused(run, options, fragment):
    systems.assert_refused(lambda: fc.plot.animate(run, **options), [fragment])


def test_what_is_no_single_run_with_states_is_refused(run, tmp_path):
    several = jax.tree.map(lambda x: jnp.stack([x, x]), run)
    dataset = run.to_xarray()
    for source, fragment in (
        (3, "dataset must be"),
        (tmp_path / "a.nc", "does not exist"),
        (descend(ts=3).to_xarray().drop_vars("H"), "no states H and W"),
        (several, "lanes of shape"),
        (dataset.expand_dims(lane=2), "select one first"),
        (dataset.drop_vars("time"), "has no times"),
        (dataset.isel(sample=slice(1, None)), "not those of its 3 classes"),
        (dataset * np.nan, "no finite state"),
        (xr.Dataset({"snc1": (("eps", "time"), [[1.0]])}, {"eps": [0.1]}), "it is a sweep"),
    ):
        systems.assert_refused(lambda source=source: fc.plot.animate(source), [fragment])
    start = fc.initial.sphere(MODEL, 0.5, key=jax.random.key(0))
    bare = fc.simulate(MODEL, start, fc.Descent("sgd", 80, learning_rate=0.05), 3, metrics=())
    systems.assert_refused(lambda: fc.plot.animate(bare), ["save_states=True"])
    assert plt.get_fignums() == []


def test_only_films_become_films(run, tmp_path, monkeypatch):
    film = fc.plot.animate(run, frames=2)
    systems.assert_refused(lambda: fc.plot.save(film, tmp_path / "a.png"), ["does not end in .gif, .mp4"])
    systems.assert_refused(lambda: fc.plot.save(film.figure, tmp_path / "a.gif"), ["does not end in .png"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    systems.assert_refused(lambda: fc.plot.save(film, tmp_path / "a.mp4"), ["needs ffmpeg", "end the name in .gif"])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_film_leaves_nothing(run, tmp_path, monkeypatch):
    film = fc.plot.animate(run, frames=3)
    seen = []

    def stop(frame):
        seen.append(frame)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(film, "_func", stop)
    for name in ("new/a.gif", "a.mp4") if shutil.which("ffmpeg") else ("new/a.gif",):
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            fc.plot.save(film, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
