"""`flowcollapse animate`: its film is that of the run that `simulate` makes, and bad input is refused before it."""

import shutil
import sys

import jax
import pytest
from PIL.GifImagePlugin import GifImageFile

import flowcollapse as fc
from flowcollapse import cli
from flowcollapse.cli.animate import Animate

DESCENT = ["--method", "descent", "--num-steps", "30", "--num-features", "4", "--learning-rate", "0.05"]


def test_the_command_films_a_run(tmp_path, capsys):
    file = tmp_path / "new" / "film.gif"
    assert cli.main(["animate", *DESCENT, "--frames", "4", "--fps", "5", "--samples", "2", "--out", str(file)]) == 0
    out = capsys.readouterr().out
    assert "descent (sgd, 30 steps)" in out
    assert f"Wrote {file}" in out
    with GifImageFile(str(file)) as picture:
        assert picture.n_frames == 4
        assert picture.info["duration"] == 200
    assert [one.name for one in file.parent.iterdir()] == ["film.gif"]


@pytest.mark.parametrize("words", ["--loss cross-entropy --no-use-bias", "--samples-per-class 3,1,2 --start balanced"])
def test_what_the_film_shows_beside_the_motion(words, tmp_path, monkeypatch):
    """Runs without strong collapse show collapse."""
    seen = []

    def animate(path, **options):
        seen.append(path)
        return real(path, **options)

    real = fc.plot.animate
    monkeypatch.setattr(fc.plot, "animate", animate)
    words = [*DESCENT, *words.split(), "--frames=2", "--quiet", "--out", str(tmp_path / "a.gif")]
    assert cli.main(["animate", *words]) == 0
    assert set(seen[0].metrics) == {"risk", "nc1", "nc2_etf_h", "nc2_etf_w", "nc3"}
    assert seen[0].states.W.shape[0] == 31  # every step


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--out film.avi", "does not end in .gif, .mp4"),
        ("--out film.png", "does not end in .gif, .mp4"),
        ("--out TAKEN.gif", "it is a folder"),
        ("--out film.mp4", "needs ffmpeg, which is not found: end the name in .gif"),
        ("--frames 0", "frames must be a positive integer"),
        ("--fps 100", "fps is 100, and viewers show at most 50"),
        ("--samples 0", "samples must be a positive integer"),
        ("--eps 0", "eps must be a positive number"),
        ("--learning-rate 0.1", "--learning-rate is for a descent"),
    ],
)
def test_bad_input_is_refused_before_the_run(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TAKEN.gif").mkdir()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys.modules["flowcollapse.simulation"], "_simulate", lambda *_: pytest.fail("the run began"))
    assert cli.main(["animate", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert len(err.splitlines()) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["TAKEN.gif"]


@pytest.mark.parametrize(
    ("samples", "loss", "saves"), [(3, "squared", 800), (10**6, "squared", 800), (10**6, "focal:2", 2)]
)
def test_large_states_are_saved_less_often(samples, loss, saves):
    model = fc.UFM(num_classes=3, samples_per_class=samples, num_features=15, loss=loss)
    start = jax.eval_shape(lambda: fc.initial.sphere(model, 0.1, key=jax.random.key(0), reduced=False))
    assert Animate()._saves(start, model) == saves
