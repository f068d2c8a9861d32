"""What `deploy/kuberay.yaml` has to be: Kubernetes' own schemas, and the form of a RayCluster.

No package has the schema of KubeRay's own resource: here are the fields of its reference (1.6) that
the file uses. The pods in them are checked as Kubernetes' pod templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import kubernetes_validate
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

VERSION = "1.37"  # of Kubernetes
Resource = dict[str, Any]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(_Form):
    mode: Literal["token", "disabled"]


class Head(_Form):
    rayStartParams: dict[str, StrictStr]  # noqa: N815 - KubeRay's names
    template: Resource


class Workers(Head):
    groupName: str  # noqa: N815
    replicas: Annotated[StrictInt, Field(ge=0)]
    minReplicas: Annotated[StrictInt, Field(ge=0)]  # noqa: N815
    maxReplicas: Annotated[StrictInt, Field(ge=0)]  # noqa: N815


class Cluster(_Form):
    rayVersion: str  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    headGroupSpec: Head  # noqa: N815
    workerGroupSpecs: list[Workers]  # noqa: N815


class RayCluster(_Form):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayCluster"]
    metadata: dict[Literal["name", "labels", "annotations"], Any]
    spec: Cluster


def validate(resources: Sequence[Resource]) -> None:
    """Raises `ValueError`, whose message names the field."""
    for resource in resources:
        if resource.get("kind") != "RayCluster":
            _validate(resource)
            continue
        spec = RayCluster.model_validate(resource).spec
        for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
            _validate({"apiVersion": "v1", "kind": "PodTemplate", "template": group.template})


def start_command(head: bool, params: dict[str, str]) -> list[str]:
    """What KubeRay makes of `rayStartParams`, without what it adds."""
    flags = [f"--{name}={value}" for name, value in sorted(params.items())]
    return ["ray", "start", *(["--head"] if head else ["--address=head:6379"]), "--block", *flags]


def _validate(resource: Resource) -> None:
    try:
        kubernetes_validate.validate(resource, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise ValueError(str(error)) from error
