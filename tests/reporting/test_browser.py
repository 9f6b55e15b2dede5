"""Pages in a real browser, headless Chromium: the charts, the switches, clicks, and that nothing leaves the page."""

import json
import shutil
import time
from typing import Any

import numpy as np
import pytest
import xarray as xr

import flowcollapse as fc
from flowcollapse.reporting.rerun import rerun
from flowcollapse.results.labels import attributes
from flowcollapse.results.provenance import provenance

CHROMIUM, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser"), ("chromedriver",))
)

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver")

ATTACK = '<script>document.title = "taken"</script><img src=x onerror=\'document.title="taken"\'>'

WIDTH = "return document.documentElement.scrollWidth"

MODEL = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def sweep(seeds, eps, times=5, rates=(0.1,)):
    """A sweep of known numbers: three metrics over four axes."""
    axes = ("learning_rate", "eps", "seed")
    lanes = (len(rates), len(eps), seeds)
    decay = np.exp(-np.arange(times)) * np.array(eps)[:, None, None] ** 2 * (1 + np.arange(seeds)[:, None] / seeds)
    values = np.broadcast_to(decay, (*lanes, times))
    variables: dict[str, Any] = {
        name: ((*axes, "time"), values * size, attributes(name))
        for name, size in (("snc1", 1), ("risk", 7), ("nc1", 3))
    }
    variables["steps_taken"] = (axes, np.full(lanes, 9), {})
    variables["verdict"] = (axes, np.zeros(lanes, np.int8), attributes("verdict"))
    coords = {"learning_rate": list(rates), "eps": list(eps), "seed": np.arange(seeds), "time": np.arange(times) * 1.0}
    about = provenance(MODEL, fc.Descent("sgd", 10, learning_rate=0.1), start="sphere", note=ATTACK)
    return xr.Dataset(variables, coords, about)


@pytest.fixture(scope="module")
def small():
    return sweep(4, (0.1, 0.01), rates=(0.1, 0.2))


@pytest.fixture(scope="module")
def opened(browser, small, tmp_path_factory):
    """The page of a small sweep, open in the browser."""
    file = tmp_path_factory.mktemp("page") / "small.html"
    fc.report(small, file)
    browser.get(file.as_uri())
    return browser


def find(browser, name):
    from selenium.webdriver.common.by import By

    return browser.find_element(By.ID, name)


def drawn(browser, chart="curves"):
    """The values of the last trace of a chart."""
    return browser.execute_script(f"return document.getElementById('{chart}').data.at(-1).y.slice()")


def choose(browser, name, text):
    from selenium.webdriver.support.ui import Select

    Select(find(browser, name)).select_by_visible_text(text)


def test_the_page_is_quiet_and_asks_for_nothing(opened):
    assert opened.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = (json.loads(entry["message"])["message"] for entry in opened.get_log("performance"))
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked
    assert {address.partition(":")[0] for address in asked} <= {"file", "data", "blob"}
    assert sum(address.startswith("file:") for address in asked) == 1  # the page itself


def test_the_policy_of_the_page_lets_no_request_out(opened):
    refused = opened.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), (error) => done(error.name));"
    )
    assert refused == "TypeError"
    logged = " ".join(entry["message"] for entry in opened.get_log("browser"))
    assert "Content Security Policy" in logged


def test_the_metric_switch_changes_the_curve(opened, small):
    choose(opened, "curves-metric", "snc1: strong collapse of the classifier")
    before = drawn(opened)
    np.testing.assert_allclose(before, small["snc1"].isel(learning_rate=0, eps=1).median("seed"), rtol=1e-3)
    choose(opened, "curves-metric", "risk")
    after = drawn(opened)
    np.testing.assert_allclose(after, small["risk"].isel(learning_rate=0, eps=1).median("seed"), rtol=1e-3)
    assert before != after


def test_curves_can_be_drawn_for_each_value_of_another_axis(opened):
    choose(opened, "curves-along", "learning_rate")
    names = opened.execute_script(
        "return document.getElementById('curves').data.filter((t) => t.name).map((t) => t.name)"
    )
    assert "learning_rate = 0.2" in names
    choose(opened, "curves-along", "eps")


def test_axes_can_be_logarithmic(opened):
    kind = "return document.getElementById('curves').layout.yaxis.type"
    assert opened.execute_script(kind) == "log"
    find(opened, "curves-logy").click()
    assert opened.execute_script(kind) != "log"
    find(opened, "curves-logy").click()


def test_a_click_on_a_run_shows_its_command(opened, small):
    from selenium.webdriver.common.by import By

    row = opened.find_element(By.CSS_SELECTOR, 'tr[data-lane="1,0,2"]')
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", row)
    row.click()
    assert find(opened, "command").text == rerun(small).command({"learning_rate": 1, "eps": 0, "seed": 2})
    assert find(opened, "lane-name").text == "learning_rate = 0.2, eps = 0.1, seed = 2"


def test_a_click_on_a_point_shows_its_command(opened, small):
    from selenium.webdriver.common.action_chains import ActionChains

    # The place of a point on the screen, from the axes of the chart.
    x, y, lane = opened.execute_script(
        """const chart = document.getElementById('ends'), points = chart.data[0], i = 5, layout = chart._fullLayout;
        chart.scrollIntoView({block: 'center'});
        const box = chart.getBoundingClientRect();
        return [box.x + layout.xaxis._offset + layout.xaxis.d2p(points.x[i]),
                box.y + layout.yaxis._offset + layout.yaxis.d2p(points.y[i]), points.customdata[i]];"""
    )
    actions = ActionChains(opened)
    actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    actions.pause(0.3).click().perform()
    rate, eps, seed = map(int, lane.split(","))
    assert find(opened, "command").text == rerun(small).command({"learning_rate": rate, "eps": eps, "seed": seed})


def test_a_script_in_the_file_is_shown_as_text(opened):
    assert opened.title == "A sweep · flowcollapse"
    assert ATTACK in opened.execute_script("return document.body.innerText")


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_the_window(opened, width):
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:  # charts take their new size a moment after the window
        WebDriverWait(opened, 20).until(lambda page: page.execute_script(WIDTH) <= width)
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_hundred_thousand_runs_open_at_once(browser, tmp_path):
    dataset = sweep(2500, (1.0, 0.1, 0.01, 0.001), rates=tuple(np.linspace(0.1, 0.2, 10).round(3)))
    assert dataset["verdict"].size == 100_000
    file = tmp_path / "large.html"
    fc.report(dataset, file)
    assert file.stat().st_size < 10e6
    began = time.monotonic()
    browser.get(file.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert time.monotonic() - began < 30  # no hang; the time itself is measured by hand
    assert "100000 runs (10 learning_rate × 4 eps × 2500 seed)" in browser.page_source
