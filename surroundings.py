"""What libraries look for when they are imported, on machines that lack it or have it wrong.

OpenEnv brings FastMCP, which wants a home folder and reads `.env`, and Gradio, which makes an HTTP
client; containers drop the home and the name of the user, and `.env` files come in any encoding.
What can be given is given when the package is imported, before them. What cannot is told.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib.abc import MetaPathFinder
from pathlib import Path

_PAGE = "openenv.core.env_server.web_interface"
REMEMBERED = 1024  # megabytes of training states
PROXY = "http://host:port"
_USUAL_PROXY = re.compile(r"(?:https?://)?[a-z0-9.-]+(?::[0-9]{1,5})?/?", re.IGNORECASE)
_USUAL_HOSTS = re.compile(r"[\w.*/, -]*")
_OF_CLIENTS = re.compile(
    r"(?:http|https|all|no)_proxy|ssl_cert_file|ssl_cert_dir|sslkeylogfile", re.IGNORECASE
)


def provide() -> None:
    """A home for who has none, no `.env` for FastMCP where it could not read it, a quick OpenEnv.

    Where nothing is missing it changes nothing.
    """
    if not Path(os.environ.get("HOME", os.sep)).is_absolute():  # as good as unset
        del os.environ["HOME"]
    try:
        Path.home()
    except RuntimeError:  # nor does the machine know the user
        os.environ["HOME"] = str(temporary_folder())
    if not _is_readable(Path(".env")):
        os.environ.setdefault("FASTMCP_ENV_FILE", os.devnull)
    if _PAGE.rpartition(".")[0] not in sys.modules:
        sys.meta_path.insert(0, _PageLater())


class _PageLater(MetaPathFinder):
    """Lets OpenEnv be imported without its page, once, which OpenEnv allows for.

    The page brings Gradio, whose import takes longer than all the rest; where the page is enabled
    OpenEnv asks for it again.
    """

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == _PAGE:
            sys.meta_path.remove(self)
            raise ModuleNotFoundError("the page is imported where it is enabled", name=fullname)


@cache
def temporary_folder() -> Path:
    """A folder of this user alone that can be written, the same for all processes.

    The root folder where there is no such place.
    """
    import tempfile  # here, for whoever only imports the package

    try:
        folder = Path(tempfile.gettempdir()) / f"ml-trainer-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        owned = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
        return folder if owned else Path(tempfile.mkdtemp(prefix="ml-trainer-"))
    except OSError:
        return Path(os.sep)


def state_folder() -> Path:
    """Where evaluations of this user remember what they trained, unless they are told otherwise."""
    import platformdirs

    usual = platformdirs.user_cache_path("ml-trainer", appauthor=False)
    return (usual if is_writable(usual) else temporary_folder()) / "state"


def remembering() -> dict[str, str]:
    """Variables by which servers and sessions remember, where none says otherwise already."""
    if os.environ.get("ML_TRAINER_STATE_DIR"):
        return {}
    most = os.environ.get("ML_TRAINER_STATE_MB") or str(REMEMBERED)
    return {"ML_TRAINER_STATE_DIR": str(state_folder()), "ML_TRAINER_STATE_MB": most}


@contextmanager
def variables_set(variables: Mapping[str, str]) -> Generator[None]:
    """Within the block, this process and those that it starts have these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def require_http_client() -> None:
    """Raises `SettingsError` where proxies or certificates are such that none can be made."""
    names = filter(_OF_CLIENTS.fullmatch, os.environ)
    for name in sorted(names, key=lambda name: name.lower() == "no_proxy"):  # it comes last
        value = os.environ[name]
        problem = _problem(partial(_use, name.lower(), value)) if value else None
        if problem:
            from ml_trainer_env.variables import SettingsError

            raise SettingsError(f"{name}: cannot be used: {problem}")


def _use(name: str, value: str) -> None:
    """What an HTTP client does with this variable, without one where all is usual."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    match name:
        case "ssl_cert_file":
            context.load_verify_locations(cafile=value)
        case "ssl_cert_dir":
            context.load_verify_locations(capath=value)
        case "sslkeylogfile":
            context.keylog_filename = value
        case "no_proxy" if not _USUAL_HOSTS.fullmatch(value):
            from httpx import Client

            Client()  # of which all the others are known to be good
        case _ if name != "no_proxy" and not _USUAL_PROXY.fullmatch(value):
            from httpx import Client

            proxy = value if "://" in value else f"http://{value}"
            try:
                Client(proxy=proxy, verify=False, trust_env=False)
            except ImportError:  # of a package for SOCKS, which it names
                raise
            except Exception:  # its words may be a part of the password
                raise ValueError(f"must be a proxy, such as {PROXY}") from None
        case _:
            pass


def is_writable(folder: Path) -> bool:
    """Whether files can be made in it, after it itself has been made."""
    while not os.path.lexists(folder):  # which, unlike a path's own method, raises nothing
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)  # noqa: PTH112


def _problem(make: Callable[[], object]) -> str | None:
    """Why it cannot be made. Clients raise what the libraries below them happen to."""
    try:
        make()
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def _is_readable(file: Path) -> bool:
    """As text. What is no plain file is left alone: reading a pipe would empty it."""
    try:
        if file.is_file():
            file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return True
