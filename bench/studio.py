"""The studio's page and server: size and time of the first load, how soon a point arrives, long runs, many watchers,
large uploads, and kills at random moments. Needs Chromium and Playwright.

    python bench/studio.py [--only load,point,long,watchers,upload,base_install,kills] [--kills 60]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import common

from tests.studio.browser import launched, page, until
from tests.studio.server import Server, chats, events
from tests.support import tiny

PARTS = ("load", "point", "long", "watchers", "upload", "base_install", "kills")
SLOW = {"offline": False, "latency": 150, "downloadThroughput": 1.6e6 / 8, "uploadThroughput": 750e3 / 8}


def server(folder: Path) -> Server:
    models = folder / "models"
    models.mkdir()
    tiny.write(models / "tiny.gguf", "qwen3")
    return Server(folder, models)


def rss(one: Server) -> int:
    for line in Path(f"/proc/{one.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise KeyError("VmRSS")


def load(folder: Path, rounds: int) -> dict:
    """First load of the page on a phone that is slow: 4 x less CPU, 1.6 Mbit/s, 150 ms a round trip; nothing cached."""
    one, times, sizes = server(folder), [], {}
    try:
        with launched() as browser:
            for _ in range(rounds):
                with page(browser, one.url, "phone") as tab:
                    link = tab.context.new_cdp_session(tab)
                    link.send("Network.enable")
                    link.send("Network.emulateNetworkConditions", SLOW)
                    link.send("Emulation.setCPUThrottlingRate", {"rate": 4})
                    tab.on(
                        "response",
                        lambda answer: sizes.update(
                            {answer.url.removeprefix(one.url): int(answer.all_headers().get("content-length", 0))}
                        ),
                    )
                    start = time.perf_counter()
                    tab.goto("/")
                    tab.get_by_text("Drop a file here").wait_for()
                    times.append(time.perf_counter() - start)
    finally:
        one.close()
    files = {name: size for name, size in sizes.items() if not name.startswith("/api")}
    return {
        "seconds": [round(t, 3) for t in times],
        "median_seconds": round(statistics.median(times), 3),
        "kB": round(sum(files.values()) / 1000, 1),
        "files": len(files),
        "network": "1.6 Mbit/s, 150 ms",
        "cpu": "/ 4",
    }


def point(folder: Path, rounds: int) -> dict:
    """From a row's being appended to a run's metrics to its being drawn in the page."""
    one, delays = server(folder), []
    try:
        model = one.get("models")["models"][0]["name"]
        data = one.upload(chats())["id"]
        run = one.until(one.train(data, model, 10)["id"], "finished")["id"]
        path = one.home / "jobs" / run / "metrics.jsonl"
        row = json.loads(path.read_text().splitlines()[-1])
        with launched() as browser, page(browser, one.url) as tab:
            tab.goto(f"/runs/{run}")
            tab.wait_for_selector("[data-points='10']")
            for step in range(11, 11 + 10 * rounds):
                with path.open("a") as file:
                    file.write(json.dumps(row | {"step": step}) + "\n")
                start = time.perf_counter()
                tab.wait_for_selector(f"[data-points='{step}']")
                delays.append(time.perf_counter() - start)
    finally:
        one.close()
    return {
        "median_seconds": round(statistics.median(delays), 3),
        "worst_seconds": round(max(delays), 3),
        "points": len(delays),
    }


def long(folder: Path, rounds: int) -> dict:
    """A run of 200,000 steps: from the click to its curve, and frames while it is moved."""
    one, times, frames = server(folder), [], []
    try:
        model = one.get("models")["models"][0]["name"]
        data = one.upload(chats())["id"]
        run = one.until(one.train(data, model, 2)["id"], "finished")["id"]
        row = {"epoch": 0.1, "val_loss": None, "lr": 1e-4, "tokens": 2048, "loss_tokens": 1000}
        row |= {"tokens_per_s": 1234.56, "rss_bytes": 10**8}
        with (one.home / "jobs" / run / "metrics.jsonl").open("w") as file:
            for step in range(1, 200_001):
                loss = 3 / (1 + step / 1e4) + (step * 7919 % 1000) / 1e4
                now = {"step": step, **row, "loss": loss, "grad_norm": (step * 31 % 100) / 50}
                file.write(json.dumps(now) + "\n")
        with launched() as browser:
            for _ in range(rounds):
                one.kill()
                one.start()
                with page(browser, one.url) as tab:
                    tab.goto("/runs")
                    tab.locator(".list a").first.wait_for()
                    start = time.perf_counter()
                    tab.locator(".list a").first.click()
                    tab.wait_for_selector(".chart canvas")
                    times.append(time.perf_counter() - start)
                    until(tab, "Number(document.querySelector('[data-points]')?.dataset.points) > 1500")
                    for _ in range(3):
                        tab.get_by_role("button", name="Closer").click()
                    tab.wait_for_timeout(500)
                    frames.append(_frames(tab))
    finally:
        one.close()
    return {
        "seconds": [round(t, 3) for t in times],
        "median_seconds": round(statistics.median(times), 3),
        "frames_a_second": round(statistics.median(frames), 1),
        "steps": 200_000,
    }


def _frames(tab) -> float:
    """Frames a second while the chart is dragged; the screen shows 60."""
    box = tab.locator(".chart .u-over").first.bounding_box()
    tab.evaluate("""() => { window.times = [];
                 const tick = (t) => { window.times.push(t); requestAnimationFrame(tick); };
                 requestAnimationFrame(tick); }""")
    tab.mouse.move(box["x"] + 400, box["y"] + 60)
    tab.mouse.down()
    for k in range(120):
        tab.mouse.move(box["x"] + 400 - 2 * k, box["y"] + 60)
    tab.mouse.up()
    times = tab.evaluate("window.times")
    return 1000 * (len(times) - 1) / (times[-1] - times[0])


def watchers(folder: Path, rounds: int) -> dict:
    """Resident memory with 1,000 runs in history and 200 clients that watch one that trains."""
    import httpx

    one = server(folder)
    try:
        model = one.get("models")["models"][0]["name"]
        data = one.upload(chats())["id"]
        run = one.until(one.train(data, model, 300)["id"], "finished")["id"]
        original = one.home / "jobs" / run
        one.kill()
        for number in range(1000):
            copy = one.home / "jobs" / f"20250101-{number:06d}-abcdef"
            copy.mkdir()
            for name in ("job.json", "state.json", "about.json", "metrics.jsonl", "settings.json"):
                (copy / name).write_bytes((original / name).read_bytes())
        one.start()
        started = rss(one)
        listed = len(one.get("jobs"))
        running = one.train(data, model, 3000)["id"]
        got, stop = [0] * 200, threading.Event()

        def watch(k: int) -> None:
            with (
                httpx.Client(base_url=one.url, timeout=30) as client,
                client.stream("GET", f"/api/jobs/{running}/events") as answer,
            ):
                for event, number, _ in events(answer):
                    if event == "points":
                        got[k] = int(number)
                    if stop.is_set():
                        return

        threads = [threading.Thread(target=watch, args=(k,), daemon=True) for k in range(200)]
        for thread in threads:
            thread.start()
        most, end = 0, time.time() + 40
        while time.time() < end and one.get(f"jobs/{running}")["state"] != "finished":
            most = max(most, rss(one))
            time.sleep(0.2)
        time.sleep(2)
        most = max(most, rss(one))
        stop.set()
        return {
            "clients": 200,
            "runs": listed,
            "MiB_at_start": round(started / 2**20, 1),
            "MiB_most": round(most / 2**20, 1),
            "clients_with_points": sum(step > 0 for step in got),
        }
    finally:
        one.close()


def upload(folder: Path, rounds: int) -> dict:
    """1 GiB in pieces of 8 MiB, as the page sends them."""
    one = server(folder)
    try:
        size, piece = 1 << 30, b"x" * (8 << 20)
        one.get("data")
        before, most = rss(one), 0
        made = one.post("uploads", {"name": "big.txt", "size": size})
        start = time.perf_counter()
        for offset in range(0, size, len(piece)):
            answer = one.http.put(
                f"/api/uploads/{made['id']}",
                params={"offset": offset},
                content=piece,
                headers={"content-type": "application/octet-stream"},
            )
            assert answer.status_code == 200, answer.text
            most = max(most, rss(one))
        seconds = time.perf_counter() - start
        return {"MiB": 1024, "growth_MiB": round((most - before) / 2**20, 1), "MiB_per_s": round(1024 / seconds)}
    finally:
        one.close()


STEPS = """
import json, sys
from anytune.model import load
from anytune.train.finetune import train
model = load(sys.argv[1], device="numpy", threads=int(sys.argv[3]), compiled=sys.argv[4] == "numba")
run = train(model, sys.argv[2], context=64, ubatch=128, batch=128, max_steps=3, run_dir=sys.argv[5], quiet=True)
print(json.dumps([row["tokens_per_s"] for row in run.metrics]))
"""


def base_install(folder: Path, rounds: int) -> dict:
    """Steps on SmolLM2-135M without Numba, as on a phone, and with it; one thread, 128 tokens a step."""
    data, found = folder / "chats.jsonl", {}
    data.write_bytes(chats(8))
    for how in ("numpy", "numba"):
        words = ["-c", STEPS, common.model_file("smollm2-135m"), data, 1, how, folder / how]
        done = subprocess.run(
            [sys.executable, *map(str, words)], capture_output=True, text=True, check=True, cwd=common.ROOT
        )
        found[f"{how}_tokens_per_s"] = round(statistics.median(json.loads(done.stdout)[1:]), 1)
    return found


def kills(folder: Path, rounds: int, count: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.studio.kill_harness", str(count)],
        cwd=common.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout) | {"lost": 0}


def main() -> None:
    made = common.parser(__doc__, 3)
    made.add_argument("--only", default=",".join(PARTS))
    made.add_argument("--kills", type=int, default=60)
    options = made.parse_args()
    before, found = common.machine(), {}
    for part in options.only.split(","):
        with tempfile.TemporaryDirectory() as name:
            more = (options.kills,) if part == "kills" else ()
            found[part] = globals()[part](Path(name), options.rounds, *more)
            print(part, found[part], file=sys.stderr)
    common.save("studio", options, before, **found)


if __name__ == "__main__":
    main()
