"""What a client was given to come in with is never told, whatever is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import free_port

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.variables import SettingsError

SECRET = "s3cret-value"
ELSEWHERE = "http://192.0.2.1:1"  # an address that nobody has


@given(st.text(min_size=1))
def test_a_header_that_cannot_be_sent_is_named_and_not_shown(text: str) -> None:
    value = SECRET + text
    if value.isascii() and value.isprintable():
        MLTrainerEnv(base_url=ELSEWHERE, headers={"Authorization": value})
        return
    with pytest.raises(ValueError, match="Authorization") as raised:
        MLTrainerEnv(base_url=ELSEWHERE, headers={"Authorization": value})
    assert SECRET not in str(raised.value)


def told_by(base_url: str, headers: dict[str, str] | None = None) -> str:
    with (
        pytest.raises(ConnectionError) as raised,
        MLTrainerEnv(base_url=base_url, headers=headers, connect_timeout_s=5),
    ):
        pytest.fail("nobody is there")
    assert raised.value.__suppress_context__
    return str(raised.value)


def test_nor_is_the_password_of_an_address() -> None:
    port = free_port()
    told = told_by(f"http://user:{SECRET}@127.0.0.1:{port}")
    assert f"Failed to connect to ws://127.0.0.1:{port}/ws" in told
    assert SECRET not in told


def test_nor_is_a_header_that_turns_up_in_the_error() -> None:
    told = told_by(f"http://{SECRET}.invalid", {"Authorization": f"Bearer {SECRET}"})
    assert "Failed to connect to ws://[redacted].invalid/ws" in told


@pytest.mark.parametrize(
    "proxy", [f"socks5://u:{SECRET}@127.0.0.1:1", f"ftp://u:{SECRET}@x", f"u:{SECRET}@x"]
)
def test_a_proxy_that_cannot_be_used_is_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(SettingsError, match=r"^HTTP_PROXY: ") as raised:
        MLTrainerEnv(base_url=ELSEWHERE).sync().connect()
    assert SECRET not in str(raised.value)
