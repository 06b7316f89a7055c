"""The manifests for Kubernetes, against KubeRay's schemas and against what Holdfast needs of a pod."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cli import EXIT_CODES
from storage.errors import ConfigurationError
from tests.deploying import (
    CLOSE_S,
    IMAGE,
    check,
    custom_resource,
    document,
    documents,
    least_and_most,
    nbytes,
    option_values,
    pinned,
    strict,
    text,
)
from workers.deadlines import LEAST_S, STORE_S

RAYJOB: dict[str, Any] = document("k8s/rayjob.yaml")
CLUSTER: dict[str, Any] = RAYJOB["spec"]["rayClusterSpec"]
WORKERS: dict[str, Any] = CLUSTER["workerGroupSpecs"][0]
JOB: dict[str, Any] = document("k8s/one-node.yaml")
NETWORK: dict[str, Any] = document("k8s/network.yaml")
BUDGETS: dict[str, Any] = {each["metadata"]["name"]: each for each in documents("k8s/disruption.yaml")}

TEMPLATES: dict[str, Any] = {
    "submitter": RAYJOB["spec"]["submitterPodTemplate"],
    "head": CLUSTER["headGroupSpec"]["template"],
    "worker": WORKERS["template"],
    "single": JOB["spec"]["template"],
}
AT_WORK = ("worker", "single")
"""Pods in which workers compute, so that the state is in their memory."""

TEXT = {"type": "string"}
LABELS = {"type": "object", "additionalProperties": TEXT}
SELECTOR = {"type": "object", "properties": {"matchLabels": LABELS}, "required": ["matchLabels"]}
RULE = {
    "type": "object",
    "required": ["action"],
    "properties": {
        "action": {"enum": ["Ignore", "FailJob", "FailIndex", "Count"]},
        "onExitCodes": {
            "type": "object",
            "required": ["operator", "values"],
            "properties": {
                "containerName": TEXT,
                "operator": {"enum": ["In", "NotIn"]},
                "values": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "uniqueItems": True},
            },
        },
        "onPodConditions": {
            "type": "array",
            "items": {"type": "object", "properties": {"type": TEXT, "status": TEXT}, "required": ["type"]},
        },
    },
    "oneOf": [{"required": ["onExitCodes"]}, {"required": ["onPodConditions"]}],
}
SPECS: dict[str, dict[str, Any]] = {
    "PodDisruptionBudget": {"minAvailable": {"type": "integer", "minimum": 0}, "selector": SELECTOR},
    "NetworkPolicy": {
        "podSelector": SELECTOR,
        "policyTypes": {"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
        "ingress": {"type": "array"},
    },
    "Job": {
        "backoffLimit": {"type": "integer", "minimum": 0},
        "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
        "podFailurePolicy": {"type": "object", "properties": {"rules": {"type": "array", "items": RULE}}},
        "template": {"type": "object"},
    },
}
"""What is used of the specifications of Kubernetes' own kinds."""


def container(name: str) -> dict[str, Any]:
    (only,) = TEMPLATES[name]["spec"]["containers"]
    return dict(only)


def environment(name: str) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(name).get("env", [])}


def labels(name: str) -> dict[str, str]:
    return dict(TEMPLATES[name]["metadata"]["labels"])


def selected(selector: dict[str, Any]) -> set[str]:
    """The pods that a selector selects."""
    wanted = selector["matchLabels"].items()
    return {name for name in TEMPLATES if wanted <= labels(name).items()}


def single_command() -> str:
    return " ".join(container("single")["args"])


def test_the_rayjob_is_what_kuberay_accepts() -> None:
    check(RAYJOB, custom_resource("rayjobs"), "rayjob.yaml")


def test_the_strict_schema_refuses_what_kubernetes_would_ignore() -> None:
    worker = {**WORKERS, "template": {"spec": {**WORKERS["template"]["spec"], "terminationGracePeriod": 420}}}
    spec = {**RAYJOB["spec"], "rayClusterSpec": {**CLUSTER, "workerGroupSpecs": [worker]}}
    with pytest.raises(AssertionError, match="'terminationGracePeriod' was unexpected"):
        check({**RAYJOB, "spec": spec}, custom_resource("rayjobs"), "rayjob.yaml")


def test_the_jobs_pod_is_what_kubernetes_accepts() -> None:
    spec = custom_resource("rayjobs")["properties"]["spec"]["properties"]
    check(TEMPLATES["single"], spec["submitterPodTemplate"], "one-node.yaml")


def test_the_rules_of_the_network_are_what_kubernetes_accepts() -> None:
    spec = custom_resource("rayjobs")["properties"]["spec"]["properties"]
    rules = spec["rayClusterSpec"]["properties"]["networkPolicy"]["properties"]["head"]["properties"]
    check(NETWORK["spec"]["ingress"], rules["ingressRules"], "network.yaml")


