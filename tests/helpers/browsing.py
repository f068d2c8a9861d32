"""What a visitor does on the page, and what is seen of it."""

from __future__ import annotations

import pytest
from live import eventually
from playwright.sync_api import Page, expect

PATIENCE = 30_000  # milliseconds
PLACES = 3  # of the server

IN_BROWSER = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),  # in Gradio's statistics
]


def said(page: Page, note: str, text: str) -> None:
    expect(page.locator(f"#desk-{note}-note")).to_contain_text(text, timeout=PATIENCE)


def start(page: Page) -> None:
    page.click("#desk-start-button")
    said(page, "begin", "Started")


def configure(page: Page) -> None:
    page.click("#desk-apply-button")
    said(page, "configure-training", "onfigur")


def epochs(page: Page, board: str = "desk") -> int:
    """Points of the val accuracy's curve, as they are drawn."""
    return page.evaluate(
        """board => {
            const plot = document.querySelector(`#${board}-curves .js-plotly-plot`);
            const line = plot?.data?.find(trace => trace.name === "val accuracy");
            return line ? line.y.filter(value => value !== null).length : 0;
        }""",
        board,
    )


def grows_to(page: Page, count: int, board: str = "desk") -> None:
    eventually(lambda: epochs(page, board) == count or page.wait_for_timeout(50), timeout=30)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
