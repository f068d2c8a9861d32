"""Variables and options as users set them: read, checked, and explained in one line.

Guarantees: what cannot be used is told in one line that names the variable, and ends a program with
status 2; no secret is in that line, nor in an exception behind it. Pydantic and the standard
library, nothing else.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationError

USAGE = 2  # the exit status of a program that was called or set up wrongly
SHOWN = 60  # characters of a value that are shown
_LONG = 8  # characters; a secret that is shorter is redacted only where it stands alone
_PASSWORD = re.compile(r"""(?<=://)[^\s"'<>]*@""")  # in a URL: the user and the password


class SettingsError(ValueError):
    """A variable or option holds what cannot be used.

    The message is one line that names it and says what can; it shows no secret.
    """


# Values ------------------------------------------------------------------------------------------


def is_sendable(text: str) -> bool:
    """Whether it can be the value of a header: printable ASCII and nothing else."""
    return text.isascii() and text.isprintable()


def _secret(given: object) -> object:
    """Without the white space around it, which comes with copying; None where nothing is left."""
    value = given.get_secret_value() if isinstance(given, SecretStr) else given
    if not isinstance(value, str):
        return value
    value = value.strip()
    if not is_sendable(value):
        raise ValueError("has a character that no header can carry: only printable ASCII can be")
    return value or None


def _text(given: str) -> str:
    text = given.strip()
    if not text.isprintable():
        raise ValueError("has a character that cannot be printed")
    return text


def checked_url(given: str, schemes: Iterable[str] = ("http", "https")) -> str:
    """The URL. Raises ValueError, without showing it: there may be a password in it."""
    url = given.strip()
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        usable = parts.scheme in schemes and host != b"" and parts.port != 0
    except ValueError:  # brackets, the port, or a name that no host can have
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise ValueError(
            f"must be a URL that begins with {' or '.join(f'{s}://' for s in schemes)}"
        )
    return url


def expanded(given: Path) -> Path:
    """With the home for a ~; as it is, where that is nobody's."""
    try:
        return given.expanduser()
    except RuntimeError:
        return given


def server_url(given: str) -> str:
    """`checked_url` of an environment."""
    return checked_url(given, ("http", "https", "ws", "wss"))


Secret = Annotated[SecretStr | None, BeforeValidator(_secret)]
Text = Annotated[str, AfterValidator(_text)]
Folder = Annotated[Path, AfterValidator(expanded)]
HttpUrl = Annotated[str, AfterValidator(checked_url)]
ServerUrl = Annotated[str, AfterValidator(server_url)]


def secret(variable: str) -> str | None:
    """The secret in this variable of the process. Raises `SettingsError`."""
    try:
        value = _secret(os.environ.get(variable, ""))
    except ValueError as error:
        raise SettingsError(f"{variable}: {error}") from None
    return str(value) if value else None


def option(name: str, given: str | None, check: Callable[[str], str]) -> str | None:
    """An option of a command line, checked. Raises `SettingsError`."""
    try:
        return None if given is None else check(given)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None


def require_writable(folder: Path, variable: str) -> None:
    """Make the folder if it is not there. Raises `SettingsError` where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SettingsError(f"{variable}: cannot write in {folder}: {error.strerror}") from None


def require_text(file: Path) -> None:
    """Raises `SettingsError` for a file that is there and is not text in UTF-8."""
    try:
        if file.is_file() and "\0" in file.read_text(encoding="utf-8"):
            raise ValueError("null characters")
    except ValueError:
        raise SettingsError(f"{file}: must be text in UTF-8") from None
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None


def named(ending: str) -> str:
    """The variables of the process that end like this, in either case, and do not begin with no."""
    names = (name for name in os.environ if name.lower().endswith(ending))
    return ", ".join(name for name in names if not name.lower().startswith("no"))


# Telling -----------------------------------------------------------------------------------------


def explained(error: ValidationError, prefix: str = "") -> SettingsError:
    """The first fault that pydantic found, of fields named like variables after `prefix`.

    Validators of our own decide what their message shows; pydantic's get the value added.
    """
    fault, *others = error.errors(include_url=False)
    told = fault["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
    for other in others:  # a value that may be of several kinds has a fault for each
        if other["loc"][:1] == fault["loc"][:1]:
            told += other["msg"].replace("Input should", ", or should", 1)
    if fault["type"] != "value_error":
        told += f"; got {repr(fault['input'])[:SHOWN]}"
    variable = f"{prefix}{fault['loc'][0]}".upper() if fault["loc"] else ""
    return SettingsError(f"{variable}: {told}" if variable else told)


@contextmanager
def settings_explained() -> Generator[None]:
    """Around a program: a `SettingsError` ends it with its line on standard error and status 2."""
    try:
        yield
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(USAGE) from None


def one_line(text: str, *secrets: str, longest: int = 400) -> str:
    """`text` for a terminal: one line, without the secrets, nor any user or password of a URL."""
    text = _PASSWORD.sub("", text)
    for value in filter(None, secrets):
        for form in {value, json.dumps(value)[1:-1], quote(value, safe="")}:
            whole = re.escape(form) if len(form) >= _LONG else rf"(?<!\w){re.escape(form)}(?!\w)"
            text = re.sub(whole, "[redacted]", text)
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
