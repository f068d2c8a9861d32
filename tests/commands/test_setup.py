"""Setting up: which torch is asked for, the image's steps, `uv sync`. The last two are slow."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import ROOT, copy_checkout, pyproject
from dockerfile import build

TORCH = next(d for d in pyproject()["project"]["dependencies"] if d.startswith("torch"))
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="macOS has only CPU builds")

# Stands in for .venv/bin/python: keeps a record, and refuses what REFUSE (a shell pattern) names.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >>calls
case "$*" in *importlib.metadata*) exit 1 ;; $REFUSE) exit 1 ;; esac
"""


def run_setup(folder: Path, *options: str, refuse: str) -> tuple[int, list[str]]:
    """scripts/setup.sh with a fake pip; gives the exit status and pip's `install torch` calls."""
    shutil.copytree(ROOT / "scripts", folder / "scripts", dirs_exist_ok=True)
    for file in (ROOT / "pyproject.toml", *ROOT.glob("requirements*.lock")):
        shutil.copy(file, folder)
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    (folder / ".venv/pyvenv.cfg").write_text(f"command = python -m venv --clear {folder}/.venv\n")
    environment = os.environ | {"PYTHON": sys.executable, "REFUSE": refuse}
    done = subprocess.run(
        [folder / "scripts/setup.sh", *options], env=environment, capture_output=True, timeout=60
    )
    calls = folder / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return done.returncode, [line for line in lines if "install" in line]


@linux_only
def test_torch_comes_from_where_pip_is_configured_to_look(tmp_path: Path) -> None:
    status, installs = run_setup(tmp_path, refuse="nothing")
    assert status == 0
    [torch] = [call for call in installs if "torch" in call]
    assert torch.endswith(f" {TORCH}+cpu")
    assert "--index-url" not in torch


@linux_only
def test_torch_comes_from_pytorchs_cpu_index_otherwise(tmp_path: Path) -> None:
    status, installs = run_setup(tmp_path, refuse="*--no-deps torch*")
    assert status == 0
    first, second = [call for call in installs if "torch" in call]
    assert "--index-url" not in first
    assert "/whl/cpu " in second
    assert second.endswith(f" {TORCH}+cpu")


@linux_only
def test_a_cuda_build_is_never_asked_for(tmp_path: Path) -> None:
    status, installs = run_setup(tmp_path, refuse="*+cpu*")
    assert status != 0
    calls = [call for call in installs if "torch" in call]
    assert calls
    assert all("+cpu" in call for call in calls)


def test_setup_does_nothing_when_nothing_changed(tmp_path: Path) -> None:
    assert run_setup(tmp_path, refuse="nothing")[1]
    assert run_setup(tmp_path, refuse="nothing") == (0, [])
    assert run_setup(tmp_path, "--runtime", refuse="nothing")[1]


def test_setup_that_failed_is_run_again(tmp_path: Path) -> None:
    assert run_setup(tmp_path, refuse="*--require-hashes*")[0] != 0
    status, installs = run_setup(tmp_path, refuse="nothing")
    assert status == 0
    assert installs


def test_development_tools_stay_out_of_the_image(tmp_path: Path) -> None:
    _, installs = run_setup(tmp_path, "--runtime", "--deps-only", refuse="nothing")
    assert any("--requirement requirements.lock" in call for call in installs)
    assert not [call for call in installs if "requirements-dev" in call or "--editable" in call]


def test_a_server_has_ray_where_it_is_asked_for(tmp_path: Path) -> None:
    _, installs = run_setup(tmp_path, "--runtime", "--deps-only", refuse="nothing")
    assert not [call for call in installs if "requirements-ray.lock" in call]
    _, installs = run_setup(tmp_path, "--runtime", "--ray", "--deps-only", refuse="nothing")
    [server, ray] = [call for call in installs if "--requirement" in call]
    assert server.endswith("--requirement requirements.lock")
    assert ray.endswith("--require-hashes --requirement requirements-ray.lock")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.very_slow
@pytest.mark.network
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("given", [{}, {"RAY": "1"}], ids=["", "ray"])
def test_image_steps_end_in_a_healthy_server(tmp_path: Path, given: dict[str, str]) -> None:
    context = copy_checkout(tmp_path / "context")
    image = build(context / "server/Dockerfile", context, tmp_path / "image", given)
    assert not (image.workdir / "tests").exists()
    assert (image.workdir / ".venv/bin/ray").exists() == bool(given)
    assert (image.workdir / "data").is_dir()
    port = str(free_port())
    command = [word.replace("8000", port) for word in image.command]
    health = [word.replace("8000", port) for word in image.health]
    # Found through the image's PATH, as the container would.
    command[0] = shutil.which(command[0], path=image.env["PATH"]) or command[0]
    server = subprocess.Popen(command, cwd=image.workdir, env=image.env)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(health, env=image.env, capture_output=True).returncode:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server is not healthy after 60 s"
            time.sleep(0.5)
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.very_slow
@pytest.mark.network
@pytest.mark.timeout(900)
def test_uv_sync_installs_a_cpu_build(tmp_path: Path) -> None:
    """As documented for a machine whose pip has a folder of wheels, else just `uv sync`."""
    clone = copy_checkout(tmp_path / "clone")
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    links = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    if links:
        environment |= {"UV_NO_SOURCES": "1", "UV_FIND_LINKS": links}
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "sync", "--quiet"], cwd=clone, env=environment, check=True, timeout=600)
    script = (
        "import json, sys, torch, ml_trainer_env; sys.path.insert(0, '.'); import server;"
        "print(json.dumps([torch.__version__, torch.version.cuda, ml_trainer_env.__file__]))"
    )
    done = subprocess.run(
        [clone / ".venv/bin/python", "-c", script], cwd=clone, capture_output=True, check=True
    )
    version, cuda, package = json.loads(done.stdout)
    assert version.split("+")[0] == TORCH.removeprefix("torch==")
    assert cuda is None
    assert Path(package) == clone / "__init__.py"
