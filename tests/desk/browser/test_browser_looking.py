"""Episodes of others: sessions that are watched live, and records that are replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from browsing import IN_BROWSER, grows_to, tab
from fakes import FakeRunner, Steps
from play import record
from playwright.sync_api import Page, expect

from ml_trainer_env import MLTrainerEnv

pytestmark = IN_BROWSER


def test_another_clients_session_is_watched_live_and_read_only(
    url: str, steps: Steps, visit: Callable[..., Page]
) -> None:
    page = visit(url)
    tab(page, "Watch")
    expect(page.locator("#watch-summary")).to_contain_text("Nobody is playing")
    with MLTrainerEnv(base_url=url) as agent:
        agent.reset(task_id="medium_fashion", seed=5)
        agent.call_tool("configure_training", optimizer="sgd")
        expect(page.locator("#watch-episodes")).to_contain_text("medium_fashion, seed 5")
        training = threading.Thread(target=lambda: agent.call_tool("run_epochs", num_epochs=3))
        steps.let_go(2)
        training.start()
        grows_to(page, 2, "watch")
        steps.let_go()
        training.join(30)
        grows_to(page, 3, "watch")
        expect(page.locator("#watch-ledger")).to_contain_text("optimizer=sgd")
        assert page.locator("#watch-board :is(button, input):visible").count() == 0
    expect(page.locator("#watch-summary")).to_contain_text("Nobody is playing")


def test_a_record_is_replayed_call_by_call_over_another(
    url: str, visit: Callable[..., Page], runner: FakeRunner, tmp_path: Path
) -> None:
    for agent in ("naive", "reference"):
        record(tmp_path / "night" / f"{agent}.jsonl", agent, runner)
    page = visit(url)
    tab(page, "Records")
    expect(page.locator("#records-summary")).to_contain_text("No record chosen")
    for box, name in (("chosen", "night/naive"), ("other", "night/reference")):
        page.click(f"#records-{box} input")
        page.get_by_role("option", name=name).last.click()  # an earlier list fades out
        expect(page.locator("#records-summary .desk-grade")).to_be_visible()
    expect(page.locator("#records-legend")).to_contain_text("dashed")
    page.click("#records-back")
    expect(page.locator("#records-summary .desk-grade")).to_be_hidden()
    page.click("#records-next")
    expect(page.locator("#records-summary .desk-grade")).to_be_visible()
