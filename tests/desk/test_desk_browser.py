"""The desk in a real browser: Debian's chromium, driven by Playwright.

Run with `make test ARGS='-m browser'`, and by `.ci/run`, which installs it where it may; without it
they fail. Trainings are scripted, held by a gate where a moment in between is looked at, and real
in the episode that is played to its grade.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeRunner, Steps
from live import eventually, serving, with_page
from play import record
from playwright.sync_api import Browser, Page, expect, sync_playwright
from real import engine

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session.places import Places
from ml_trainer_env.server.settings import Settings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = 30_000  # milliseconds
PLACES = 3

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),  # in Gradio's statistics
]


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


def test_a_cluster_is_operated_to_its_grade(
    page_of: Callable[..., str], visit: Callable[..., Page]
) -> None:
    page = visit(page_of(partial(MLTrainerEnvironment, engine())))
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
    said(page, "cluster", "Diagnosed: weight_checksum")
    expect(page.locator("#desk-summary .desk-finding")).to_contain_text("rank 3:")
    page.locator(".label-wrap", has_text="Data").click()
    page.locator("#desk-cluster-quarantine-shards label").nth(13).click()
    page.click("#desk-configure-data-button")
    said(page, "cluster", "The loaders started again")
    expect(page.locator("#desk-legend")).to_contain_text("shard 13 out")
    expect(page.locator("#desk-curves .heatmaplayer image").first).to_be_visible()
    expect(page.locator("#desk-summary")).not_to_contain_text("poisoned")
    page.click("#desk-submit-button")
    grade = page.locator("#desk-summary .desk-grade")
    expect(grade).to_contain_text("poisoned shards")
    expect(grade).to_contain_text("Best remedy")
    expect(page.locator("#desk-legend")).to_contain_text("best remedy")


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
