"""The page for everyone: by keyboard alone, with a token, when something fails, small and dark.

Screenshots go to the test's temporary folder (`pytest --basetemp FOLDER` keeps them).
"""

import pytest

from serving.tokens import create_token, tokens_path
from tests.serving.page.chromium import choose_user, heard_sound, note, rows, running, said
from tests.serving.page.page_world import AUDIBLE, load_patient_app

pytestmark = pytest.mark.browser
pytest_plugins = ["tests.serving.page.chromium"]


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