@pytest.mark.parametrize("manifest", [JOB, NETWORK, *BUDGETS.values()], ids=lambda each: str(each["kind"]))
def test_kubernetes_own_kinds_have_no_field_that_is_not_known(manifest: dict[str, Any]) -> None:
    versions = {
        "Job": "batch/v1",
        "NetworkPolicy": "networking.k8s.io/v1",
        "PodDisruptionBudget": "policy/v1",
    }
    kind = manifest["kind"]
    named = {"type": "object", "properties": {"name": TEXT, "namespace": TEXT, "labels": LABELS}}
    properties = {
        "apiVersion": {"const": versions[kind]},
        "kind": TEXT,
        "metadata": named,
        "spec": {"type": "object", "properties": SPECS[kind]},
    }
    check(manifest, strict({"type": "object", "properties": properties}), kind)


def test_everything_is_applied_at_once_into_one_namespace() -> None:
    kustomization = document("k8s/kustomization.yaml")
    applied = {*kustomization["resources"]}
    assert applied == {"namespace.yaml", "network.yaml", "disruption.yaml", "rayjob.yaml"}
    namespace = document("k8s/namespace.yaml")["metadata"]["name"]
    assert kustomization["namespace"] == namespace
    for manifest in [RAYJOB, JOB, NETWORK, *BUDGETS.values()]:
        assert manifest["metadata"]["namespace"] == namespace


def test_every_container_runs_the_image_and_its_ray() -> None:
    assert {container(name)["image"] for name in TEMPLATES} == {IMAGE}
    assert CLUSTER["rayVersion"] == pinned("ray")


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_pod_passes_the_restricted_standard(name: str) -> None:
    pod, only = TEMPLATES[name]["spec"], container(name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod.get("volumes", []))
    assert all("hostPort" not in port for port in only.get("ports", []))
    if name != "head":  # whose service account KubeRay makes for the autoscaler
        assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", [*AT_WORK, "head"])
def test_shared_memory_is_a_memory_volume_that_the_containers_limit_holds(name: str) -> None:
    (volume,) = [each for each in TEMPLATES[name]["spec"]["volumes"] if each["name"] == "shm"]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container(name)["volumeMounts"]
    size, limit = (
        nbytes(volume["emptyDir"]["sizeLimit"]),
        nbytes(container(name)["resources"]["limits"]["memory"]),
    )
    assert size <= limit / 2
    if name != "single":
        group = WORKERS if name == "worker" else CLUSTER["headGroupSpec"]
        assert nbytes(group["rayStartParams"]["object-store-memory"]) <= size / 4


