"""A studio killed at random moments, and jobs whose processes end without a word: nothing acknowledged is lost."""

import json
import os
import signal
import time

import pytest

from tests.studio.kill_harness import harness
from tests.studio.server import Server, chats


@pytest.fixture
def own(models, tmp_path):
    server = Server(tmp_path, models)
    server.model = server.get("models")["models"][0]["name"]
    yield server
    server.close()


def test_nothing_that_was_acknowledged_is_lost(models, tmp_path):
    done = harness(tmp_path, 5, seed=3)
    assert done["acknowledged"] > 20


def test_a_run_whose_process_is_killed_says_so_and_goes_on(own):
    data = own.upload(chats())["id"]
    run = own.train(data, own.model, 200)["id"]
    while own.get(f"jobs/{run}")["step"] < 20:
        time.sleep(0.02)
    pid = json.loads((own.home / "jobs" / run / "state.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    own_until = own.home / "jobs" / run / "state.json"
    while json.loads(own_until.read_text())["state"] != "crashed":
        time.sleep(0.05)
    row = own.get(f"jobs/{run}")
    assert row["state"] == "crashed" and "memory ran out" in row["message"]
    own.post(f"jobs/{run}/resume")
    own.until(run, "finished")
    steps = own.get(f"jobs/{run}/series", points=500)["columns"]["step"]
    assert steps == list(range(1, 201))


def test_the_queue_survives_the_studio_and_its_index(own):
    data = own.upload(chats())["id"]
    first, second = (own.train(data, own.model, 30, name=name)["id"] for name in ("one", "two"))
    own.kill()
    (own.home / "studio.sqlite").unlink()
    own.start()
    for run in (first, second):
        own.until(run, "finished")
    assert [row["name"] for row in own.get("jobs", kind="train")] == ["two", "one"]


def test_a_base_that_was_moved_is_said_with_what_to_do(own, models):
    data = own.upload(chats())["id"]
    run = own.train(data, own.model, 400)["id"]
    while own.get(f"jobs/{run}")["step"] < 5:
        time.sleep(0.02)
    own.post(f"jobs/{run}/pause")
    own.until(run, "paused")
    file, away = models / "tiny.gguf", models / "away"
    file.rename(away)
    try:
        own.post(f"jobs/{run}/resume")
        while (row := own.get(f"jobs/{run}"))["state"] != "failed":
            time.sleep(0.05)
        assert "not where it was" in row["message"] and "/" not in row["message"]
    finally:
        away.rename(file)
    own.post(f"jobs/{run}/resume")
    while own.get(f"jobs/{run}")["step"] < 10:
        time.sleep(0.02)
    own.post(f"jobs/{run}/cancel")


def test_two_studios_do_not_share_a_folder(own):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "anytune", "studio", "--home", str(own.home), "--port", "0", "--no-browser"],
        capture_output=True,
        text=True,
        env=own.environment,
    )
    assert done.returncode == 2 and "Another studio" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_and_runs_go_on(own, number):
    data = own.upload(chats())["id"]
    run = own.train(data, own.model, 150)["id"]
    with own.http.stream("GET", f"/api/jobs/{run}/events") as answer:
        next(answer.iter_lines())
        own.process.send_signal(number)
        assert own.process.wait(20) == 0
    folder = own.home / "jobs" / run
    while json.loads((folder / "state.json").read_text())["state"] in ("queued", "running"):
        time.sleep(0.05)
    if json.loads((folder / "state.json").read_text())["state"] == "finished":
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 150
    own.start()
