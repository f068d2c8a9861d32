"""One visitor plays: what is pressed, typed, answered and drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from browsing import IN_BROWSER, configure, grows_to, said, start, tab
from fakes import Steps
from playwright.sync_api import Page, expect
from real import engine

from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment

pytestmark = IN_BROWSER


def test_an_episode_of_the_easy_task_is_played_to_its_grade(
    page_of: Callable[..., str], visit: Callable[..., Page]
) -> None:
    page = visit(page_of(partial(MLTrainerEnvironment, engine())))
    expect(page.locator("#desk-summary")).to_contain_text("No episode yet")
    expect(page.locator("#desk-train-button")).to_be_disabled()
    start(page)
    page.fill("#desk-learning-rate input", "0.002")
    page.fill("#desk-dropout input", "0.2")
    configure(page)
    page.click("#desk-train-button")
    said(page, "action", "Trained 10 epochs")
    grows_to(page, 10)
    expect(page.locator("#desk-summary")).to_contain_text("10 of 100, 90 left")
    expect(page.locator("#desk-summary")).not_to_contain_text("Hidden-test")
    page.click("#desk-submit-button")
    grade = page.locator("#desk-summary .desk-grade")
    expect(grade).to_contain_text("Hidden-test accuracy")
    expect(grade).to_contain_text("for the checkpoint of epoch")
    assert float(grade.locator(".desk-score b").inner_text()) > 0.3
    expect(page.locator("#desk-ledger tfoot")).to_contain_text("+")
    expect(page.locator("#desk-train-button")).to_be_disabled()


def test_an_instance_is_chosen_taken_over_and_revealed(
    page_of: Callable[..., str], visit: Callable[..., Page]
) -> None:
    task = task_of("varied_mlp/eval/1")
    assert task.inherited is not None
    page = visit(page_of(partial(MLTrainerEnvironment, engine())))
    expect(page.locator("#desk-index")).to_be_hidden()
    page.locator("#desk-task label", has_text="Varied MLP").click()
    index = page.locator("#desk-index input")
    expect(index).to_be_visible()
    index.fill("99")
    page.click("#desk-start-button")
    said(page, "begin", "must be 0 to 47 in eval")
    page.click("#desk-surprise-button")
    expect(index).not_to_have_value("99")
    index.fill("1")
    start(page)
    said(page, "begin", "somebody else has trained")
    expect(page.locator("#desk-summary")).to_contain_text("learns from")
    expect(page.locator("#desk-dropout input")).to_have_value(f"{task.inherited.config.dropout:g}")
    expect(page.locator("#desk-summary")).not_to_contain_text("What was hidden")
    page.click("#desk-train-button")
    said(page, "action", "Trained 10 epochs")
    grows_to(page, task.inherited.epochs + 10)
    page.click("#desk-submit-button")
    grade = page.locator("#desk-summary .desk-grade")
    expect(grade).to_contain_text("What was hidden")
    expect(grade).to_contain_text(f"{task.hidden['multiplier']:g}")
    expect(page.locator("#desk-legend")).to_contain_text("recipes of the pool")
    page.locator("#desk-task label", has_text="easy_mnist").click()
    start(page)
    expect(page.locator("#desk-dropout input")).to_have_value("0")  # no longer another's


def test_the_curve_grows_with_every_epoch_while_training_goes_on(
    url: str, steps: Steps, visit: Callable[..., Page]
) -> None:
    page = visit(url)
    start(page)
    configure(page)
    page.click("#desk-train-button")
    for count in (1, 2, 3):
        steps.let_go()
        grows_to(page, count)
        expect(page.locator("#desk-stop-button")).to_be_enabled()
    steps.let_go(7)
    said(page, "action", "Trained 10 epochs")
    grows_to(page, 10)


def test_a_training_is_stopped_and_what_was_trained_counts(
    url: str, steps: Steps, visit: Callable[..., Page]
) -> None:
    page = visit(url)
    start(page)
    configure(page)
    page.click("#desk-train-button")
    steps.let_go(2)
    grows_to(page, 2)
    page.click("#desk-stop-button")
    expect(page.locator("#desk-stop-button")).to_have_text("Stopping")
    steps.let_go()
    said(page, "action", "Trained 3 epochs of 10: called off")
    grows_to(page, 3)
    expect(page.locator("#desk-train-button")).to_be_enabled()


def test_a_mistake_is_answered_beside_its_form_and_nothing_is_lost(
    url: str, visit: Callable[..., Page]
) -> None:
    page = visit(url)
    start(page)
    page.fill("#desk-learning-rate input", "11")
    page.fill("#desk-dropout input", "0.9")
    page.click("#desk-apply-button")
    said(page, "configure-training", "learning_rate: must be a number with 0 < learning_rate <= 10")
    said(page, "configure-training", "dropout: must be a number with 0 <= dropout <= 0.5; got 0.9")
    expect(page.locator("#desk-learning-rate input")).to_have_value("11")
    page.click("#desk-train-button")
    said(page, "action", "call configure_training first")
    page.fill("#desk-learning-rate input", "0.01")
    page.fill("#desk-dropout input", "0.1")
    page.click("#desk-apply-button")
    said(page, "configure-training", "onfigured learning_rate=0.01, dropout=0.1")


def test_what_one_form_sets_shows_in_the_others_and_what_was_typed_stays(
    url: str, visit: Callable[..., Page]
) -> None:
    page = visit(url)
    start(page)
    configure(page)
    page.fill("#desk-dropout input", "0.4")
    page.fill("#desk-new-lr input", "0.02")
    page.click("#desk-adjust-button")
    said(page, "adjust-learning-rate", "0.02")
    expect(page.locator("#desk-learning-rate input")).to_have_value("0.02")
    page.locator("#desk-enabled input").check()
    page.click("#desk-toggle-button")
    said(page, "toggle-augmentation", "on, strength 0.5")
    expect(page.locator("#desk-augmentation input")).to_be_checked()
    expect(page.locator("#desk-dropout input")).to_have_value("0.4")
    page.click("#desk-apply-button")
    said(page, "configure-training", "onfigured dropout=0.4")


def test_a_divergence_says_what_to_do(url: str, visit: Callable[..., Page]) -> None:
    page = visit(url)
    start(page)
    page.fill("#desk-learning-rate input", "10")
    configure(page)
    page.click("#desk-train-button")
    said(page, "action", "diverged")
    expect(page.locator("#desk-summary")).to_contain_text("resumes from the best checkpoint")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(
    url: str, visit: Callable[..., Page], theme: str
) -> None:
    page = visit(url, width=390, height=844)
    page.goto(f"{url}/web/?__theme={theme}")
    start(page)
    configure(page)
    page.click("#desk-train-button")
    said(page, "action", "Trained 10 epochs")
    for name in ("Watch", "Records", "Desk"):
        tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")


def test_the_keyboard_alone_plays_an_episode(url: str, visit: Callable[..., Page]) -> None:
    page = visit(url)
    page.focus("#desk-start-button")
    page.keyboard.press("Enter")
    said(page, "begin", "Started")
    reached: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('[id^=desk-]')?.id ?? ''"))
    wanted = ("learning-rate", "dropout", "apply-button", "train-button", "submit-button", "new-lr")
    assert {f"desk-{name}" for name in wanted} <= reached
    page.focus("#desk-apply-button")
    page.keyboard.press("Space")
    said(page, "configure-training", "onfigured")
