"""The programs of the guide's page on training, word for word, as its reader starts them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from checkout import ROOT

from ml_trainer_env.benchmarks.learning import tiny_model

PAGE = ROOT / "docs/guide/training.md"
MOST_LINES = 60

_BLOCK = re.compile(r"^`(\w+\.py)`; start it with.*?```python\n(.*?)```", re.DOTALL | re.MULTILINE)
PROGRAMS: dict[str, str] = dict(_BLOCK.findall(PAGE.read_text()))


def start(
    folder: Path, name: str, *arguments: str, changed: Mapping[str, str] | None = None
) -> str:
    """What it says."""
    program = PROGRAMS[name]
    for old, new in (changed or {}).items():
        assert old in program
        program = program.replace(old, new)
    (folder / name).write_text(program)
    done = subprocess.run(
        [sys.executable, name, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_both_programs_are_there_and_short() -> None:
    assert PROGRAMS.keys() == {"ppo.py", "grpo.py"}
    assert all(len(program.splitlines()) < MOST_LINES for program in PROGRAMS.values())


@pytest.mark.slow
def test_a_policy_network_is_trained_to_a_curve(tmp_path: Path, serve: Callable[..., str]) -> None:
    said = start(tmp_path, "ppo.py", serve(max_sessions=64), "1024")

    episodes = int(re.search(r"^(\d+) episodes; the last", said, re.MULTILINE)[1])  # type: ignore[index]
    assert 100 < episodes < 1024
    assert (tmp_path / "ppo.png").stat().st_size > 5000
    assert (tmp_path / "ppo.zip").exists()


@pytest.mark.slow
def test_a_language_model_is_trained_to_a_curve(tmp_path: Path, serve: Callable[..., str]) -> None:
    words = tiny_model.tokenizer()
    words.save_pretrained(tmp_path / "model")
    tiny_model.model(words).save_pretrained(tmp_path / "model")
    on_a_cpu = {
        "GRPOConfig(": "GRPOConfig(use_cpu=True, bf16=False, ",
        "max_completion_length=4096": "max_completion_length=16",
    }

    said = start(tmp_path, "grpo.py", "model", serve(max_sessions=64), "2", changed=on_a_cpu)

    assert "2 steps; the last ones returned [" in said
    assert (tmp_path / "grpo.png").stat().st_size > 5000
    assert (tmp_path / "grpo" / "model.safetensors").exists()
