"""OpenEnv's own bar, without Docker: the six checks on a live server and the runtime graders."""

from __future__ import annotations

import json

import pytest
from checkout import ROOT
from openenv.cli._validation import validate_running_environment
from openenv.validation.graders import Subject
from openenv.validation.graders.runtime import (
    ObservationSchemaGrader,
    RewardWellFormedGrader,
    StateContractGrader,
)
from openenv.validation.manifest import NormalizedManifestV2
from openenv.validation.parsers.openenv_yaml import OpenEnvYamlParser
from openenv.validation.runtime.collector import collect_runtime_evidence
from openenv.validation.runtime.contracts import RuntimePlan, RuntimeReset, load_runtime_plan
from openenv.validation.types import CheckStatus

from ml_trainer_env.models import MAX_TOOL_CALLS
from ml_trainer_env.server.episode.tools import TOOLS

GRADERS = [RewardWellFormedGrader, ObservationSchemaGrader, StateContractGrader]


@pytest.fixture(scope="module")
def manifest() -> NormalizedManifestV2:
    manifest = OpenEnvYamlParser().parse(ROOT)
    assert isinstance(manifest, NormalizedManifestV2)
    return manifest


@pytest.fixture(scope="module")
def declared_plan(manifest: NormalizedManifestV2) -> RuntimePlan:
    assert manifest.execution is not None
    return load_runtime_plan(ROOT, manifest.execution)


def call(tool: str, **arguments: object) -> dict[str, object]:
    return {"type": "call_tool", "tool_name": tool, "arguments": arguments}


def long_plan() -> RuntimePlan:
    """Every tool, a divergence, its cure, and the call limit, which submits."""
    actions = [
        call("configure_training", optimizer="sgd", lr_schedule="cosine"),
        call("run_epochs", num_epochs=20),
        call("adjust_learning_rate", new_lr=10),
        call("run_epochs", num_epochs=5),
        call("adjust_learning_rate", new_lr=0.01),
        call("get_training_status"),
        call("run_epochs", num_epochs=20),
        *[call("toggle_augmentation", enabled=True)] * (MAX_TOOL_CALLS - 6),
    ]
    reset = RuntimeReset(episode_id="long", seed=1, options={"task_id": "hard_cifar"})
    return RuntimePlan(plan_schema_version="1", reset=reset, actions=actions)


def test_the_six_checks_pass_on_a_live_server(url: str) -> None:
    report = validate_running_environment(url)
    failed = [criterion for criterion in report["criteria"] if not criterion["passed"]]
    assert not failed
    assert len(report["criteria"]) == 6
    assert report["passed"]


@pytest.mark.filterwarnings("ignore:connect\\(\\) must be used:DeprecationWarning")  # OpenEnv's
@pytest.mark.parametrize("which", ["declared", "long"])
def test_the_runtime_graders_pass(
    url: str, manifest: NormalizedManifestV2, declared_plan: RuntimePlan, which: str
) -> None:
    plan = declared_plan if which == "declared" else long_plan()
    evidence = collect_runtime_evidence(url, plan, episode_timeout_s=30)
    assert evidence.failure_reason is None
    assert len(evidence.exchanges) == 2 + 2 * len(plan.actions)
    last = json.loads(evidence.exchanges[-2].response_json)["data"]
    assert last["done"] is True
    assert last["observation"]["error"] is None
    subject = Subject(
        root=ROOT,
        manifest=manifest,
        image_ref=None,
        running=None,
        outputs_dir=ROOT,
        runtime_evidence=evidence,
    )
    for grader in GRADERS:
        result = grader().run(subject)
        assert result.status is CheckStatus.PASS, result.evidence


def test_the_manifest_declares_the_tools_there_are(manifest: NormalizedManifestV2) -> None:
    assert manifest.capabilities.declared_tools is not None
    assert set(manifest.capabilities.declared_tools) == set(TOOLS)
