"""What a user installs: locks, wheel, OpenEnv's manifest, the Space's front matter."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from checkout import ROOT, copy_checkout, pyproject
from openenv.validation import Level, Verdict, run_validation
from openenv.validation.manifest import NormalizedManifestV2
from openenv.validation.parsers.openenv_yaml import OpenEnvYamlParser
from openenv.validation.runtime.contracts import load_runtime_plan
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ml_trainer_env.task_ids import CLASSIC_IDS, FAMILIES, SPLITS, listed

LOCKS = ("requirements.lock", "requirements-dev.lock")
RAY = "requirements-ray.lock"  # only what it adds to the first


def locked(name: str) -> dict[str, Requirement]:
    """The pins of a lock file; a package that differs by Python version appears once for each."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.split(" --hash")[0].strip(): pin(line) for line in lines}


def pin(line: str) -> Requirement:
    requirement, *hashes = re.split(r"\s+--hash=", line.strip())
    assert hashes, f"no hash: {requirement}"
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes)
    return Requirement(requirement)


# --- locks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "least"), [*((name, 50) for name in LOCKS), (RAY, 2)])
def test_lock_pins_every_package_exactly_and_names_no_address(name: str, least: int) -> None:
    assert "://" not in (ROOT / name).read_text()
    pins = locked(name).values()
    assert len(pins) >= least
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) and not pin.url for pin in pins)


def versions(name: str) -> set[str]:
    """The pins without the environment: for whom, depends on what else wants a package."""
    return {key.partition(";")[0].strip() for key in locked(name)}


def test_server_lock_is_part_of_the_development_lock() -> None:
    assert versions("requirements.lock") < versions("requirements-dev.lock")


def test_rays_lock_is_what_the_development_lock_has_and_the_server_lock_has_not() -> None:
    assert versions(RAY) < versions("requirements-dev.lock")
    assert not versions(RAY) & versions("requirements.lock")


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("requirements.lock", pyproject()["project"]["dependencies"]),
        ("requirements-dev.lock", pyproject()["dependency-groups"]["dev"]),
        (RAY, pyproject()["project"]["optional-dependencies"]["ray"]),
    ],
    ids=[*LOCKS, RAY],
)
def test_lock_satisfies_what_pyproject_declares(name: str, declared: list[str]) -> None:
    pins = locked(name).values()
    for requirement in map(Requirement, declared):
        if requirement.name == "torch":
            continue  # its CPU build has another hash on every index: scripts/setup.sh
        versions = [
            str(pin.specifier).removeprefix("==")
            for pin in pins
            if canonicalize_name(pin.name) == canonicalize_name(requirement.name)
        ]
        assert versions, f"{requirement.name} is not locked: make lock"
        assert all(requirement.specifier.contains(version) for version in versions)


def test_torch_is_pinned_once_and_left_out_of_the_locks() -> None:
    dependencies = map(Requirement, pyproject()["project"]["dependencies"])
    [torch] = [requirement for requirement in dependencies if requirement.name == "torch"]
    assert re.fullmatch(r"==\d+\.\d+\.\d+", str(torch.specifier))
    assert not [name for lock in LOCKS for name in locked(lock) if name.startswith("torch=")]


# --- the package ------------------------------------------------------------------------------


