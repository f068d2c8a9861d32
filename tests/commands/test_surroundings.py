"""Machines without a home, a name of the user, or a folder to write in: all works there too."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from ml_trainer_env import surroundings
from ml_trainer_env.server.data import folder as data_folder
from ml_trainer_env.variables import SettingsError

DOTENV = "FASTMCP_ENV_FILE"


def unknown(_: object) -> NoReturn:
    raise KeyError("getpwuid(): uid not found")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No home, no name, none of the variables; the folder of temporary ones."""
    for name in ("HOME", "XDG_CACHE_HOME", "ML_TRAINER_DATA_DIR", DOTENV):
        monkeypatch.setenv(name, "")  # put back after the test, whatever is done to it
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    surroundings.temporary_folder.cache_clear()
    yield tmp_path
    surroundings.temporary_folder.cache_clear()


@pytest.mark.parametrize("home", [None, "", "relative/folder"])
def test_who_has_no_home_is_given_one(
    home: str | None, homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", home)
    surroundings.provide()
    given = Path.home()
    assert given.parent == homeless
    assert given.stat().st_mode & 0o777 == 0o700
    surroundings.temporary_folder.cache_clear()
    assert surroundings.temporary_folder() == given  # for another process of this user
    assert data_folder.cache_dir().is_relative_to(given)


def test_who_has_a_home_keeps_it(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/no/such/home")
    surroundings.provide()
    assert os.environ["HOME"] == "/no/such/home"
    assert DOTENV not in os.environ
    assert not list(homeless.iterdir())


def test_a_folder_that_somebody_else_has_made_is_not_used(homeless: Path) -> None:
    mine = homeless / f"ml-trainer-{os.getuid()}"
    mine.symlink_to("/etc")
    assert surroundings.temporary_folder() != mine
    assert surroundings.temporary_folder().parent == homeless


def test_where_nothing_at_all_can_be_written_that_is_told(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a-file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(homeless / "a-file"))
    surroundings.provide()
    assert os.environ["HOME"] == os.sep
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", "a-file/data")
    with pytest.raises(SettingsError, match=r"^ML_TRAINER_DATA_DIR: cannot write in .*a-file/data"):
        data_folder.require_usable()


def test_data_go_into_a_temporary_folder_where_the_users_cannot_be_written(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a-file").touch()
    monkeypatch.setenv("HOME", str(homeless / "a-file"))
    folder = data_folder.cache_dir()
    assert folder.parent == surroundings.temporary_folder()
    assert data_folder.is_temporary(folder)
    data_folder.require_usable()
    own = homeless / "own"
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", str(own))
    assert data_folder.cache_dir() == own
    assert not data_folder.is_temporary(own)


def test_data_that_are_there_need_no_folder_that_can_be_written(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in data_folder.NAMES:
        (homeless / f"{name}.safetensors").touch()
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", str(homeless))
    monkeypatch.setattr(data_folder, "require_writable", lambda *_: pytest.fail("not needed"))
    data_folder.require_usable()


@pytest.mark.parametrize(("content", "hidden"), [(b"A=b", False), ("A=b".encode("utf-16"), True)])
def test_a_dotenv_in_another_encoding_is_kept_from_fastmcp(
    content: bytes, hidden: bool, homeless: Path
) -> None:
    Path(".env").write_bytes(content)
    surroundings.provide()
    assert os.environ.get(DOTENV) == (os.devnull if hidden else None)


def test_the_server_and_the_client_can_be_imported_there(tmp_path: Path) -> None:
    """With the libraries as they are: they look when they are imported."""
    (tmp_path / ".env").write_bytes("OPENAI_API_KEY=k".encode("utf-16"))
    code = """
import os, pwd
def unknown(_): raise KeyError("uid not found")
pwd.getpwuid = unknown
import ml_trainer_env.client
from ml_trainer_env.server import app
assert app.app.title
"""
    nothing = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME")}
    environment = nothing | {"TMPDIR": str(tmp_path)}
    arguments = [sys.executable, "-c", code]
    subprocess.run(arguments, env=environment, cwd=tmp_path, check=True, timeout=120)


# What evaluations remember ----------------------------------------------------------------------


def test_who_has_a_state_folder_is_left_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_TRAINER_STATE_DIR", "/own")
    assert surroundings.remembering() == {}
    monkeypatch.delenv("ML_TRAINER_STATE_DIR")
    monkeypatch.setenv("ML_TRAINER_STATE_MB", "7")
    assert surroundings.remembering() == {
        "ML_TRAINER_STATE_DIR": str(surroundings.state_folder()),
        "ML_TRAINER_STATE_MB": "7",
    }


def test_variables_are_set_for_a_block_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_TRAINER_A", "before")
    monkeypatch.delenv("ML_TRAINER_B", raising=False)
    block = surroundings.variables_set({"ML_TRAINER_A": "1", "ML_TRAINER_B": "2"})
    with suppress(ZeroDivisionError), block:
        assert (os.environ["ML_TRAINER_A"], os.environ["ML_TRAINER_B"]) == ("1", "2")
        raise ZeroDivisionError
    assert os.environ["ML_TRAINER_A"] == "before"
    assert "ML_TRAINER_B" not in os.environ
