"""The pictures of the desk in docs/desk, taken anew: a real server, real trainings, chromium.

    .venv/bin/python scripts/screenshots.py

About a minute. Needs chromium (`apt-get install chromium`) and the data (`make data`).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.agents import catalogue
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.records import RecordWriter
from ml_trainer_env.agents.session import RemoteSession
from ml_trainer_env.local_server import LOGS, local_server

OUT = Path(__file__).parents[1] / "docs" / "desk"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DESKTOP, PHONE = (1280, 1340), (390, 844)
PLACES = 4
PATIENCE = 60_000  # milliseconds
PALETTE = 255  # colours of a picture file
SHOW = "element => { element.scrollIntoView(); window.scrollBy(0, -12); }"
GAP, PAPER = 24, "#d4d4d8"  # between the phones of one picture


class Visitor:
    """One page, and what a visitor does on it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        page.set_default_timeout(PATIENCE)
        page.goto(f"{url}/web/")
        expect(page.locator("#desk-start-button")).to_be_visible(timeout=PATIENCE)

    def start(self, task: str = "") -> None:
        if task:
            self.page.locator("#desk-task label", has_text=task).click()
        self.page.click("#desk-start-button")
        self.said("begin", "Started")

    def configure(self, **options: Any) -> None:
        for name, value in options.items():
            field = self.page.locator(f"#desk-{name.replace('_', '-')}")
            if isinstance(value, str):
                field.locator("label", has_text=value).first.click()
            else:
                field.locator("input").fill(f"{value:g}")
        self.page.click("#desk-apply-button")

    def train(self, epochs: int, until: int | None = None) -> None:
        """Train; with `until`, come back once so many epochs of the episode are drawn."""
        self.page.locator("#desk-num-epochs input[type=number]").fill(str(epochs))
        self.page.locator("#desk-num-epochs input[type=number]").blur()
        calls = self.page.locator("#desk-ledger tbody tr")
        before = calls.count()
        self.page.click("#desk-train-button")
        if until is None:
            expect(calls).to_have_count(before + 1, timeout=PATIENCE)
        else:
            spent = self.page.locator("#desk-summary [role=progressbar]").first
            while int(spent.get_attribute("aria-valuenow") or 0) < until:
                self.page.wait_for_timeout(50)

    def said(self, note: str, text: str) -> None:
        expect(self.page.locator(f"#desk-{note}-note")).to_contain_text(text, timeout=PATIENCE)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def picture(self, top: str = "") -> Image.Image:
        """What is seen, from the element `top` on, else from the top."""
        self.page.mouse.move(0, 0)
        self.page.locator(top or "body").evaluate(SHOW)
        self.page.wait_for_timeout(700)  # Plotly fits a figure to its place a moment later
        return Image.open(BytesIO(self.page.screenshot()))

    def element(self, selector: str) -> Image.Image:
        """All of an element, however high it is."""
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(700)
        return Image.open(BytesIO(self.page.locator(selector).screenshot()))


@contextmanager
def visitor(
    browser: Browser, url: str, size: tuple[int, int] = DESKTOP, *, dark: bool = False
) -> Iterator[Visitor]:
    """One more visitor, who leaves at the end of the block."""
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
    )
    try:
        yield Visitor(page, url)
    finally:
        page.close()


def play_and_submit(browser: Browser, url: str) -> None:
    """In the middle of a training, and graded."""
    with visitor(browser, url) as me:
        me.start("medium_fashion")
        me.configure(learning_rate=0.002, lr_schedule="cosine")
        me.said("configure-training", "onfigured")
        me.train(10)
        me.configure(dropout=0.3, weight_decay=0.01)
        me.said("configure-training", "dropout=0.3")
        me.page.locator("#desk-enabled label").click()
        me.page.click("#desk-toggle-button")
        me.said("toggle-augmentation", "ugmentation on")
        me.train(20, until=21)
        save(me.picture(), "play")
        expect(me.page.locator("#desk-train-button")).to_be_enabled(timeout=PATIENCE)
        me.train(20)
        me.page.click("#desk-submit-button")
        expect(me.page.locator(".desk-grade")).to_be_visible()
        save(me.picture(), "grade")


def instance(browser: Browser, url: str) -> None:
    """A run that is taken over, and what was hidden of it."""
    with visitor(browser, url) as me:
        me.page.locator("#desk-task label", has_text="Varied MLP").click()
        me.page.locator("#desk-index input").fill("1")
        me.start()
        me.configure(optimizer="adamw", learning_rate=0.1, lr_schedule="cosine", dropout=0.2)
        me.said("configure-training", "onfigured")
        me.train(5)
        me.page.locator("#desk-new-lr input").fill("0.3")
        me.page.click("#desk-adjust-button")
        me.said("adjust-learning-rate", "next epoch")
        me.train(20)
        me.page.click("#desk-submit-button")
        expect(me.page.locator(".desk-grade")).to_be_visible()
        save(me.picture(".desk-grade"), "instance")


