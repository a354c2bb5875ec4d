"""The page in a real Chromium: everything a visitor does, with mouse and keyboard.

Needs Debian's package `chromium` and playwright, which drives it; skipped, saying why, otherwise.
Screenshots go to the test's temporary folder (`pytest --basetemp FOLDER` keeps them).
"""

import shutil
import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn

from serving.tokens import create_token, tokens_path
from tests.serving.page.page_world import AUDIBLE, LENGTH, MARKUP, load_patient_app

pytestmark = pytest.mark.browser
LARGE_ID = 2**53 + 1
"""No JavaScript number."""
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


def test_feedback_changes_history_and_ranking(visit):
    page = visit()
    choose_user(page, 700_001)
    said(page, "Nothing is known of this listener")
    before = ranked_ids(page)
    assert len(before) == 20
    first = rows(page).nth(0)
    title = first.locator("strong").inner_text()
    with page.expect_response("**/v1/recommend") as again:
        first.get_by_role("button", name="Favourite").click()
    assert again.value.ok
    said(page, "favourite. Taken.")
    page.locator("#history li").wait_for()
    assert history_titles(page) == [title]
    assert "favourite" in page.locator("#history li").inner_text()
    after = ranked_ids(page)
    assert before[0] not in after
    assert after != before[1:]
    # A skip is sent, and enters no history.
    with page.expect_response("**/v1/events") as skip:
        rows(page).nth(2).get_by_role("button", name="Skip").click()
    assert skip.value.json()["accepted"] == 1
    said(page, "A skip enters no history")
    assert ranked_ids(page) == after
    page.get_by_label("with tracks already heard").check()
    page.locator(f'#ranked > li[data-track="{before[0]}"]').wait_for()


def test_a_made_up_listener_is_never_sent_as_an_event(visit):
    page = visit()
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    page.get_by_role("button", name="Make one up").click()
    page.get_by_label("Add tracks by title or artist").fill("number 17")
    page.locator("#found-tracks button").first.click()
    page.get_by_text("Made up, newest first.").wait_for()
    assert history_titles(page) == ["Song number 17"]
    rows(page).first.wait_for()
    assert "17" not in ranked_ids(page)
    page.locator("#ranked > li .up, #ranked > li .down").first.wait_for()  # what moved is marked
    title = rows(page).nth(1).locator("strong").inner_text()
    rows(page).nth(1).get_by_role("button", name="Play").click()
    said(page, "Noted in this page only.")
    assert history_titles(page) == [title, "Song number 17"]
    rows(page).nth(0).get_by_role("button", name="Why").click()
    page.locator("#ranked table tbody tr").first.wait_for()
    assert page.locator("#ranked table tbody th").all_inner_texts() == [title, "Song number 17"]
    page.get_by_role("button", name="Remove: Song number 17").click()
    page.locator("#history li").nth(1).wait_for(state="detached")
    assert history_titles(page) == [title]
    assert not [url for url in sent if url.endswith("/v1/events")]


def test_why_has_a_weight_for_every_modality(visit):
    page = visit()
    choose_user(page, 5)
    why = rows(page).nth(0).get_by_role("button", name="Why")
    why.click()
    table = rows(page).nth(0).locator("table")
    table.wait_for()
    assert why.get_attribute("aria-expanded") == "true"
    heads = table.locator("thead th").all_inner_texts()
    assert heads[1:] == ["text", "audio", "joint", "track", "change", "codes shared"]
    assert table.locator("tbody tr").count() == LENGTH
    assert table.locator("tbody th").all_inner_texts() == history_titles(page)
    weights = [float(text) for text in table.locator("td.heat").all_inner_texts()]
    assert len(weights) == LENGTH * 5
    assert any(weights)
    # The greatest weight of a column has the full colour.
    shares = table.locator("tr td:nth-child(2)").evaluate_all(
        "cells => cells.map(cell => Number(cell.style.getPropertyValue('--share')))"
    )
    assert max(shares) == 1
    why.click()
    table.wait_for(state="hidden")
    assert why.get_attribute("aria-expanded") == "false"


