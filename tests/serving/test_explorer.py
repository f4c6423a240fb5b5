"""The explorer in a real Chromium, on a phone's width and on a screen's."""

import os
import re
import shutil
import signal

import pytest
from bundles import ARABIC, CHINESE, MARKUP, REWORDED, TITLES, write_bundle
from server import serving
from tools import missing
from writers import write_writer

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.slow
WIDTHS = (390, 1400)


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing("chromium (apt-get install chromium)")
    # A container's root may not make sandboxes.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    write_bundle(folder / "a", "baseline", 0)
    write_bundle(folder / "b", "CroPS", 1)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    bundles = (folder / "a" / "bundle", folder / "b" / "bundle")
    with serving(*bundles, "--examples", MARKUP, "transformer", log=folder / "log") as started:
        yield started


@pytest.fixture(params=WIDTHS)
def page(request, browser, server):
    """A page of this width; every test ends without an error in it and without anything that is wider than it."""
    context = browser.new_context(viewport={"width": request.param, "height": 800}, color_scheme="dark")
    opened, errors = context.new_page(), []
    opened.set_default_timeout(15_000)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda m: errors.append(m.text) if "Content Security Policy" in m.text else None)
    asked = []
    opened.on("request", lambda r: asked.append(r.url))
    opened.goto(server.address)
    yield opened
    assert errors == [] and all(url.startswith((server.address, "data:")) for url in asked)
    assert opened.evaluate("document.documentElement.scrollWidth") <= request.param
    context.close()


def search(page, query):
    page.get_by_role("searchbox").fill(query)
    shows(page, query)


def shows(page, query):
    """Waits until the page shows this query; its policy lets nobody evaluate text, as `wait_for_function` would."""
    sync_api.expect(page).to_have_title(re.compile(f"^{re.escape(query)} "), timeout=15_000)


def shows_results(page, count):
    sync_api.expect(page.locator(".chosen li[data-id]")).to_have_count(count, timeout=15_000)


def result(page, title, item):
    """The result of an item in a list; on a phone the list is chosen first."""
    if page.locator("#switch").is_visible():
        page.locator("#switch").get_by_text(title, exact=True).click()
    return page.locator("section", has=page.locator("h2", has_text=title)).locator(f'li[data-id="{item}"]')


def test_what_is_typed_is_searched_and_both_lists_say_what_moved(page):
    page.get_by_role("searchbox").press_sequentially("Transformer")
    page.wait_for_selector(".chosen li[data-id]")
    page.get_by_label("Results").select_option("20")
    shows_results(page, 20)
    assert "Asked 3 times on the train day." in page.locator("#seen").inner_text()
    assert "q=Transformer" in page.url and "k=20" in page.url
    places = [page.locator("section").nth(i).locator("li[data-id]").evaluate_all("all => all.map(li => li.dataset.id)")
              for i in (0, 1)]  # fmt: skip
    assert sorted(places[0]) == sorted(places[1]) == sorted(map(str, range(20))) and places[0] != places[1]
    for item in places[1][:5]:
        before, now = (order.index(item) + 1 for order in places)
        said = result(page, "CroPS", item).locator(".facts").inner_text()
        assert ("same place" if before == now else f"{'▲' if now < before else '▼'} {before} in baseline") in said
    visible = page.locator("section:visible").count()
    assert visible == (1 if page.viewport_size["width"] == 390 else 2)


def test_evidence_is_that_of_the_method(page):
    search(page, "transformer")
    page.get_by_label("Results").select_option("20")
    shows_results(page, 20)
    ours = result(page, "CroPS", 4)
    assert ours.locator(".why").inner_text() == "P2: watched in the feed by 2 users who asked this"
    said = ours.locator(".facts").inner_text()
    assert all(part in said for part in ("label 4", "grade 2", "never shown for this query", "cosine"))
    assert f"reworded to “{REWORDED}”" in result(page, "CroPS", 5).inner_text()
    assert "shown 2 ×, clicked 1 ×" in result(page, "CroPS", 0).inner_text()
    theirs = result(page, "baseline", 4).inner_text()
    assert "not trained on here: P2: watched" in theirs and "no label" in theirs


