"""What operators deploy: every file is valid for the tool that reads it, and all of them agree."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kuberay
import pytest
import yaml
from checkout import ROOT, pyproject
from live import eventually

from ml_trainer_env.server.settings import PREFIX, Settings

COMPOSE = ROOT / "deploy/compose.yaml"
BALANCER = ROOT / "deploy/haproxy.cfg"
KUBERAY = ROOT / "deploy/kuberay.yaml"
WITH_NODE = ROOT / "scripts/with_node.sh"

HEAD = {"head:6379", "ml-trainer-head-svc:6379"}
with_haproxy = pytest.mark.skipif(not shutil.which("haproxy"), reason="no haproxy is here")


def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def resources(text: str | None = None) -> list[kuberay.Resource]:
    return list(yaml.safe_load_all(text or KUBERAY.read_text()))


def resource(kind: str) -> kuberay.Resource:
    return next(each for each in resources() if each["kind"] == kind)


def misspelt(file: Path, tmp_path: Path, right: str, wrong: str) -> Path:
    text = file.read_text()
    assert right in text
    copy = tmp_path / file.name
    copy.write_text(text.replace(right, wrong, 1))
    return copy


# --- valid ------------------------------------------------------------------------------------


def compose_is_valid(file: Path) -> bool:
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_the_compose_file_is_valid() -> None:
    assert compose_is_valid(COMPOSE)


@pytest.mark.parametrize(
    ("right", "wrong"), [("healthcheck:", "healtcheck:"), ("replicas: $", "replica: $")]
)
def test_a_compose_file_with_a_misspelt_field_is_not(
    tmp_path: Path, right: str, wrong: str
) -> None:
    assert not compose_is_valid(misspelt(COMPOSE, tmp_path, right, wrong))


def balancer_is_valid(file: Path) -> bool:
    """Names that nobody resolves here are a warning."""
    command = ["haproxy", "-c", "-q", "-f", file]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


@with_haproxy
def test_the_balancer_understands_its_file() -> None:
    assert balancer_is_valid(BALANCER)


@with_haproxy
def test_a_balancers_file_with_a_misspelt_word_is_refused(tmp_path: Path) -> None:
    assert not balancer_is_valid(misspelt(BALANCER, tmp_path, "leastconn", "leastcon"))
    assert not balancer_is_valid(misspelt(BALANCER, tmp_path, "redispatch", "redispach"))


def test_kubernetes_and_kuberay_understand_their_file() -> None:
    kuberay.validate(resources())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("workerGroupSpecs:", "workerGroups:"),
        ("  mode: token", "  mode: tokens"),
        ('num-cpus: "0"', "num-cpus: 0"),
        ("readinessProbe: &gcs", "readynessProbe: &gcs"),
        ("emptyDir: {}", "emptyDirectory: {}"),
        ("sessionAffinity: ClientIP", "sesionAffinity: ClientIP"),
        ("  replicas: 2\n  selector", "  replicas: two\n  selector"),
    ],
)
def test_a_kubernetes_file_with_a_mistake_is_refused(right: str, wrong: str) -> None:
    text = KUBERAY.read_text()
    assert right in text
    with pytest.raises(ValueError, match=r"\w"):
        kuberay.validate(resources(text.replace(right, wrong, 1)))


# --- what is started --------------------------------------------------------------------------


def words(command: str) -> list[str]:
    """Of a shell's command line that starts Ray, with something for what only the shell knows."""
    (line,) = re.findall(r"ray start .*", " ".join(command.split()))
    return shlex.split(line.replace("$$(", "$(").partition(" || ")[0])


def started() -> Iterator[tuple[str, list[str]]]:
    """Where Ray is started, and with which words."""
    yield "compose: head", services()["head"]["command"]
    yield "compose: node", words(services()["node"]["command"][-1])
    yield "with_node.sh", words(WITH_NODE.read_text().partition("while")[2])
    spec = resource("RayCluster")["spec"]
    yield "kuberay: head", kuberay.start_command(True, spec["headGroupSpec"]["rayStartParams"])
    (workers,) = spec["workerGroupSpecs"]
    yield "kuberay: workers", kuberay.start_command(False, workers["rayStartParams"])


def understood(command: list[str]) -> dict[str, Any]:
    """The options, as Ray's own command line reads them."""
    scripts = pytest.importorskip("ray.scripts.scripts", reason="the extra `ray`")
    assert command[:2] == ["ray", "start"]
    return scripts.start.make_context("start", command[2:]).params


@pytest.mark.parametrize("command", [pytest.param(each, id=name) for name, each in started()])
def test_ray_understands_what_it_is_started_with(command: list[str]) -> None:
    options = understood(command)
    assert options["block"]  # whoever restarts what ended sees it end
    assert bool(options["head"]) != bool(options["address"])


def test_ray_refuses_an_option_that_it_has_not() -> None:
    click = pytest.importorskip("click")
    with pytest.raises(click.UsageError):
        understood(kuberay.start_command(True, {"num-cpu": "0"}))