def test_why_of_other_rankers(visit, other_app, tmp_path):
    with running(other_app) as address:
        for width in (1200, 400):
            page = visit(width=width, address=address)
            choose_user(page, 5)
            rows(page).nth(0).get_by_role("button", name="Why").click()
            table = rows(page).nth(0).locator("table")
            table.wait_for()
            heads = table.locator("thead th").all_inner_texts()
            says = rows(page).nth(0).locator(".why p").inner_text()
            if other_app.state.model == "sim":
                assert heads[1:] == ["track+text+audio+joint", "change", "codes shared"]
                assert "0 for a listen that its search left out" in says
            else:
                assert heads[1] == "block 1"
                assert "what is left of 1 the candidate gives itself" in says
            assert table.locator("tbody th").all_inner_texts() == history_titles(page)
            assert any(float(text) for text in table.locator("td.heat").all_inner_texts())
            page.screenshot(path=tmp_path / f"why-{other_app.state.model}-{width}.png")
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_title_with_markup_stays_text(visit):
    page = visit()
    page.get_by_role("button", name="Make one up").click()
    page.get_by_label("Add tracks by title or artist").fill("script")
    found = page.locator("#found-tracks button")
    found.first.wait_for()
    assert MARKUP in found.first.inner_text()
    found.first.click()
    page.locator("#history li").first.wait_for()
    assert history_titles(page) == [MARKUP]
    page.get_by_role("button", name="IDs: <script>").first.click()
    page.locator("#ids-note").filter(has_text=MARKUP).wait_for()
    rows(page).nth(0).get_by_role("button", name="Why").click()
    assert page.locator("#ranked table tbody th").first.inner_text() == MARKUP
    assert page.title() == "Crescendo"
    assert page.locator("main img, main script").count() == 0


def test_audio_plays(visit):
    page = visit()
    page.get_by_role("button", name="Make one up").click()
    page.get_by_label("Add tracks by title or artist").fill(f"number {AUDIBLE}")
    page.locator("#found-tracks button").first.click()
    page.get_by_role("button", name=f"Hear: Song number {AUDIBLE}").click()
    heard_sound(page)
    assert page.locator("#playing").inner_text() == f"Song number {AUDIBLE}"
    assert page.locator("#audio").evaluate("audio => audio.duration") == pytest.approx(0.5, abs=0.1)


def heard_sound(page):
    """Returns once some of it was played. (The page's policy forbids `wait_for_function`.)"""
    page.locator("#audio").evaluate(
        """audio => new Promise(done => {
            const look = () => audio.currentTime > 0 && done();
            audio.addEventListener("timeupdate", look);
            look();
        })"""
    )


def test_the_tree_from_a_code_to_its_tracks_and_their_neighbours(visit):
    page = visit()
    page.locator("#families").get_by_role("button", name="text").click()
    page.locator("#ids-note").filter(has_text="60 tracks under text").wait_for()
    page.locator("#ids-content .codes button").nth(3).click()
    page.locator("#ids-note").filter(has_text="tracks under text 3").wait_for()
    found = int(page.locator("#ids-note").inner_text().split()[0])
    assert page.locator("#ids-content .tracks li").count() == found
    title = page.locator("#ids-content .tracks strong").first.inner_text()
    page.locator("#ids-content .tracks").get_by_role("button", name="IDs").first.click()
    page.locator("#ids-note").filter(has_text=title).wait_for()
    boxes = page.locator("#ids-content .families section")
    assert boxes.locator("h3").all_inner_texts() == ["text", "audio", "joint"]
    assert boxes.nth(0).locator(".row button").first.inner_text() == "3"
    assert "of 2 codes shared" in boxes.nth(0).locator(".chip").first.inner_text()
    boxes.nth(2).locator(".row button").nth(1).click()  # a whole joint ID
    page.locator("#ids-note").filter(has_text="under joint").wait_for()
    assert title in page.locator("#ids-content .tracks strong").all_inner_texts()


def test_ids_beyond_javascripts_numbers_keep_their_digits(visit):
    page = visit()
    choose_user(page, LARGE_ID)
    with page.expect_request("**/v1/events") as sent:
        rows(page).nth(0).get_by_role("button", name="Favourite").click()
    assert sent.value.post_data_json["events"][0]["user_id"] == LARGE_ID
    page.locator("#history li").wait_for()
    assert page.request.get(f"/v1/browse/users/{LARGE_ID - 1}").json()["listens"] == []


