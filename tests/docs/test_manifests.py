"""The Kubernetes manifests in the docs are valid, and have what bgpool needs.

The linter has the schemas of the Kubernetes versions in its package; it needs no network.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from bgpool.settings import Settings
from tests.docs.pages import PAGES, ROOT, blocks

pytestmark = pytest.mark.once

kubernetes_validate: Any = pytest.importorskip("kubernetes_validate")
yaml: Any = pytest.importorskip("yaml")

MANIFESTS = sorted((ROOT / "docs/examples/kubernetes").glob("*.yaml"))
#: A version that many clusters still run, and the newest version that the linter supports.
VERSIONS = ["1.29", kubernetes_validate.latest_version()]

manifest_of = pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def wrong_with(document: dict[str, Any], version: str) -> str:
    """Return the first error of *document* by the schema of *version*, or of unknown fields; empty if it is valid."""
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(str(part) for part in error.path)}: {error.message}"
    return ""


DEPLOYMENTS = [document for path in MANIFESTS for document in documents(path) if document["kind"] == "Deployment"]


def test_the_docs_have_a_deployment() -> None:
    assert DEPLOYMENTS


@manifest_of
@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(path: Path, version: str) -> None:
    for document in documents(path):
        assert not wrong_with(document, version), document["kind"]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("spec.template.spec.containers.0", "envs", []),
        ("spec.template.spec.containers.0.readinessProbe.httpGet", "port", None),
        ("spec.template.spec.volumes.0.emptyDir", "sizeLimit", [16]),
        ("spec", "replicas", "many"),
    ],
)
def test_an_invalid_field_is_found(part: str, name: str, value: object) -> None:
    document = copy.deepcopy(DEPLOYMENTS[0])
    place: Any = document
    for step in part.split("."):
        place = place[int(step) if step.isdecimal() else step]
    place[name] = value
    assert wrong_with(document, VERSIONS[-1])


def test_pods_in_the_pages_are_valid() -> None:
    """A block may be the ``spec`` of a pod alone, as in docs/servers.md."""
    found = [(page, block) for page in PAGES for block in blocks(page, "yaml")]
    assert found
    for _, block in found:
        for document in yaml.safe_load_all(block.text):
            whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **document}
            for container in [*whole["spec"].get("containers", []), *whole["spec"].get("initContainers", [])]:
                container.setdefault("image", "busybox")
            assert not wrong_with(whole, VERSIONS[-1]), block.place


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["metadata"]["name"])
def test_deployments_have_what_bgpool_needs(deployment: dict[str, Any]) -> None:
    """Each pod has its own run directory in memory, secrets come from Secrets, and the grace period is long enough."""
    pod = deployment["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    (web,) = pod["containers"]
    env = {item["name"]: item for item in web["env"]}

    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in web["volumeMounts"]}
    assert mounts[env["BGPOOL_RUN_DIR"]["value"]]["emptyDir"]["medium"] == "Memory"
    for name in ("DATABASE_URL", "BGPOOL_FLEET", "BGPOOL_FLEET_KEY"):
        assert env[name]["valueFrom"]["secretKeyRef"]["key"] == name

    sleep, seconds = web["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + Settings().bg_connect_timeout_ms / 1000 + 5
    assert pod["securityContext"]["runAsNonRoot"]
    assert web["securityContext"]["readOnlyRootFilesystem"]
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_no_secret_is_in_a_manifest() -> None:
    for path in MANIFESTS:
        assert "Secret" not in {document["kind"] for document in documents(path)}
        assert not re.search(r"://\w+:\w+@", path.read_text(encoding="utf-8"))
