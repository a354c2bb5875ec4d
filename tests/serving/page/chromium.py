"""The page in a real Chromium: its fixtures, and what every visit does.

Needs Debian's package `chromium` and playwright, which drives it; without either the tests are
skipped, saying why. Used by `pytest_plugins = ["tests.serving.page.chromium"]`.
"""

import shutil
import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn

FLAGS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage"]


@contextmanager
def running(app):
    """The address of the application under uvicorn, on a free port of loopback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(page_app):
    with running(page_app) as address:
        yield address


@pytest.fixture
def visit(browser, address):
    """`visit(width=..., color_scheme=...)`: an open page. Any error of its own fails the test."""
    contexts, problems = [], []

    def open_page(width=1200, color_scheme="light", address=address):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=color_scheme, base_url=address
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a machine may be busy
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: said.type == "error" and problems.append(said.text))
        page.goto("/")
        page.locator("#ids-content button, #token-form:not([hidden])").first.wait_for()
        return page

    open_page.problems = problems
    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def choose_user(page, user_id):
    page.get_by_label("User id, or its first digits").fill(str(user_id))
    page.get_by_role("button", name=f"User {user_id}", exact=False).first.click()
    page.get_by_text(f"User {user_id}, newest first.").or_(
        page.get_by_text(f"Nothing is known of user {user_id}.")
    ).wait_for()
    rows(page).first.wait_for()


def rows(page):
    return page.locator("#ranked > li")


def ranked_ids(page):
    return rows(page).evaluate_all("items => items.map(item => item.dataset.track)")


def note(page):
    return page.locator("#ranking-note")


def said(page, text):
    note(page).filter(has_text=text).wait_for()


def history_titles(page):
    return page.locator("#history strong").all_inner_texts()


def heard_sound(page):
    """Returns once some of it was played. (The page's policy forbids `wait_for_function`.)"""
    page.locator("#audio").evaluate(
        """audio => new Promise(done => {
            const look = () => audio.currentTime > 0 && done();
            audio.addEventListener("timeupdate", look);
            look();
        })"""
    )
