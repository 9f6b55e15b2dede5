"""The axes of pictures: readable logarithmic ticks, and numbers as readers expect them."""

import pytest

from flowcollapse.plot._style import log_ticks, tex


@pytest.mark.parametrize("low", [1e-30, 3e-7, 0.9, 40.0])
@pytest.mark.parametrize("ratio", [1.05, 1.6, 3.0, 7.0, 30.0, 150.0, 1e5, 1e30])
def test_logarithmic_axes_have_some_ticks_but_not_many(low, ratio):
    locator, formatter = log_ticks(low, low * ratio)
    ticks = [tick for tick in locator.tick_values(low, low * ratio) if low <= tick <= low * ratio]
    assert 2 <= len(ticks) <= 10
    formatter.create_dummy_axis()
    formatter.set_locs(ticks)
    labels = [formatter(tick) for tick in ticks]
    assert all(labels)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("number", [0, 3, 1234567, -0.5, 0.001, 1e-4, 3e-5, 2.5e-12, 1e12, 1 / 3])
def test_numbers_read_as_they_are(number):
    mantissa, _, power = tex(number).replace(r"\times", "").partition("10^")
    read = float(mantissa or 1) * 10.0 ** int(power.strip("{}") or 0)
    assert read == pytest.approx(number, rel=1e-5)
