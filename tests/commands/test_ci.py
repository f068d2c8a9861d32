"""What every change must pass, here and on GitHub: `.ci/run`, and a workflow that calls it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import ROOT

WORKFLOW = ROOT / ".github/workflows/ci.yml"
PYTHONS = ["3.11", "3.14"]  # the oldest and the newest that are promised
TESTS = "not network and not gpu and not very_slow"

# Stands in for every program that .ci/run starts: keeps a record of how it was called.
PROGRAM = """#!/bin/sh
echo "${0##*/} $*" >>calls
"""


def ci_run(folder: Path, *programs: str, user: int) -> tuple[str, list[str]]:
    """.ci/run as `user`, where no other `programs` are: what it printed, and what it started."""
    script = folder / ".ci/run"
    script.parent.mkdir()
    shutil.copy(ROOT / ".ci/run", script)
    found = folder / "bin"
    found.mkdir()
    for name in ("make", *programs):
        (found / name).write_text(PROGRAM)
        (found / name).chmod(0o755)
    (found / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (found / "id").chmod(0o755)
    for name in ("bash", "dirname"):
        (found / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        [found / "bash", script], env={"PATH": str(found)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, (folder / "calls").read_text().splitlines()


def test_checks_come_before_tests_and_those_of_the_browser_are_among_them(tmp_path: Path) -> None:
    said, calls = ci_run(tmp_path, "chromium", "haproxy", "apt-get", user=0)
    assert calls == ["make check", f"make test ARGS=-m '{TESTS}'"]
    assert not said


@pytest.mark.parametrize("there", [(), ("chromium",), ("haproxy",)])
def test_root_gets_what_is_missing_from_debian(tmp_path: Path, there: tuple[str, ...]) -> None:
    said, calls = ci_run(tmp_path, *there, "apt-get", user=0)
    *installed, check, test = calls
    assert [call.split()[0] for call in installed] == ["apt-get", "apt-get"]
    wanted = [name for name in ("chromium", "haproxy") if name not in there]
    assert installed[-1].split("recommends ")[1].split() == wanted
    assert (check, test) == ("make check", f"make test ARGS=-m '{TESTS}'")
    assert not said


@pytest.mark.parametrize(("programs", "user"), [(("apt-get",), 1000), ((), 0)])
def test_where_none_can_be_installed_it_says_so(
    tmp_path: Path, programs: tuple[str, ...], user: int
) -> None:
    said, calls = ci_run(tmp_path, *programs, user=user)
    assert calls == ["make check", f"make test ARGS=-m '{TESTS} and not browser'"]
    assert "browser tests are skipped" in said
    assert len(said.splitlines()) == 1


def test_the_workflow_is_valid() -> None:
    schema = ("--builtin-schema", "vendor.github-workflows")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *schema, WORKFLOW],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [".ci/run", "uv sync"])
def test_the_workflow_runs_it_on_the_oldest_and_the_newest_python(command: str) -> None:
    jobs: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    [job] = [
        job for job in jobs.values() if any(step.get("run") == command for step in job["steps"])
    ]
    assert job["strategy"]["matrix"] == {"python": PYTHONS}
    given = [step.get("with", {}).get("python-version") for step in job["steps"]]
    assert "${{ matrix.python }}" in given