def test_every_package_of_the_tree_is_listed() -> None:
    found = {
        ".".join(("ml_trainer_env", *init.parent.relative_to(ROOT).parts))
        for init in (ROOT / "__init__.py", *ROOT.glob("[a-z]*/**/__init__.py"))
        if not init.is_relative_to(ROOT / "integrations")  # packages of their own
    }
    assert found == set(pyproject()["tool"]["setuptools"]["packages"])


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    source = copy_checkout(tmp_path / "source")
    command = [sys.executable, "-c", "import setuptools.build_meta as b; b.build_wheel('..')"]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=60)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packages = {"/".join(name.split(".")) for name in pyproject()["tool"]["setuptools"]["packages"]}
    desk = {f"ml_trainer_env/server/desk/desk.{kind}" for kind in ("css", "js")}
    data = {"ml_trainer_env/openenv.yaml", "ml_trainer_env/py.typed"} | desk
    data |= {f"ml_trainer_env/frozen/{family}.jsonl" for family in FAMILIES}
    data.add("ml_trainer_env/frozen/cluster_healthy.json")
    content = {name for name in names if ".dist-info/" not in name}
    strays = {
        name
        for name in content - data
        if not (name.endswith(".py") and name.rpartition("/")[0] in packages)
    }
    modules = {
        f"ml_trainer_env/{path.relative_to(source).as_posix()}"
        for folder in (source, source / "server", source / "server" / "desk")
        for path in folder.glob("*.py")
    }
    assert not strays
    assert modules | data <= content
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_a_fresh_clone_has_the_folders_for_outputs_and_nothing_in_them(tmp_path: Path) -> None:
    outputs = copy_checkout(tmp_path / "clone") / "outputs"
    files = {path.relative_to(outputs).as_posix() for path in outputs.rglob("*") if path.is_file()}
    assert files == {"evals/.gitkeep", "logs/.gitkeep"}
    left_behind = ["outputs/bench.json", "outputs/evals/night/a.jsonl", "outputs/logs/server.log"]
    kept = [f"outputs/{file}" for file in files]
    command = ["git", "check-ignore", "--no-index", *left_behind, *kept]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert ignored.splitlines() == left_behind


@pytest.mark.parametrize("module", ["ml_trainer_env", "ml_trainer_env.client"])
def test_importing_the_client_needs_neither_torch_nor_the_server(module: str) -> None:
    script = (
        f"import sys, {module}\n"
        "print([m for m in sys.modules if m == 'torch' or m.startswith('ml_trainer_env.server')])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# --- OpenEnv and Hugging Face -----------------------------------------------------------------


def manifest() -> NormalizedManifestV2:
    parsed = OpenEnvYamlParser().parse(ROOT)
    assert isinstance(parsed, NormalizedManifestV2)
    return parsed


def test_openenv_validate_passes_on_a_fresh_clone(tmp_path: Path) -> None:
    """Static checks; those that need a running server are in the server's own tests."""
    report = run_validation(copy_checkout(tmp_path / "clone"), max_level=Level.STATIC)
    assert report.verdict is Verdict.PASS, report.results


def test_manifest_declares_the_tasks_that_exist() -> None:
    raw = yaml.safe_load((ROOT / "openenv.yaml").read_text())
    assert tuple(task["id"] for task in raw["tasks"]) == (*CLASSIC_IDS, *FAMILIES)
    counts = {split: len(listed(split)) for split in SPLITS}
    assert manifest().capabilities.declared_task_count == counts
    assert raw["version"] == pyproject()["project"]["version"]


def test_validation_plan_only_calls_declared_tools() -> None:
    declared = manifest()
    plan = load_runtime_plan(ROOT, declared.execution)
    tools = [action["tool_name"] for action in plan.actions]
    assert set(tools) <= set(declared.capabilities.declared_tools)
    assert tools[-1] == "submit_model"
    assert plan.reset.options["task_id"] in CLASSIC_IDS


def test_readme_front_matter_makes_a_space() -> None:
    _, front_matter, _ = (ROOT / "README.md").read_text().split("---\n", 2)
    space = yaml.safe_load(front_matter)
    expected = {
        "title": "ML Training Optimizer",
        "colorFrom": "blue",
        "colorTo": "purple",
        "sdk": "docker",
        "app_port": 8000,
        "base_path": "/web",
    }
    assert space.items() >= expected.items()
    assert space["emoji"]
    assert "openenv" in space["tags"]


def test_manifest_dockerfile_and_makefile_agree_on_app_and_port() -> None:
    raw = yaml.safe_load((ROOT / "openenv.yaml").read_text())
    dockerfile = (ROOT / manifest().execution.dockerfile).read_text()
    serve = f"{raw['app']} --host 0.0.0.0 --port {raw['port']}"
    command = ", ".join(f'"{word}"' for word in serve.split())
    assert f'CMD ["uvicorn", {command}]' in dockerfile
    assert f"EXPOSE {raw['port']}\n" in dockerfile
    assert f"uvicorn {serve}" in (ROOT / "Makefile").read_text()
