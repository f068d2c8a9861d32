"""A cluster in the browser: operated, watched, and replayed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from browsing import IN_BROWSER, said, start, tab
from playwright.sync_api import Page, expect
from real import engine

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import RecordWriter
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment

pytestmark = IN_BROWSER

POISONED = "cluster/eval/4"


@pytest.fixture
def url(page_of: Callable[..., str]) -> str:
    """The page of a server that really trains."""
    return page_of(partial(MLTrainerEnvironment, engine()))


def test_a_cluster_is_operated_to_its_grade(url: str, visit: Callable[..., Page]) -> None:
    page = visit(url)
    page.locator("#desk-task label", has_text="Cluster").click()
    page.locator("#desk-index input").fill("4")
    expect(page.locator("#desk-run-diagnostic-button")).to_be_hidden()
    start(page)
    said(page, "begin", "well configured")
    expect(page.locator("#desk-dropout")).to_be_hidden()
    windows = page.locator("#desk-num-epochs input[type=number]")
    windows.fill("2")
    windows.press("Tab")
    page.click("#desk-train-button")
    said(page, "action", "Trained 2 windows")
    page.locator("#desk-cluster-kind label", has_text="weight_checksum").click()
    page.click("#desk-run-diagnostic-button")
    said(page, "run-diagnostic", "Diagnosed: weight_checksum")
    expect(page.locator("#desk-summary .desk-finding")).to_contain_text("rank 3:")
    page.locator(".label-wrap", has_text="Data").click()
    page.locator("#desk-cluster-quarantine-shards label").nth(13).click()
    page.click("#desk-configure-data-button")
    said(page, "configure-data", "The loaders started again")
    expect(page.locator("#desk-legend")).to_contain_text("shard 13 out")
    expect(page.locator("#desk-curves .heatmaplayer image").first).to_be_visible()
    expect(page.locator("#desk-summary")).not_to_contain_text("poisoned")
    page.click("#desk-submit-button")
    grade = page.locator("#desk-summary .desk-grade")
    expect(grade).to_contain_text("poisoned shards")
    expect(grade).to_contain_text("Best remedy")
    expect(page.locator("#desk-legend")).to_contain_text("best remedy")


def test_the_forms_speak_of_the_steps_of_a_cluster_and_of_a_networks_epochs(
    url: str, visit: Callable[..., Page]
) -> None:
    page = visit(url)
    main, rate = page.locator(".desk-main"), page.locator("#desk-new-lr")
    page.locator("#desk-task label", has_text="Cluster").click()
    page.locator("#desk-index input").fill("50")
    start(page)
    expect(main).to_contain_text("submit at the deadline")
    expect(main).to_contain_text("Windows of 25 steps")
    expect(rate).to_contain_text("learning rate of the next step")
    expect(rate.locator("input")).to_have_value("")
    page.locator(".label-wrap", has_text="Ranks").click()
    shares = page.locator("#desk-cluster-shares textarea")
    expect(shares).to_have_attribute("placeholder", "2, 2, 2, 2, 2, 2, 2, 2")
    page.click("#desk-adjust-button")
    said(page, "adjust-learning-rate", "new_lr: must be a number")
    page.locator("#desk-task label", has_text="easy_mnist").click()
    start(page)
    expect(main).to_contain_text("submit when it is good")
    expect(rate).to_contain_text("learning rate of the next epoch")
    expect(rate.locator("input")).to_have_value("0.001")


def test_a_cluster_that_a_client_operates_is_watched(url: str, visit: Callable[..., Page]) -> None:
    page = visit(url)
    tab(page, "Watch")
    with MLTrainerEnv(base_url=url) as agent:
        agent.reset(task_id=POISONED)
        expect(page.locator("#watch-episodes")).to_contain_text("0 of 608 s")
        agent.call_tool("run_epochs", num_epochs=1)
        expect(page.locator("#watch-episodes")).to_contain_text("25 of 608 s")
        expect(page.locator("#watch-curves .heatmaplayer image").first).to_be_visible()
        agent.call_tool("run_diagnostic", kind="flight_recorder")
        expect(page.locator("#watch-summary .desk-finding")).to_contain_text("rank 3")
        expect(page.locator("#watch-ledger")).to_contain_text("run_diagnostic")
        expect(page.locator("#watch-board")).not_to_contain_text("poisoned")
        assert page.locator("#watch-board :is(button, input):visible").count() == 0


def test_a_recorded_cluster_is_replayed_with_what_its_operator_did(
    url: str, visit: Callable[..., Page], tmp_path: Path
) -> None:
    def connect() -> LocalSession:
        return LocalSession(MLTrainerEnvironment(engine()))

    with (
        RecordWriter(tmp_path / "operated.jsonl") as writer,
        Attempt("me", connect, POISONED, 0, [writer]) as attempt,
    ):
        trial = attempt.begin()
        trial.run(1)
        trial.call("configure_data", quarantine_shards=[1, 13])
        trial.call("submit_model")
    page = visit(url)
    tab(page, "Records")
    page.click("#records-chosen input")
    page.get_by_role("option", name="operated").last.click()
    expect(page.locator("#records-summary .desk-grade")).to_contain_text("poisoned shards")
    expect(page.locator("#records-legend")).to_contain_text("shards 1, 13 out")
    page.click("#records-back")
    expect(page.locator("#records-summary .desk-grade")).to_be_hidden()
    expect(page.locator("#records-legend")).to_contain_text("shards 1, 13 out")
    page.click("#records-back")
    expect(page.locator("#records-legend")).not_to_contain_text("shards 1, 13 out")
    expect(page.locator("#records-ledger tbody tr")).to_have_count(1)