def test_a_query_that_nobody_asked_is_called_unseen(page):
    search(page, "lamp of nobody")
    assert "Unseen: nobody asked this" in page.locator("#seen").inner_text()


def test_nothing_from_logs_becomes_markup(page):
    search(page, MARKUP)
    hit = page.locator(".chosen li[data-id='9']")
    hit.wait_for()
    assert hit.locator("h3").inner_text() == MARKUP and page.title() != "taken"
    assert page.locator("main script, main img, main i, #examples script, #examples img, #seen i").count() == 0
    search(page, "transformer")
    assert "“Written <i>by</i> a model”" in page.locator("#seen").inner_text()
    assert "script-src 'self'" in page.request.get(page.url).headers["content-security-policy"]


@pytest.mark.parametrize(("text", "direction"), [(ARABIC, "rtl"), (CHINESE, "ltr")])
def test_texts_run_in_their_own_direction(page, text, direction):
    search(page, text)
    bdi = page.locator(f'.chosen li[data-id="{TITLES.index(text)}"] h3 bdi')
    assert bdi.inner_text() == text and bdi.evaluate("e => getComputedStyle(e).direction") == direction
    box = page.get_by_role("searchbox")
    assert box.evaluate("e => getComputedStyle(e).direction") == direction


def test_examples_addresses_and_the_way_back(page):
    page.locator("#examples button", has_text="transformer").first.click()
    shows(page, "transformer")
    page.locator("#examples button").first.click()
    shows(page, MARKUP)
    page.go_back()
    shows(page, "transformer")
    assert page.get_by_role("searchbox").input_value() == "transformer"
    page.reload()
    page.wait_for_selector(".chosen li[data-id]")


def test_the_keyboard_is_enough(page):
    search(page, "transformer")
    page.get_by_role("searchbox").press("ArrowDown")
    focused = "document.activeElement.dataset.rank"
    assert page.evaluate(focused) == "1"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == "2"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.querySelector('details').open")
    if page.viewport_size["width"] > 760:
        where = "document.activeElement.closest('section').querySelector('h2 bdi').textContent"
        assert page.evaluate(where) == "baseline"
        page.keyboard.press("ArrowRight")
        assert page.evaluate(where) == "CroPS" and page.evaluate(focused) == "2"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"


def test_one_bundle_alone_has_one_list(browser, folder):
    with serving(folder / "b" / "bundle", log=folder / "log1") as server:
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="light")
        page.goto(f"{server.address}/?q=transformer")
        page.wait_for_selector(".chosen li[data-id]")
        assert page.locator("section").count() == 1 and page.locator("#switch").is_hidden()
        assert "▲" not in page.locator("main").inner_text()
        # The server goes away while the page is open.
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        page.get_by_role("searchbox").fill("coil")
        page.get_by_text("The server does not answer. Is it still running?").wait_for()
        assert page.locator(".chosen li[data-id]").count() > 0, "what was found before stays"
        page.close()


def test_queries_are_suggested_while_one_types(browser, folder, tmp_path):
    queries = ["transformer coil", "<img src=x onerror=alert(1)>", CHINESE]
    writer = write_writer(tmp_path / "writer", queries)
    with serving(folder / "a" / "bundle", "--writer", writer, log=tmp_path / "log") as started:
        page = browser.new_page()
        page.goto(started.address)
        box = page.get_by_role("combobox", name="Query")
        box.press_sequentially("tr")
        offered = page.locator("#suggested option")
        sync_api.expect(offered).to_have_count(3, timeout=15_000)
        assert sorted(offered.evaluate_all("all => all.map(option => option.value)")) == sorted(queries)
        assert page.locator("#suggested").evaluate("list => list.querySelectorAll(':not(option)').length") == 0
        page.close()
