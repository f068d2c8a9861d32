"""Several visitors, or none that is heard of: places, other tabs, a lost server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from browsing import IN_BROWSER, PATIENCE, PLACES, configure, grows_to, said, start, tab
from fakes import FakeRunner, Steps
from live import eventually, serving, with_page
from playwright.sync_api import Browser, Page, expect

from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session.places import Places
from ml_trainer_env.server.settings import Settings

pytestmark = IN_BROWSER


def test_visitors_have_episodes_of_their_own(url: str, visit: Callable[..., Page]) -> None:
    first, second = visit(url), visit(url)
    for page in (first, second):
        start(page)
        configure(page)
    first.click("#desk-train-button")
    said(first, "action", "Trained 10 epochs")
    expect(second.locator("#desk-summary")).to_contain_text("0 of 100")
    tab(second, "Watch")
    expect(second.locator("#watch-episodes")).to_contain_text("epoch 10 of 100")
    expect(second.locator("#watch-episodes")).to_contain_text("yours")


def test_a_full_server_says_so_and_a_page_that_is_left_frees_its_place(
    url: str, visit: Callable[..., Page], places: Places[MLTrainerEnvironment]
) -> None:
    others = [visit(url) for _ in range(PLACES)]
    for page in others:
        start(page)
    late = visit(url)
    late.click("#desk-start-button")
    expect(late.locator("#desk-summary")).to_contain_text("The server is full")
    said(late, "begin", "try again in about")
    others[0].close()
    eventually(lambda: len(places.guests()) == PLACES - 1)
    start(late)
    assert len(places.guests()) == PLACES


def test_a_silent_visitor_gives_up_the_place(
    page_of: Callable[..., str],
    runner: FakeRunner,
    visit: Callable[..., Page],
    places: Places[MLTrainerEnvironment],
) -> None:
    page = visit(page_of(partial(MLTrainerEnvironment, runner), session_timeout=1))
    start(page)
    eventually(lambda: not places.guests())
    page.click("#desk-apply-button")
    said(page, "configure-training", "no episode is open here")
    expect(page.locator("#desk-summary")).to_contain_text("No episode yet")


def test_a_training_goes_on_behind_another_tab(
    url: str, steps: Steps, visit: Callable[..., Page]
) -> None:
    page = visit(url)
    start(page)
    configure(page)
    page.click("#desk-train-button")
    steps.let_go(2)
    grows_to(page, 2)
    tab(page, "Watch")
    expect(page.locator("#watch-episodes")).to_contain_text("yours")
    steps.let_go(8)
    expect(page.locator("#watch-episodes")).to_contain_text("epoch 10 of 100")
    tab(page, "Desk")
    said(page, "action", "Trained 10 epochs")
    grows_to(page, 10)


def test_a_lost_server_is_told(
    runner: FakeRunner, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENABLE_WEB_INTERFACE", "true")
    page = browser.new_page()
    with serving(with_page(partial(MLTrainerEnvironment, runner), Settings())) as url:
        page.goto(f"{url}/web/")
        expect(page.locator("#desk-start-button")).to_be_visible(timeout=PATIENCE)
        expect(page.locator("#desk-lost")).to_be_hidden()
    lost = page.locator("#desk-lost")
    expect(lost).to_contain_text("connection to the server is lost", timeout=PATIENCE)
    page.close()
