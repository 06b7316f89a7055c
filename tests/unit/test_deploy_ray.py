"""The configurations of Ray's cluster launcher, by Ray's own schema and defaults."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.deploying import IMAGE, check, document, nbytes, strict, text

CLOUDS = ("aws", "gcp")
MEMORY = {"m7i.xlarge": "16g", "n2-standard-4": "16g"}
"""Of the machines that the configurations name."""


def configuration(cloud: str) -> dict[str, Any]:
    return dict(document(f"ray/{cloud}.yaml"))


def schema() -> Any:
    """The schema in the package of Ray, which is found without importing Ray."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())


def is_spot(node: dict[str, Any]) -> bool:
    """Whether a machine may be taken away, by the terms of either cloud."""
    return bool(
        node.get("InstanceMarketOptions") == {"MarketType": "spot"}
        or node.get("scheduling", {}).get("provisioningModel") == "SPOT"
    )


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_accepts_it(cloud: str) -> None:
    found = schema()
    del found["properties"]["provider"][
        "additionalProperties"
    ]  # so that a slip of the pen is found there too
    check(configuration(cloud), strict(found), f"{cloud}.yaml")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_head_is_on_demand_and_computes_nothing_and_the_workers_are_spot(cloud: str) -> None:
    types = configuration(cloud)["available_node_types"]
    assert configuration(cloud)["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    assert not is_spot(types["head"]["node_config"])
    assert is_spot(types["spot"]["node_config"])
    assert types["spot"]["min_workers"] >= 1
    assert types["spot"]["max_workers"] == configuration(cloud)["max_workers"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_each_node_asks_its_cloud_for_notices(cloud: str) -> None:
    assert f"--env=HOLDFAST_NOTICES={cloud}" in configuration(cloud)["docker"]["run_options"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_nodes_run_the_image_and_install_nothing_else(cloud: str) -> None:
    assert configuration(cloud)["docker"]["image"] == f"REGISTRY/{IMAGE}"
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert configuration(cloud)[commands] == []  # left out, they would be Ray's own


@pytest.mark.parametrize("cloud", CLOUDS)
def test_shared_memory_has_room_for_the_state_and_leaves_some_for_the_rest(cloud: str) -> None:
    (size,) = [
        option.removeprefix("--shm-size=")
        for option in configuration(cloud)["docker"]["run_options"]
        if option.startswith("--shm-size=")
    ]
    node = configuration(cloud)["available_node_types"]["spot"]["node_config"]
    memory = MEMORY[node["InstanceType" if cloud == "aws" else "machineType"]]
    assert nbytes(size) <= nbytes(memory) / 2
    stores = re.findall(r"--object-store-memory=(\d+)", text(f"ray/{cloud}.yaml"))
    assert len(stores) == 2
    assert all(nbytes(store) <= nbytes(size) / 16 for store in stores)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_dashboard_is_for_the_head_alone_and_the_token_comes_from_a_file(cloud: str) -> None:
    *_, start = configuration(cloud)["head_start_ray_commands"]
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start.split()
    *_, join = configuration(cloud)["worker_start_ray_commands"]
    assert "--port=6379" in start.split()
    assert "--address=$RAY_HEAD_IP:6379" in join.split()
    mounts = configuration(cloud)["file_mounts"]
    assert mounts["/home/holdfast/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_clouds_differ_in_nothing_but_what_is_theirs() -> None:
    aws, gcp = configuration("aws"), configuration("gcp")
    for each in (aws, gcp):
        del each["provider"]
        each["docker"] = {**each["docker"], "run_options": each["docker"]["run_options"][:-1]}
        each["available_node_types"] = {
            name: {key: value for key, value in kind.items() if key != "node_config"}
            for name, kind in each["available_node_types"].items()
        }
    assert aws == gcp
