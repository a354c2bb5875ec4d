"""What a listener does on the page, in a real Chromium: feedback, why, audio, the tree of IDs."""

import pytest

from tests.serving.page.chromium import (
    choose_user,
    heard_sound,
    history_titles,
    ranked_ids,
    rows,
    running,
    said,
)
from tests.serving.page.page_world import AUDIBLE, LENGTH, MARKUP

pytestmark = pytest.mark.browser
pytest_plugins = ["tests.serving.page.chromium"]
LARGE_ID = 2**53 + 1
"""No JavaScript number."""


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