@pytest.mark.parametrize("name", AT_WORK)
def test_a_pod_that_computes_has_whole_cpus_and_memory_to_itself(name: str) -> None:
    resources = container(name)["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) >= 1


def test_the_fewest_workers_fit_into_the_smallest_cluster_and_the_most_into_the_largest() -> None:
    least, most = least_and_most(RAYJOB["spec"]["entrypoint"])
    cpus = int(container("worker")["resources"]["limits"]["cpu"])
    assert least <= WORKERS["minReplicas"] * cpus
    assert WORKERS["minReplicas"] <= WORKERS["replicas"] <= WORKERS["maxReplicas"]
    assert (WORKERS["maxReplicas"] - 1) * cpus < most <= WORKERS["maxReplicas"] * cpus
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert (
        option_values(RAYJOB["spec"]["entrypoint"])["autoscale"] is CLUSTER["enableInTreeAutoscaling"] is True
    )
    assert least_and_most(single_command())[1] <= int(container("single")["resources"]["limits"]["cpu"])


def test_a_worker_is_told_and_has_time_for_its_last_step_and_checkpoint() -> None:
    grace_s = option_values(RAYJOB["spec"]["entrypoint"])["grace_period"]
    assert grace_s >= STORE_S + LEAST_S["gradient"]
    drain_s = float(environment("worker")["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert drain_s >= grace_s + CLOSE_S
    assert TEMPLATES["worker"]["spec"]["terminationGracePeriodSeconds"] > drain_s
    assert "command" not in container(
        "worker"
    )  # or `ray start`, which drains, would not be the first process


def test_the_head_stops_the_run_before_it_goes() -> None:
    grace_s = option_values(RAYJOB["spec"]["entrypoint"])["grace_period"]
    assert container("head")["lifecycle"]["preStop"]["exec"]["command"] == ["stop-runs"]
    assert float(environment("head")["RAY_JOB_STOP_WAIT_TIME_S"]) >= grace_s + CLOSE_S
    drain_s = float(environment("head")["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert TEMPLATES["head"]["spec"]["terminationGracePeriodSeconds"] > grace_s + CLOSE_S + drain_s


def test_a_job_on_one_node_is_told_directly_and_has_the_time() -> None:
    grace_s = option_values(single_command())["grace_period"]
    assert grace_s >= STORE_S + LEAST_S["gradient"]
    assert TEMPLATES["single"]["spec"]["terminationGracePeriodSeconds"] > grace_s + CLOSE_S
    assert "command" not in container("single")  # or the image's init would be missing


def test_a_preempted_job_is_started_again_and_a_failed_one_is_not() -> None:
    assert JOB["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # as a policy for failures demands
    by_code = {
        code: rule["action"]
        for rule in JOB["spec"]["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {"values": []})["values"]
    }
    assert by_code == {
        EXIT_CODES["preempted"]: "Ignore",
        EXIT_CODES["failed"]: "FailJob",
        ConfigurationError.exit_code: "FailJob",
        EXIT_CODES["interrupted"]: "FailJob",  # `holdfast stop`
    }
    assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]} in JOB["spec"][
        "podFailurePolicy"
    ]["rules"]


def test_a_preempted_rayjob_gets_another_cluster_and_can_be_suspended() -> None:
    spec = RAYJOB["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["suspend"] is False
    assert spec["shutdownAfterJobFinishes"] is True  # which suspension demands
    for name in ("head", "worker"):
        assert TEMPLATES[name]["spec"]["restartPolicy"] == "Never"  # or an emptied Ray node would come back


def test_ray_authenticates_by_a_token_from_a_secret() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "holdfast-ray-token"}
    secret = "kubectl -n holdfast create secret generic holdfast-ray-token --from-literal=auth_token="
    assert secret in text("README.md")
    assert not [name for name in TEMPLATES if "RAY_AUTH_TOKEN" in environment(name)]


def test_workers_tolerate_spot_nodes_and_the_head_keeps_off_them() -> None:
    tolerated = {each["key"]: each for each in TEMPLATES["worker"]["spec"]["tolerations"]}
    assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= tolerated.keys()
    assert {each["effect"] for each in tolerated.values()} == {"NoSchedule"}
    assert TEMPLATES["single"]["spec"]["tolerations"] == TEMPLATES["worker"]["spec"]["tolerations"]
    assert "tolerations" not in TEMPLATES["head"]["spec"]
    affinity = TEMPLATES["head"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {each["operator"] for each in term["matchExpressions"]} <= {"NotIn", "DoesNotExist"}
    assert {each["key"] for each in term["matchExpressions"]} == {
        "cloud.google.com/gke-spot",
        "eks.amazonaws.com/capacityType",
        "karpenter.sh/capacity-type",
        "kubernetes.azure.com/scalesetpriority",
    }


def test_evictions_leave_a_worker_and_the_head() -> None:
    """For pods of an operator without scale, Kubernetes supports an integer minAvailable and nothing else."""
    specs = {name: each["spec"] for name, each in BUDGETS.items()}
    assert selected(specs["holdfast-workers"]["selector"]) == {"worker"}
    assert selected(specs["holdfast-head"]["selector"]) == {"head"}
    assert 1 <= specs["holdfast-workers"]["minAvailable"] < WORKERS["minReplicas"]
    assert specs["holdfast-head"]["minAvailable"] == 1


def test_the_network_lets_in_the_pods_of_the_run_and_the_operator_alone() -> None:
    spec = NETWORK["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert selected(spec["podSelector"]) == {*TEMPLATES}
    among, operator = spec["ingress"]
    assert [selected(each["podSelector"]) for each in among["from"]] == [{*TEMPLATES}]
    assert "ports" not in among  # nodes serve their sums on a port that the system chooses
    assert [port["port"] for port in operator["ports"]] == [8265]
    assert {port["containerPort"] for port in container("head")["ports"]} == {6379, 8265}
    for rule in spec["ingress"]:
        assert all({"podSelector"} <= each.keys() for each in rule["from"])


def test_the_job_file_is_where_the_command_looks_for_it_on_every_pod_that_loads_it() -> None:
    for name, command in (
        ("head", RAYJOB["spec"]["entrypoint"]),
        ("worker", RAYJOB["spec"]["entrypoint"]),
        ("single", single_command()),
    ):
        assert option_values(command)["target"] == "/job/train.py"
        assert {"name": "job", "mountPath": "/job", "readOnly": True} in container(name)["volumeMounts"]
        volumes = {each["name"]: each for each in TEMPLATES[name]["spec"]["volumes"]}
        assert volumes["job"] == {"name": "job", "configMap": {"name": "holdfast-job"}}
    assert "create configmap holdfast-job --from-file=train.py" in text("README.md")
