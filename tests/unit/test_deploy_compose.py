"""The Compose file: by the schema of the Compose specification, and what a node needs."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from tests.deploying import (
    CLOSE_S,
    DEPLOY,
    IMAGE,
    ROOT,
    document,
    least_and_most,
    lint,
    nbytes,
    option_values,
    pinned,
    text,
)
from workers.deadlines import LEAST_S, STORE_S

COMPOSE: dict[str, Any] = document("compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]
NODES = ("head", "worker")


def run_command() -> str:
    """How README.md starts a run in the head."""
    (line,) = [
        each for each in text("README.md").splitlines() if "docker compose exec head holdfast run" in each
    ]
    return line[line.index("holdfast run") :]


def seconds(duration: str) -> float:
    assert duration.endswith("s")
    return float(duration[:-1])


def test_it_is_what_the_specification_of_compose_allows() -> None:
    lint(
        "check-jsonschema",
        "check-jsonschema",
        "--builtin-schema=vendor.compose-spec",
        str(DEPLOY / "compose.yaml"),
    )


def test_its_images_are_holdfast_and_the_s3_server_that_the_tests_use() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images.pop("s3") == f"motoserver/moto:{pinned('moto')}"
    assert {*images.values()} == {IMAGE}


def test_the_image_is_built_from_the_dockerfile() -> None:
    (build,) = [service["build"] for service in SERVICES.values() if "build" in service]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert "scikit-learn" in build["args"]["PACKAGES"]  # which the example that README.md runs needs


def test_nothing_is_published_but_to_this_machine() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8265:8265"]


@pytest.mark.parametrize("node", NODES)
def test_nodes_authenticate_by_a_token_that_is_not_in_the_file(node: str) -> None:
    environment = SERVICES[node]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")


def test_a_worker_is_told_and_has_time_for_its_last_step_and_checkpoint() -> None:
    grace_s = option_values(run_command())["grace_period"]
    assert grace_s >= STORE_S + LEAST_S["gradient"]
    drain_s = float(SERVICES["worker"]["environment"]["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert drain_s >= grace_s + CLOSE_S
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > drain_s


def test_the_head_stops_the_run_before_it_goes() -> None:
    grace_s = option_values(run_command())["grace_period"]
    assert SERVICES["head"]["pre_stop"] == [{"command": ["stop-runs"]}]
    drain_s = float(SERVICES["head"]["environment"]["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert seconds(SERVICES["head"]["stop_grace_period"]) > grace_s + CLOSE_S + drain_s


def test_workers_join_the_head_once_it_answers_and_the_bucket_is_there() -> None:
    head, worker = SERVICES["head"], SERVICES["worker"]
    assert "--port=6379" in head["command"]
    assert "--address=head:6379" in worker["command"]
    assert head["healthcheck"]["test"][-1] == "head:6379"
    assert worker["depends_on"] == {"head": {"condition": "service_healthy"}}
    assert head["depends_on"] == {"bucket": {"condition": "service_completed_successfully"}}
    bucket = option_values(run_command())["run_dir"].split("/")[2]
    assert f"makedirs({bucket!r}, " in SERVICES["bucket"]["command"][-1]
    port = SERVICES["s3"]["command"][-1]
    assert all(SERVICES[node]["environment"]["AWS_ENDPOINT_URL"] == f"http://s3:{port}" for node in NODES)


def test_the_run_fits_into_the_cluster() -> None:
    (cpus,) = [int(word.split("=")[1]) for word in SERVICES["worker"]["command"] if "--num-cpus" in word]
    least, _ = least_and_most(run_command())
    assert least <= SERVICES["worker"]["deploy"]["replicas"] * cpus
    assert "--num-cpus=0" in SERVICES["head"]["command"]
    (store,) = [word.split("=")[1] for word in SERVICES["worker"]["command"] if "object-store" in word]
    assert nbytes(store) <= nbytes(SERVICES["worker"]["shm_size"]) / 4


@pytest.mark.parametrize("node", NODES)
def test_ray_is_what_the_init_of_the_image_passes_signals_to(node: str) -> None:
    assert "entrypoint" not in SERVICES[node]
    assert shlex.join(SERVICES[node]["command"]).startswith("ray start ")
    assert "--block" in SERVICES[node]["command"]