FAKE = """#!{python}
import json, sys
with open({calls!r}, "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
print({printed!r})
"""


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment of a shell that finds programs of these names, which print these texts."""

    def make(**printed: str) -> dict[str, str]:
        for name, text in printed.items():
            program = tmp_path / "bin" / name.replace("_", "-")
            program.parent.mkdir(exist_ok=True)
            calls = str(tmp_path / program.name)
            program.write_text(FAKE.format(python=sys.executable, calls=calls, printed=text))
            program.chmod(0o755)
        return os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    return make


def calls(tmp_path: Path, program: str) -> list[list[str]]:
    file = tmp_path / program
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def trainer() -> list[str]:
    (workers,) = resource("RayCluster")["spec"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    return [*container["command"], *container["args"]]


@pytest.mark.parametrize(
    "command",
    [
        [word.replace("$$", "$") for word in services()["node"]["command"]],
        [word.replace("ulimit -n 65536; ", "") for word in trainer()],
    ],
    ids=["compose", "kuberay"],
)
def test_a_node_names_the_engine_that_its_machine_has(
    tmp_path: Path, fake: Callable[..., dict[str, str]], command: list[str]
) -> None:
    named = '{"ml-trainer-engine-0": 4}'
    environment = fake(ray="", ml_trainer=named)
    environment["KUBERAY_GEN_RAY_START_CMD"] = "ray start  --address=head:6379  --block "
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert calls(tmp_path, "ml-trainer") == [["resources"]]
    ((*_, last),) = calls(tmp_path, "ray")
    assert last.removeprefix("--resources=") == named


def test_a_server_stays_and_its_node_is_started_again(
    tmp_path: Path, fake: Callable[..., dict[str, str]]
) -> None:
    waiting = [sys.executable, "-c", "input()"]
    with subprocess.Popen(
        [WITH_NODE, "head:6379", *waiting],
        env=fake(ray=""),  # a node that ends at once
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as server:
        try:
            eventually(lambda: len(calls(tmp_path, "ray")) > 1)
            assert server.poll() is None
            server.communicate(b"\n", timeout=60)
            assert server.returncode == 0  # that of the server, whose process it is
        finally:
            os.killpg(server.pid, 9)  # what a container does with the rest
    first, second, *_ = calls(tmp_path, "ray")
    assert first == second
    assert first[:3] == ["start", "--address", "head:6379"]


# --- they agree -------------------------------------------------------------------------------


def variables() -> Iterator[tuple[str, dict[str, str]]]:
    for name, service in services().items():
        yield name, dict(service.get("environment", {}))
    (server,) = resource("Deployment")["spec"]["template"]["spec"]["containers"]
    yield "Deployment", {each["name"]: each.get("value", "") for each in server["env"]}


@pytest.mark.parametrize("given", [pytest.param(given, id=name) for name, given in variables()])
def test_variables_are_those_of_the_server(given: dict[str, str]) -> None:
    ours = {name.removeprefix(PREFIX).lower() for name in given if name.startswith(PREFIX)}
    assert ours <= Settings.model_fields.keys()
    if "runner" in ours:
        assert given[f"{PREFIX}RUNNER"] == "ray"
        assert given[f"{PREFIX}RAY_ADDRESS"] in HEAD
        assert {"state_dir", "token"} <= ours
    if "RAY_AUTH_TOKEN" in given:
        assert given["RAY_AUTH_MODE"] == "token"


def test_nobody_comes_in_without_a_token() -> None:
    """Docker refuses to start without one, and Kubernetes waits for its secret."""
    for variable in ("RAY_AUTH_TOKEN", f"{PREFIX}TOKEN"):
        assert f"${{{variable}:?" in COMPOSE.read_text()
    (server,) = resource("Deployment")["spec"]["template"]["spec"]["containers"]
    secrets = {
        each["name"]: each["valueFrom"]["secretKeyRef"]
        for each in server["env"]
        if "valueFrom" in each
    }
    cluster = resource("RayCluster")["metadata"]["name"]  # whose name its secret has
    assert secrets.pop("RAY_AUTH_TOKEN") == {"name": cluster, "key": "auth_token"}
    assert secrets.keys() == {f"{PREFIX}TOKEN"}


def test_the_version_of_ray_is_the_one_that_is_installed() -> None:
    (ray,) = pyproject()["project"]["optional-dependencies"]["ray"]
    assert ray == f"ray=={resource('RayCluster')['spec']['rayVersion']}"


def test_the_balancer_knows_the_servers_and_no_other() -> None:
    asked = set(re.findall(r'^ +server \w+ "\$\{(\w+)\}"', BALANCER.read_text(), re.MULTILINE))
    told = services()["balancer"]["environment"]
    assert told.keys() == asked
    known = {address.removesuffix(":8000") for address in told.values()}
    servers = {name for name, each in services().items() if "with_node.sh" in str(each)}
    assert known == servers
    assert len(servers) == 2
    assert services()["balancer"]["depends_on"].keys() == servers


def test_servers_of_a_cluster_share_a_disk_of_one_machine() -> None:
    deployment = resource("Deployment")["spec"]["template"]
    assert resource("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]
    (together,) = deployment["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert together["topologyKey"] == "kubernetes.io/hostname"
    assert (
        together["labelSelector"]["matchLabels"].items() <= deployment["metadata"]["labels"].items()
    )
