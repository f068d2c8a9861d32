"""A record has one writer and is whole, whoever is killed; and a name that says who played."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ml_trainer_env import inference
from ml_trainer_env.agents import records
from ml_trainer_env.agents.llm import agent
from ml_trainer_env.agents.llm.settings import LLMSettings
from ml_trainer_env.agents.players import Player
from ml_trainer_env.agents.records import Called, RecordInUse, RecordWriter, Remark
from ml_trainer_env.evals import plots, results


def test_a_record_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with RecordWriter(path) as writer:
        writer(Remark(text="first"))
        with pytest.raises(RecordInUse):
            RecordWriter(path)
    assert path.read_text() == '{"kind":"remark","text":"first"}\n'
    with RecordWriter(path) as writer:
        writer(Remark(text="second"))
    assert "second" in path.read_text()


def test_a_writer_that_has_waited_for_a_finished_record_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens the file of an unfinished record, which is moved into place before it is locked."""
    path = tmp_path / "r.jsonl"
    lock = records.fcntl.flock

    def late(file: Any, operation: int) -> None:
        monkeypatch.setattr(records.fcntl, "flock", lock)
        first(Remark(text="first"))
        first.__exit__(None, None, None)
        lock(file, operation)

    first = RecordWriter(path)
    monkeypatch.setattr(records.fcntl, "flock", late)
    with RecordWriter(path):
        assert "first" in path.read_text()
    assert "first" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    script = (
        "import sys, time; from pathlib import Path\n"
        "from ml_trainer_env.agents.records import RecordWriter, Remark\n"
        "writer = RecordWriter(Path(sys.argv[1]))\n"
        "for n in range(100): writer(Remark(text=str(n)))\n"
        "print('written', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        with pytest.raises(RecordInUse):
            RecordWriter(path)
        writer.kill()
    with RecordWriter(path) as again:
        again(Remark(text="again"))
    assert path.read_text() == '{"kind":"remark","text":"again"}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RecordWriter(tmp_path / "r.jsonl"):
        raise ZeroDivisionError
    with RecordWriter(tmp_path / "r.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_utf_8_whatever_was_said(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    call = Called(session=0, tool="t", arguments={"\ud83d": ["é", "\ud800"]}, seconds=0)
    with RecordWriter(path) as writer:
        writer(Remark(text="half \ud800 of a 日"))
        writer(call)
    remark, called = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert remark["text"] == "half ? of a 日"
    assert called["arguments"] == {"?": ["é", "?"]}


# Who played ---------------------------------------------------------------------------------------


def test_an_address_in_a_record_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k3y")
    monkeypatch.setenv("API_BASE_URL", "https://me:s3cret@host:8/v1?key=t0ken#frag")
    player = agent.player(LLMSettings.load(), "easy_mnist")
    assert player.options["endpoint"] == "https://host:8/v1"
    assert not [secret for secret in ("k3y", "s3cret", "t0ken") if secret in player.key]


def test_equal_players_have_one_key_and_name() -> None:
    one = Player(agent="llm", model="m", options={"a": 1, "b": 2})
    other = Player(agent="llm", model="m", options={"b": 2, "a": 1})
    assert (one.key, one.file_name) == (other.key, other.file_name)
    assert Player(agent="naive").file_name == "naive"


def test_players_that_share_an_agent_are_told_apart_in_pictures() -> None:
    rows = [results.Row("llm", f"llm ({n})", "easy_mnist", ()) for n in range(4)]
    colours = plots._colours(rows)
    assert list(colours) == [row.label for row in rows]
    assert len(set(colours.values())) == 4


def test_folders_of_their_own_are_given_to_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    barrier = threading.Barrier(8)

    def start(_: int) -> Path:
        barrier.wait()
        return inference._folder_of_its_own("now")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(start, range(8)))) == 8
