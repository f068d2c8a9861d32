"""A server of one's own: it is found, explained when it fails, and gone afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from live import free_port, listens

from ml_trainer_env.local_server import ServerError, local_server
from ml_trainer_env.variables import SettingsError

HEALTHY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


def test_a_server_that_cannot_start_is_explained(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import sys; print('no such module'); sys.exit(3)"]
    with (
        pytest.raises(ServerError, match=r"(?s)ended with status 3.*no such module"),
        local_server(tmp_path / "logs" / "server.log", program),
    ):
        pytest.fail("it is not there")


def test_what_a_server_says_of_its_settings_is_passed_on(tmp_path: Path) -> None:
    refusing = "import sys; print('...\\nML_TRAINER_THREADS: no', file=sys.stderr); sys.exit(2)"
    with (
        pytest.raises(SettingsError, match=r"^ML_TRAINER_THREADS: no$"),
        local_server(tmp_path / "log", [sys.executable, "-c", refusing]),
    ):
        pytest.fail("it is not there")


def test_a_server_that_dies_is_explained(tmp_path: Path) -> None:
    dying = HEALTHY.replace(
        ".serve_forever()", ".handle_request(); print('out of memory', file=sys.stderr)"
    )
    with (
        pytest.raises(ServerError, match=r"(?s)ended with status 0.*out of memory"),
        local_server(tmp_path / "log", [sys.executable, "-c", dying]),
    ):
        raise ConnectionResetError  # what the client then hears


def test_a_refusal_by_a_living_server_stays_what_it_is(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="refused"),
        local_server(tmp_path / "log", [sys.executable, "-c", HEALTHY]),
    ):
        raise RuntimeError("refused")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_the_server_is_stopped_whatever_happens(tmp_path: Path, error: type[BaseException]) -> None:
    served: list[str] = []

    def use() -> None:
        with local_server(tmp_path / "log", [sys.executable, "-c", HEALTHY]) as address:
            served.append(address)
            assert listens(address)
            raise error

    with pytest.raises(error):
        use()
    assert not listens(served[0])


def test_a_server_may_have_another_sign_of_health(tmp_path: Path) -> None:
    program = [sys.executable, "-c", HEALTHY.replace("/health", "/v1/models")]
    with local_server(tmp_path / "log", program, "/v1/models") as address:
        assert listens(address)


def test_a_port_of_choice_is_used_where_it_is_free(tmp_path: Path) -> None:
    program, port = [sys.executable, "-c", HEALTHY], free_port()
    for _ in range(2):  # it is free again at once
        with local_server(tmp_path / "log", program, port=port) as address:
            assert address == f"http://127.0.0.1:{port}"
            with local_server(tmp_path / "other", program, port=port) as other:
                assert other != address
