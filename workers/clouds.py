"""Notices of the clouds that this machine is about to be taken away, from their metadata services.

Asked for by the environment variable HOLDFAST_NOTICES: `aws`, `gcp` or `azure`. Nothing is asked otherwise:
where there is no such service, asking would be noise on the network. HOLDFAST_NOTICES_URL leads to another
server than the cloud's own, for tests.

Sources: Amazon EC2 User Guide, "Spot Instance interruption notices" (two minutes' notice, IMDSv2); Google
Compute Engine, "Handle preemption" (30 seconds); Microsoft Azure, "Scheduled Events" (at least 30 seconds for
Spot VMs).
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from storage.errors import ConfigurationError
from workers.notice import send_notice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAMES = "HOLDFAST_NOTICES"
URL = "HOLDFAST_NOTICES_URL"
POLL_S = 2.0
ANSWER_S = 2.0
MAX_NBYTES = 1 << 20
GCP_LEFT_S = 30.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by way of a proxy


@dataclass(frozen=True, slots=True)
class CloudNotice:
    """What a cloud says: in words, and how many seconds are left (None: it does not say)."""

    reason: str
    seconds_left: float | None


def watch_clouds(address: str) -> None:
    """Have the agent at `address` told once of a notice of the cloud that HOLDFAST_NOTICES names.

    Raises ConfigurationError for a cloud that is not known.
    """
    look = look_of(os.environ)
    if look is None:
        return

    def watch() -> None:
        while (notice := look(time.time())) is None:
            time.sleep(POLL_S)
        send_notice(address, notice.reason, notice.seconds_left)

    threading.Thread(target=watch, name="cloud-notices", daemon=True).start()


def look_of(environment: Mapping[str, str]) -> Callable[[float], CloudNotice | None] | None:
    """`look_at` the cloud that an environment names; None if it names none."""
    name = environment.get(NAMES)
    return look_at(name, environment.get(URL)) if name else None


def look_at(name: str, url: str | None = None) -> Callable[[float], CloudNotice | None]:
    """A function of the time (seconds since 1970) that asks a cloud for its notice; None if there is none."""
    if name not in _CLOUDS:
        raise ConfigurationError(f"{NAMES}={name}: give one of {', '.join(_CLOUDS)}")
    ask, home = _CLOUDS[name]

    def look(now: float) -> CloudNotice | None:
        try:
            return ask((url or home).rstrip("/"), now)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # no answer, or none that makes sense: there may be one the next time

    return look


def _aws(url: str, now: float) -> CloudNotice | None:
    token = _ask(f"{url}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "300"}, method="PUT")
    headers = {"X-aws-ec2-metadata-token": token or ""}
    text = _ask(f"{url}/latest/meta-data/spot/instance-action", headers)
    if text is None:
        return None
    action = json.loads(text)
    at = datetime.fromisoformat(action["time"]).timestamp()
    return CloudNotice(
        f"EC2 will {action['action']} this spot instance at {action['time']}", max(0.0, at - now)
    )


def _gcp(url: str, now: float) -> CloudNotice | None:
    text = _ask(f"{url}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    if text is None or text.strip() != "TRUE":
        return None
    return CloudNotice("Compute Engine preempts this instance", GCP_LEFT_S)


def _azure(url: str, now: float) -> CloudNotice | None:
    headers = {"Metadata": "true"}
    mine = _ask(f"{url}/metadata/instance/compute/name?api-version=2021-02-01&format=text", headers)
    text = _ask(f"{url}/metadata/scheduledevents?api-version=2020-07-01", headers)
    for event in json.loads(text or "{}").get("Events", ()):
        if event["EventType"] not in ("Preempt", "Terminate") or mine not in event["Resources"]:
            continue
        left_s = None
        if event.get("NotBefore"):
            at = parsedate_to_datetime(event["NotBefore"])
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            left_s = max(0.0, at.timestamp() - now)
        return CloudNotice(f"Azure says that this machine is to {event['EventType'].lower()}", left_s)
    return None


def _ask(url: str, headers: Mapping[str, str], method: str = "GET") -> str | None:
    """The text of an answer; None where there is nothing there."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with _DIRECT.open(request, timeout=ANSWER_S) as answer:
            return str(answer.read(MAX_NBYTES).decode())
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            return None
        raise


_CLOUDS: dict[str, tuple[Callable[[str, float], CloudNotice | None], str]] = {
    "aws": (_aws, "http://169.254.169.254"),
    "gcp": (_gcp, "http://metadata.google.internal"),
    "azure": (_azure, "http://169.254.169.254"),
}
