"""The documents say what is there: links, the tree, the variables, the decisions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from checkout import ROOT
from play import answered
from real import inline

from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import PREFIX, Settings

README = ROOT / "README.md"
GUIDE = ROOT / "docs/guide"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")]
README_LINES = 270  # what a newcomer reads; the rest is in the guide

_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text())


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, fragment) of every link of the page that leads to this repository."""
    targets = [target for target in _LINK.findall(prose(page)) if "://" not in target]
    parts = [target.partition("#") for target in targets]
    return [(page.parent / file if file else page, fragment) for file, _, fragment in parts]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of its headings."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(prose(page)))
    return {heading.replace(" ", "-") for heading in plain}


def tree() -> dict[Path, bool]:
    """The files and folders that README's tree names, and whether each is said to be a folder.

    A line has names, and after two spaces what they are; what is in a folder is indented.
    """
    section = README.read_text().partition("## How the tree is laid out")[2]
    named: dict[Path, bool] = {}
    above: dict[int, Path] = {0: Path()}  # the folder that lines of this indentation are in
    for line in section.split("```")[1].splitlines()[1:]:
        indentation = len(line) - len(line.lstrip())
        for name in re.split(" {2,}", line.strip())[0].split(" "):
            path = above[indentation] / name
            named[path] = name.endswith("/")
            above[indentation + 2] = path
    return named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for file, fragment in links(page):
        assert file.exists(), file
        if fragment:
            assert fragment in anchors(file), f"{file}#{fragment}"


def test_the_guide_links_every_decision_and_every_page() -> None:
    linked = {file.resolve() for file, _ in links(GUIDE / "README.md")}
    wanted = [*ROOT.glob("docs/adr/*.md"), *ROOT.glob("docs/*.md"), *GUIDE.glob("*.md")]
    assert not set(wanted) - {GUIDE / "README.md"} - linked


def test_every_variable_of_the_server_is_told_to_operators() -> None:
    told = (GUIDE / "operators.md").read_text()
    missing = {
        f"{PREFIX}{name.upper()}"
        for name in Settings.model_fields
        if f"`{PREFIX}{name.upper()}`" not in told
    }
    assert not missing


def test_what_the_tree_names_is_there() -> None:
    assert len(tree()) > 40
    for path, is_folder in tree().items():
        assert (ROOT / path).is_dir() if is_folder else (ROOT / path).is_file(), path


def test_what_is_there_is_named_in_the_tree() -> None:
    listed = ["git", "ls-files", "-z"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    entries = {Path(Path(name).parts[0]) for name in tracked.split("\0") if name}
    rooms = {file.parent.relative_to(ROOT) for file in ROOT.glob("server/**/__init__.py")}
    assert len(entries) > 30
    assert len(rooms) > 8
    assert not (entries | rooms) - tree().keys()


def test_readme_is_short_enough_to_be_read() -> None:
    assert len(README.read_text().splitlines()) <= README_LINES


NUMBER = r"\d+(?:\.\d+)?"


def in_line(text: str) -> str:
    return " ".join(text.split())


def test_what_the_readme_says_is_printed_is_printed() -> None:
    shown = README.read_text().partition("```text\n")[2].partition("```")[0]
    env = MLTrainerEnvironment(inline())
    env.reset(task_id="easy_mnist")
    answered(env, "configure_training", optimizer="adam", learning_rate=0.001, batch_size=64)
    trained, submitted = answered(env, "run_epochs", num_epochs=10), answered(env, "submit_model")
    printed = in_line(f"{trained}\n{submitted}")
    for part in map(in_line, shown.split("[...]")):
        *words, last = re.split(NUMBER, part)
        pattern = "".join(f"{re.escape(each)}({NUMBER})" for each in words) + re.escape(last)
        found = re.search(pattern, printed)
        assert found, part
        told, real = (map(float, each) for each in (re.findall(NUMBER, part), found.groups()))
        assert list(real) == pytest.approx(list(told), abs=0.05, rel=0.05)  # by processor
