"""The page in a browser: self-contained, on a narrow screen, in dark mode, with a working table."""

import contextlib
import json
import shutil

import pytest
from report_runs import fabricated, write_run

from w2s_jax.report import write_report

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="no browser: pip install 'w2s_jax[browser]'"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: chromium is not installed")


def sized(result, strong, size):
    """Adds model sizes to a result, so that there is a ladder."""
    result["weak"]["parameters"] = 1000
    for entry in (result["ceiling"], *result["students"].values()):
        entry |= {"model": strong, "parameters": size}
    return result


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    runs = []
    for seed in (0, 1):
        for strong, size in (("strong-a", 10_000), ("strong-b", 300_000)):
            task = f"a_task_with_quite_a_long_name_{seed}"
            result = sized(fabricated(seed, seed / 100 + size / 1e7, task=task), strong, size)
            result["students"]["xent+bootstrap"] = result["students"]["xent"] | {
                "accuracy": 0.761, "method": "bootstrap",
            }  # fmt: skip
            result["students"]["confidence"].pop("pgr")
            runs.append(write_run(folder / f"{strong}-{seed}", result, curves=not runs))
    return write_report(runs, folder / "out")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@contextlib.contextmanager
def opened(browser, path, width=1280, scheme="light", fragment=""):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.messages, page.requests = [], []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(path.as_uri() + fragment)
    yield page
    page.close()


def visible(page):
    """Returns (run, label) of the table's visible rows, in order."""
    return page.evaluate(
        "Array.from(document.querySelectorAll('#runs tbody tr')).filter(r => r.offsetParent)"
        ".map(r => [r.dataset.run, r.dataset.label])"
    )


def test_the_page_loads_nothing_else_and_logs_nothing(browser, path):
    with opened(browser, path) as page:
        assert page.messages == []
        requests = [u for u in page.requests if not u.startswith("data:")]
        assert requests == [path.as_uri()]


def test_every_figure_is_drawn(browser, path):
    with opened(browser, path) as page:
        names = page.evaluate(
            "Array.from(document.querySelectorAll('figure')).map(f => f.dataset.figure)"
        )
        # Two tasks; agreement has one panel per task and label; one run has curves of three phases.
        wanted = {"ladder": 2, "pgr": 1, "accuracy": 4, "agreement": 6, "training": 3}
        assert {name: names.count(name) for name in names} == wanted
        boxes = page.evaluate(
            "Array.from(document.querySelectorAll('figure svg')).map(s => {"
            "const b = s.getBoundingClientRect(); const t = s.querySelectorAll('text');"
            "return [b.width, b.height, s.querySelectorAll('path').length, t.length]})"
        )
        assert len(boxes) == sum(wanted.values())
        for width, height, paths, texts in boxes:
            assert width > 250 and height > 100 and paths > 3 and texts > 3


def test_filters_and_search_show_matching_rows(browser, path):
    with opened(browser, path) as page:
        everything = visible(page)
        # Weak model, three students, ceiling.
        assert len(everything) == 4 * 5
        options = page.evaluate(
            "Array.from(document.querySelector('select[name=method]').options).map(o => o.value)"
        )
        assert options == ["", "bootstrap", "naive"]
        page.select_option("select[name=strong]", "strong-b")
        assert {run for run, _ in visible(page)} == {"strong-b-0", "strong-b-1"}
        page.select_option("select[name=loss]", "xent")
        page.select_option("select[name=seed]", "1")
        wanted = [["strong-b-1", "xent"], ["strong-b-1", "xent+bootstrap"]]
        assert visible(page) == wanted
        page.select_option("select[name=method]", "bootstrap")
        assert visible(page) == wanted[1:]
        assert page.inner_text("#shown") == "1 of 20 rows"
        page.click("#filters button")
        assert visible(page) == everything
        page.fill("#filters input", "NAME_1 confidence")
        assert visible(page) == [["strong-a-1", "confidence"], ["strong-b-1", "confidence"]]
        page.fill("#filters input", "no such words")
        assert visible(page) == []


def column(page, index):
    return page.evaluate(
        "i => Array.from(document.querySelectorAll('#runs tbody tr'))"
        ".map(r => r.cells[i].dataset.value ?? r.cells[i].textContent.trim())",
        index,
    )


def test_columns_sort_by_value_with_undefined_values_last(browser, path):
    with opened(browser, path) as page:
        heads = page.locator("#runs thead th").all_inner_texts()
        accuracy, pgr, role = (heads.index(n) for n in ("accuracy", "PGR", "role"))
        for index in (accuracy, pgr):
            before = column(page, index)
            page.locator("#runs thead th").nth(index).locator("button").click()
            up = column(page, index)
            numbers = [float(v) for v in up if v]
            assert numbers == sorted(numbers) and sorted(up) == sorted(before)
            page.locator("#runs thead th").nth(index).locator("button").click()
            down = column(page, index)
            assert [float(v) for v in down if v] == numbers[::-1]
            for values in (up, down):
                assert "" not in values[: len(numbers)]
        assert page.locator("#runs th[aria-sort]").count() == 1
        page.locator("#runs thead th").nth(role).locator("button").click()
        assert column(page, role) == sorted(column(page, role))


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways(browser, path, width):
    with opened(browser, path, width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        wide = page.evaluate(
            "Array.from(document.querySelectorAll('svg, p, h1, h2, h3, .filters *, .notes'))"
            ".filter(e => e.getBoundingClientRect().right > innerWidth).length"
        )
        assert wide == 0


def luminance(page, selector, property_):
    found = page.evaluate(
        "([s, p]) => getComputedStyle(document.querySelector(s))[p].match(/[\\d.]+/g).map(Number)",
        [selector, property_],
    )
    return sum(found[:3]) / 3


def test_figures_follow_the_color_scheme(browser, path):
    for scheme, dark in (("light", False), ("dark", True)):
        with opened(browser, path, scheme=scheme) as page:
            assert (luminance(page, "body", "backgroundColor") < 60) is dark
            for selector, property_ in (("body", "color"), ("figure svg text", "fill")):
                assert (luminance(page, selector, property_) > 180) is dark, selector


def test_a_row_links_to_its_config(browser, path):
    with opened(browser, path) as page:
        page.locator("#runs tbody a").nth(5).click()
        details = page.locator("details[open]").first
        assert "learning_rate" in details.inner_text()
        link = details.locator("a").get_attribute("href")
        assert json.loads((path.parent / link).read_text())["config"]["seed"] in (0, 1)
    with opened(browser, path, fragment="#run-2") as page:
        assert page.locator("#run-2").get_attribute("open") is not None
