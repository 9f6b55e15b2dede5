"""HTML views of results: whole documents of tags, text shown as text, and curves that go through the values."""

import html.parser
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowcollapse as fc
from flowcollapse.results.views import HEIGHT, WIDTH, spark, table
from flowcollapse.theory.certificate import Certificate, Row


class Reader(html.parser.HTMLParser):
    """The texts of an HTML document, which must close what it opens."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.tags = [], [], set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def html_of(value) -> str:
    return value._repr_html_()


def test_a_run_shows_its_table_and_a_curve_of_each_metric(paper_model, key):
    path = fc.simulate(paper_model, fc.initial.sphere(paper_model, 0.1, key=key), fc.Flow(), 5, metrics="snc1,risk")
    found = Reader(html_of(path))
    for line in repr(path).splitlines()[1:]:
        name, _, text = line.strip().partition("  ")
        assert name in found.texts
        assert text.strip() in found.texts
    assert html_of(path).count("<polyline") == 2
    assert {"table", "svg", "polyline"} <= found.tags


def test_inside_jit_there_is_no_view(paper_model, key):
    start = fc.initial.sphere(paper_model, 0.1, key=key)

    def run(start):
        path = fc.simulate(paper_model, start, fc.Descent("sgd", 2, learning_rate=0.1), metrics="risk")
        assert path._repr_html_() is None
        return path.final.W

    jax.eval_shape(run, start)


def test_certificates_fits_and_plateaus(paper_model, key):
    row = Row("a law", "1 < 2 & 2 < 3", "Peano", 0.0, 1e-12, comparisons=1, seconds=0.1)
    assert "1 < 2 & 2 < 3" in Reader(html_of(Certificate((row,), {}, "cpu", "float64"))).texts
    plateau = fc.theory.limits.plateau(paper_model, fc.initial.sphere(paper_model, 1e-3, key=key))
    texts = Reader(html_of(plateau)).texts
    assert f"{float(plateau.metrics['snc1']):.6g}" in texts
    epoch = np.arange(5, 100)
    mode = 1 / (1 + np.exp(-0.2 * (epoch - 50.0)))
    fit = fc.fit({"epoch": epoch, "risk": 25 * (1 - mode) ** 2}, num_classes=3, samples_per_class=25)
    assert any(fit.reason in text for text in Reader(html_of(fit)).texts)


def test_text_cannot_become_tags():
    evil = "<script>alert(1)</script>"
    text = table(evil, [(evil, spark([0, 1], [1, 2]))], (evil,))
    assert "<script" not in text
    assert Reader(text).texts.count(evil) == 3


def points(drawn) -> list[np.ndarray]:
    lines = re.findall(r'points="([^"]+)"', drawn)
    return [np.array([[float(x) for x in point.split(",")] for point in line.split()]) for line in lines]


@pytest.mark.parametrize("values", [[1.0, 0.1, 0.01], [-1.0, 0.0, 1.0], [2.0, 2.0, 2.0]])
def test_a_small_curve_goes_through_the_values(values):
    """Positive values are on a logarithmic axis; either way these three are equally spaced."""
    (line,) = points(spark([0.0, 5.0, 10.0], values))
    np.testing.assert_allclose(line[:, 0], 2 + WIDTH * np.array([0, 0.5, 1]), atol=0.05)
    share = (np.max(values) - np.log(values) / np.log(10) - 1) / 2 if min(values) > 0 else (1 - np.array(values)) / 2
    share = np.full(3, 0.5) if len(set(values)) == 1 else share
    np.testing.assert_allclose(line[:, 1], 2 + HEIGHT * share, atol=0.05)


def test_lanes_and_gaps():
    times = jnp.array([0.0, 1.0, 2.0])
    values = jnp.array([[1.0, 2.0, jnp.nan], [3.0, 2.0, 1.0]])
    first, second = points(spark(times, values))
    assert len(first) == 2
    assert len(second) == 3
    assert spark(times, times * jnp.nan) == ""
    assert len(points(spark(times, jnp.ones((40, 3))))) == 12
