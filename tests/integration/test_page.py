"""`holdfast ui` and `holdfast report` with a real server and a real browser."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import Progress
from tests.integration.servers import missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.harness import Place, Started

MARKED = "<img src=x onerror=document.title='pwned'>"


@contextmanager
def served(place: Place, directory: str) -> Iterator[str]:
    """The address that lets one in."""
    server = place.start(["ui", directory, "--json"])
    server.until(lambda: server.out.read_text().strip(), "it listens")
    try:
        yield json.loads(server.out.read_text())["url"]
    finally:
        server.popen.terminate()
        server.popen.wait(20)


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer; redirections are not followed."""

    class Stays(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.build_opener(Stays).open(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_the_server_lets_nobody_in_without_the_token_or_by_another_name(place: Place) -> None:
    place.run("tiny.py", "runs/one", steps=30).done()
    with served(place, "runs") as url:
        base, _, token = url.partition("/enter/")
        bearer = {"Authorization": f"Bearer {token}"}
        for path in ("/", "/api/runs", "/api/run?name=one", "/static/page.js"):
            assert get(base + path)[0] == 401
            assert get(base + path, Authorization="Bearer wrong")[0] == 401
            assert get(base + path, **bearer)[0] == 200
        assert get(f"{base}/enter/wrong")[0] == 403
        status, headers, _ = get(url)
        assert (status, headers["location"]) == (303, "/")
        assert "HttpOnly" in headers["set-cookie"]
        cookie = headers["set-cookie"].partition(";")[0]
        assert cookie == f"holdfast-{base.rpartition(':')[2]}={token}", (
            "servers on two ports share a browser's"
        )
        assert get(f"{base}/api/runs", Cookie=cookie)[0] == 200
        for host in ("evil.example:80", "127.0.0.1.evil.example:80", "evil.example"):
            assert get(f"{base}/api/runs", Host=host, **bearer)[0] == 400
        for host in ("localhost:9999", "[::1]:9999"):
            assert get(f"{base}/api/runs", Host=host, **bearer)[0] == 200, "as where ssh forwards a port"
        for path in (
            "/static/../view.py",
            "/static/%2e%2e%2fview.py",
            "/static/none",
            "/api/run?name=../one",
        ):
            assert get(base + path, **bearer)[0] == 404
        status, headers, body = get(f"{base}/api/run?name=one", **bearer)
        assert "default-src 'none'" in headers["content-security-policy"]
        found = json.loads(body)
        assert found["run"]["status"] == "done"
        assert {each["name"] for each in found["curves"]} >= {"loss", "steps_per_s"}
        assert found["checkpoints"][0]["status"] == "latest"
        assert [each["name"] for each in json.loads(get(f"{base}/api/runs", **bearer)[2])["runs"]] == ["one"]


def test_mistakes_are_told_in_one_line(place: Place) -> None:
    place.cli("ui", "none").one_clear_line(2, "none")
    place.cli("report", "none", "--out", "r.html").one_clear_line(2, "there is no run at")
    assert not (place.root / "r.html").exists()
    (place.root / "empty").mkdir()
    place.cli("ui", "empty", "--port", "99999").one_clear_line(2, "--port 99999")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        missing("Chromium and its driver are not installed: apt install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(binary)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(driver)))
    yield found
    found.quit()


def size(browser: Any, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def text(browser: Any) -> str:
    return str(browser.execute_script("return document.getElementById('page').innerText"))


def wait(browser: Any, words: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60, 0.1).until(lambda _: words in text(browser), f"{words!r} is not shown")


def assert_clean(browser: Any, base: str) -> None:
    """No errors, and nothing was asked of anybody else."""
    assert [each for each in browser.get_log("browser") if each["level"] == "SEVERE"] == []
    for each in browser.get_log("performance"):
        message = json.loads(each["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked = message["params"]["request"]["url"]
            assert asked.startswith((base, "data:", "about:", "chrome")), asked


def drawn(browser: Any) -> list[int]:
    """For each chart, how many of its pixels are not empty."""
    script = """
        const data = (one) => one.getContext('2d').getImageData(0, 0, one.width, one.height).data;
        const all = [...document.querySelectorAll('canvas')];
        return all.map((canvas) => data(canvas).filter(Boolean).length)"""
    return [int(count) for count in browser.execute_script(script)]


def test_a_report_is_one_file_that_shows_all_in_any_browser(
    place: Place, browser: Any, tmp_path: Path
) -> None:
    place.run("tiny.py", "runs/one", steps=60).done()
    assert (
        place.cli("report", "runs/one", "--out", "report.html").expect(0).stdout.startswith("report.html: ")
    )
    url = (place.root / "report.html").as_uri()
    browser.get("about:blank")
    browser.get_log("performance")
    for width, scheme in ((1280, "light"), (390, "dark")):
        size(browser, width, scheme)
        browser.get(url)
        wait(browser, "Checkpoints")
        shown = text(browser)
        for words in (
            "one",
            "done",
            "60 of 60",
            "loss",
            "Timeline",
            "latest",
            "state digest",
            "worker deaths",
        ):
            assert words in shown, words
        assert len(drawn(browser)) >= 2
        assert min(drawn(browser)) > 1000
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        browser.save_screenshot(str(tmp_path / f"report-{width}-{scheme}.png"))
    before = drawn(browser)
    browser.find_element("css selector", "button[aria-label='logarithmic scale for loss']").click()
    button = browser.switch_to.active_element
    assert button.get_attribute("aria-label") == "logarithmic scale for loss"
    assert button.get_attribute("aria-pressed") == "true"
    assert drawn(browser) != before
    browser.save_screenshot(str(tmp_path / "report-logarithmic.png"))
    assert_clean(browser, url)


def begun(place: Place) -> Started:
    progress = Progress(place.root / "progress")
    run = place.begin("tiny.py", "runs/one", steps=4000, settings={"delay_s": 0.01, "progress": progress})
    run.until(lambda: progress.steps > 20, "it trains")
    return run


def test_the_page_follows_a_run_while_it_trains(place: Place, browser: Any) -> None:
    run = begun(place)
    with served(place, "runs") as url:
        base = url.partition("/enter/")[0]
        size(browser, 1280, "light")
        browser.get_log("performance")
        browser.get(url)
        wait(browser, "Runs")
        browser.find_element("link text", "one").click()
        wait(browser, "running")
        wait(browser, "Timeline")
        first = browser.execute_script("return document.querySelector('progress').value")
        (worker, *_) = run.processes("worker")
        worker.kill()
        wait(browser, "and is replaced")
        assert browser.execute_script("return document.querySelector('progress').value") > first
        place.cli("stop", "runs/one").expect(0)
        run.wait()
        wait(browser, "interrupted")
        assert_clean(browser, base)
        assert browser.current_url == f"{base}/#run=one"


def test_what_a_run_says_is_text_on_the_page(place: Place, browser: Any) -> None:
    place.run("tiny.py", "runs/one", steps=20).done()
    (journal,) = (place.root / "runs/one/journal").glob("*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[-1:-1] = [{**lines[-1], "kind": "storage", "text": MARKED}]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.rename(place.root / "runs/one", place.root / "runs/b&amp;<b>")
    with served(place, str(place.root / "runs/b&amp;<b>")) as url:
        browser.get(url)
        wait(browser, MARKED)
        assert "pwned" not in browser.title
        assert browser.execute_script("return document.querySelectorAll('#page img').length") == 0
        assert browser.find_element("css selector", "h1").text == "b&amp;<b>"