def test_the_keyboard_alone_reaches_everything(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the ranking"
    assert page.locator(".skip").bounding_box()["x"] >= 0  # it shows itself
    page.get_by_label("User id, or its first digits").focus()
    page.keyboard.type("700002")
    page.get_by_text("not in the log").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    rows(page).first.wait_for()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    # Buttons are replaced with the ranking, and the keyboard stays where it was.
    rows(page).nth(1).get_by_role("button", name="Favourite").focus()
    page.keyboard.press("Enter")
    said(page, "favourite. Taken.")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == f"Favourite: {rows(page).nth(1).locator('strong').inner_text()}"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.locator("#ranked table").wait_for()
    # Every control has a name.
    names = page.locator("button, input, select").evaluate_all(
        "all => all.map(e => e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent)"
    )
    assert all(names)
    assert note(page).get_attribute("aria-live") == "polite"


def test_a_token_is_asked_for_and_kept_in_the_tab(visit, page_workspace):
    made = create_token(page_workspace, name="page", scopes=["rank", "write_events"])
    try:
        with running(load_patient_app(page_workspace)) as guarded:
            page = visit(address=guarded)
            field = page.get_by_label("This server asks for an access token")
            field.wait_for()
            assert field.evaluate("field => field === document.activeElement")
            field.fill("crescendo-wrong")
            page.keyboard.press("Enter")
            page.get_by_text("does not accept this token").wait_for()
            field.fill(made["token"])
            page.keyboard.press("Enter")
            page.locator("#ids-content button").first.wait_for()
            choose_user(page, 700_003)
            rows(page).nth(0).get_by_role("button", name="Favourite").click()
            said(page, "favourite. Taken.")
            # An <audio> element sends no token, so the file is fetched with it.
            page.locator("#families button").first.click()
            page.get_by_role("button", name="Make one up").click()
            page.get_by_label("Add tracks by title or artist").fill(f"number {AUDIBLE}")
            page.locator("#found-tracks button").first.click()
            page.get_by_role("button", name=f"Hear: Song number {AUDIBLE}").click()
            heard_sound(page)
            page.reload()
            page.locator("#ids-content button").first.wait_for()
            assert field.is_hidden()
            assert page.evaluate("localStorage.length") == 0
            assert made["token"] not in page.content()
            # What the browser itself says of the two refusals.
            refused = [said for said in visit.problems if "401" in said]
            assert refused
            visit.problems[:] = [said for said in visit.problems if "401" not in said]
    finally:
        tokens_path(page_workspace).unlink()


def test_before_anyone_is_chosen_the_page_says_what_to_do(visit):
    page = visit()
    page.get_by_text("Choose a listener, or make one up.").wait_for()
    page.get_by_text("Choose a user.").wait_for()
    choose_user(page, 5)
    assert page.get_by_text("Choose a").count() == 0


def test_what_fails_is_said_where_the_visitor_looks(visit):
    """A phone, scrolled to the end of the ranking; the server goes away."""
    page = visit(width=400)
    choose_user(page, 5)
    page.route("**/v1/events", lambda route: route.abort())
    rows(page).last.get_by_role("button", name="Favourite").click()
    problem = page.get_by_role("alert").filter(has_text="The server does not answer.")
    problem.wait_for()
    assert page.evaluate("scrollY") > 900
    assert 0 <= problem.bounding_box()["y"] < 900
    visit.problems.clear()  # Chromium's own word for the request that failed


@pytest.mark.parametrize(
    ("width", "color_scheme"), [(1200, "light"), (1200, "dark"), (400, "light"), (400, "dark")]
)
def test_screenshots(visit, tmp_path, width, color_scheme):
    """Nothing wider than the window, text that stands out (WCAG AA: 4.5 to 1)."""
    page = visit(width=width, color_scheme=color_scheme)
    choose_user(page, 5)
    rows(page).nth(0).get_by_role("button", name="Why").click()
    page.locator("#ranked table").wait_for()
    page.screenshot(path=tmp_path / f"page-{width}-{color_scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("h1", "#release", "#ranked strong", "#ranked .tags", "#ranked button", "td"):
        assert contrast(page, selector) >= 4.5, selector


def contrast(page, selector):
    """WCAG 2.2's contrast ratio of an element's text to the panel or page behind it."""
    text, ground = page.locator(selector).first.evaluate(
        """element => {
            let behind = element;
            const opaque = () => /^rgb\\(/.test(getComputedStyle(behind).backgroundColor);
            while (!opaque() && behind.parentElement) behind = behind.parentElement;
            const colours = [getComputedStyle(element).color,
                             getComputedStyle(behind).backgroundColor];
            return colours.map(colour => colour.match(/[0-9.]+/g).slice(0, 3).map(Number));
        }"""
    )
    light, dark = sorted((luminance(text), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(rgb):
    shares = [channel / 255 for channel in rgb]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
