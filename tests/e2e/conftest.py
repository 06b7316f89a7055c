"""One cluster and one S3 server serve all end-to-end tests."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.submitting import Submitting
from tests.integration import servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.harness import Place


@pytest.fixture(scope="session")
def submitting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitting]:
    """A cluster with job server and token, and buckets on an S3 server whose secret is a canary."""
    root = tmp_path_factory.mktemp("e2e")
    with servers.s3(root) as (aws, new_url):
        aws |= {"AWS_SECRET_ACCESS_KEY": f"canary-{secrets.token_hex(12)}"}
        cluster = Cluster(root, aws)
        try:
            cluster.start()
            yield Submitting(cluster, aws, new_url)
        finally:
            cluster.close()


@pytest.fixture
def user(place: Place, submitting: Submitting) -> Iterator[Submitting]:
    """What a user does with it, in a place of this test's own; the cluster is as it was afterwards."""
    submitting.place = place
    place.env = {
        **place.env,
        **{key: submitting.cluster.env[key] for key in (*submitting.names, *submitting.auth)},
    }
    yield submitting
    submitting.tidy()
