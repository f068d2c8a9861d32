"""The desk in a real browser: Debian's chromium, driven by Playwright.

Run with `make test ARGS='-m browser'`, and by `.ci/run`, which installs it where it may; without it
they fail. Trainings are scripted, held by a gate where a moment in between is looked at, and real
in the episodes that are played to their grade.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browsing import PATIENCE, PLACES
from fakes import FakeRunner, Steps
from live import serving, with_page
from playwright.sync_api import Browser, Page, expect, sync_playwright

from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session.places import Places
from ml_trainer_env.server.settings import Settings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture
def steps(runner: FakeRunner) -> Iterator[Steps]:
    steps = Steps()
    runner.script = steps
    yield steps
    steps.let_go(1000)


@pytest.fixture
def places() -> Places[MLTrainerEnvironment]:
    return Places(PLACES)


@pytest.fixture
def page_of(
    places: Places[MLTrainerEnvironment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """Start a server with the page: `page_of(environment)` gives its base URL."""
    monkeypatch.setenv("ENABLE_WEB_INTERFACE", "true")
    with ExitStack() as servers:

        def start(environment: Callable[..., MLTrainerEnvironment], **options: Any) -> str:
            made = partial(environment, places=places)
            settings = Settings(records_dir=tmp_path, max_sessions=PLACES, **options)
            return servers.enter_context(serving(with_page(made, settings, places=places)))

        yield start


@pytest.fixture
def url(page_of: Callable[..., str], runner: FakeRunner) -> Iterator[str]:
    yield page_of(partial(MLTrainerEnvironment, runner))
    runner.gate.set()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "needs chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open the page as one more visitor; no script on it may fail."""
    pages: list[Page] = []
    failures: list[str] = []

    def opened(url: str, width: int = 1280, height: int = 900) -> Page:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"{url}/web/")
        pages.append(page)
        expect(page.locator("#desk-start-button")).to_be_visible(timeout=PATIENCE)
        return page

    yield opened
    for page in pages:
        if not page.is_closed():
            page.close()
    assert not failures