def cluster(browser: Browser, url: str) -> None:
    """Data shards that were poisoned, found and left out; graded."""
    with visitor(browser, url) as me:
        me.page.locator("#desk-task label", has_text="Cluster").click()
        me.page.locator("#desk-index input").fill("4")
        me.start()
        me.train(12)
        me.page.locator("#desk-cluster-kind label", has_text="shard_loss").click()
        me.page.click("#desk-run-diagnostic-button")
        me.said("run-diagnostic", "shard_loss")
        me.page.locator(".label-wrap", has_text="Data").click()
        for shard in (1, 13):
            me.page.locator("#desk-cluster-quarantine-shards label").nth(shard).click()
        me.page.click("#desk-configure-data-button")
        me.said("configure-data", "loaders")
        me.train(20)
        me.page.click("#desk-submit-button")
        expect(me.page.locator(".desk-grade")).to_be_visible()
        me.page.locator("#desk-ledger").evaluate("element => element.remove()")
        save(me.element("#desk-board"), "cluster")


def watch(browser: Browser, url: str) -> None:
    """An agent's session."""
    with MLTrainerEnv(base_url=url) as agent, visitor(browser, url, dark=True) as me:
        agent.reset(task_id="hard_cifar", seed=1)
        agent.call_tool("configure_training", optimizer="adamw", learning_rate=0.003)
        agent.call_tool("run_epochs", num_epochs=5)
        agent.call_tool("adjust_learning_rate", new_lr=0.001)
        agent.call_tool("run_epochs", num_epochs=4)
        me.start()
        me.tab("Watch")
        expect(me.page.locator("#watch-summary")).to_contain_text("9 of 60")
        save(me.picture(), "watch")


def replay(browser: Browser, url: str, folder: Path) -> None:
    """One record over another."""
    for agent in ("naive", "expert"):
        path = folder / "evaluation" / f"easy_mnist-{agent}-0.jsonl"
        with (
            RecordWriter(path) as writer,
            Attempt(agent, lambda: RemoteSession(url), "easy_mnist", 0, [writer]) as attempt,
        ):
            catalogue.find(agent)(attempt)
    with visitor(browser, url) as me:
        me.tab("Records")
        expect(me.page.locator("#records-summary")).to_contain_text("No record chosen")
        for box, agent in (("chosen", "expert"), ("other", "naive")):
            me.page.click(f"#records-{box} input")
            me.page.get_by_role("option", name=agent).last.click()  # an earlier list fades out
            expect(me.page.locator("#records-summary .desk-grade")).to_be_visible()
        expect(me.page.locator("#records-legend")).to_contain_text("dashed")
        for _ in range(3):
            me.page.click("#records-back")
            expect(me.page.locator("#records-summary .desk-grade")).to_be_hidden()
        save(me.picture(), "records")


def phones(browser: Browser, url: str) -> None:
    """Start, curves, a mistake, a divergence, a full server: side by side."""
    shown: list[Image.Image] = []
    with visitor(browser, url, PHONE) as me:
        shown.append(me.picture())
    with visitor(browser, url, PHONE, dark=True) as me:
        me.start()
        me.configure(learning_rate=11, dropout=0.9)
        me.said("configure-training", "must be")
        mistake = me.picture("#desk-lr-schedule")
        me.configure(learning_rate=0.003, dropout=0.1)
        me.said("configure-training", "onfigured")
        me.train(10)
        shown += [me.picture("#desk-curves"), mistake]
        me.page.locator("#desk-new-lr input").fill("10")
        me.page.click("#desk-adjust-button")
        me.said("adjust-learning-rate", "next epoch")
        me.train(5)
        shown.append(me.picture("#desk-summary"))
        pages = [browser.new_page() for _ in range(PLACES - 1)]
        for page in pages:
            Visitor(page, url).start()
        with visitor(browser, url, PHONE) as late:
            late.page.click("#desk-start-button")
            late.said("begin", "try again")
            shown.append(late.picture("#desk-summary"))
        for page in pages:
            page.close()
    save(_side_by_side(shown), "phone")


def _side_by_side(pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    whole = Image.new("RGB", (GAP + len(pictures) * (width + GAP), height + 2 * GAP), PAPER)
    for index, picture in enumerate(pictures):
        whole.paste(picture, (GAP + index * (width + GAP), GAP))
    return whole


def save(picture: Image.Image, name: str) -> None:
    """As a palette PNG: flat colours need no more, and it is a third of the size."""
    path = OUT / f"{name}.png"
    colours = picture.convert("RGB").quantize(
        PALETTE,
        Image.Quantize.MAXCOVERAGE,
        dither=Image.Dither.NONE,  # keeps thin lines' colours
    )
    colours.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB")


def main() -> None:
    """Take them all."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("needs chromium: apt-get install chromium")
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "ENABLE_WEB_INTERFACE": "true",
            "ML_TRAINER_RECORDS_DIR": folder,
            "ML_TRAINER_MAX_SESSIONS": str(PLACES),
        }
        with (
            local_server(LOGS / "screenshots.log") as url,
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS) as browser,
        ):
            play_and_submit(browser, url)
            instance(browser, url)
            cluster(browser, url)
            watch(browser, url)
            replay(browser, url, Path(folder))
            phones(browser, url)


if __name__ == "__main__":
    main()
