"""The page in a real browser: the whole job by clicks; reloads, broken networks and killed studios lose nothing."""

import json
import time

import pytest

from tests.studio.browser import PATIENCE, launched, page, points, start, until, upload
from tests.studio.server import Server, chats
from tests.support.models import smollm2
from tests.support.require import need

PAGES = ("/data", "/train", "/runs", "/adapters", "/compare", "/evaluate", "/models", "/docs")


@pytest.fixture(scope="module")
def browser():
    need("playwright")
    with launched() as made:
        yield made


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pirate.jsonl"
    path.write_bytes(chats(2))
    return path


@pytest.fixture
def own(models, tmp_path):
    """A studio that may be killed."""
    server = Server(tmp_path, models)
    yield server
    server.close()


@pytest.mark.parametrize("size", ["laptop", "phone"])
def test_the_whole_job_by_clicks_alone(browser, file, tmp_path, size):
    """From an upload to an adapter that llama.cpp has proven, on SmolLM2."""
    need("xllamacpp")
    server = Server(tmp_path, smollm2().parent)
    try:
        with page(browser, server.url, size, color_scheme="dark" if size == "phone" else "light") as one:
            one.goto("/models")
            one.locator("li", has_text="smollm2-135m").get_by_role("link", name="Train").click()
            upload(one, file)
            assert "of 12" in one.get_by_role("navigation", name="Examples").inner_text()
            run = start(one, 3, 3)
            one.wait_for_selector(".state.finished")
            points(one, 3)
            one.get_by_text("Hardest tokens").wait_for()
            assert one.locator(".heat0, .heat1, .heat2, .heat3, .heat4").count() > 5
            one.get_by_role("link", name="Its adapter").click()
            one.get_by_role("button", name="Verify in llama.cpp").click()
            one.get_by_text("verified in llama.cpp").wait_for()
            one.get_by_role("link", name="Try it").click()
            one.get_by_label("Prompt", exact=True).fill("Say hello.")
            one.get_by_label("Maximum tokens", exact=True).fill("4")
            one.get_by_role("button", name="Ask", exact=True).click()
            one.get_by_role("button", name="B is best").click()
            one.get_by_text("Tally of 1 votes").wait_for()
            assert "KL to base 0" in one.get_by_label("Answer A", exact=True).inner_text()
            one.goto(f"/adapters/{run}")
            one.get_by_label("Name", exact=True).fill("mine")
            one.get_by_role("button", name="Export").click()
            with one.expect_download() as download:
                one.get_by_role("link", name="mine.gguf").click()
            assert download.value.path().read_bytes()[:4] == b"GGUF"
            width = one.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert width <= 0, "the page is wider than the screen"
    finally:
        server.close()


def test_a_run_loses_no_point_by_reloads_back_tabs_and_broken_networks(browser, own, file):
    with page(browser, own.url) as one:
        upload(one, file)
        run = start(one, 60)
        one.reload()
        one.wait_for_selector("[data-points]")
        one.context.set_offline(True)
        second = one.context.new_page()
        time.sleep(1)
        one.context.set_offline(False)
        second.goto(f"/runs/{run}")
        one.goto("/runs")
        one.go_back()
        one.wait_for_selector(".state.finished")
        for tab in (one, second):
            points(tab, 60)
        assert len(own.get(f"jobs/{run}/series")["columns"]["step"]) == 60


def test_a_studio_that_is_killed_loses_nothing_and_the_page_waits_for_it(browser, own, file):
    with page(browser, own.url) as one:
        upload(one, file)
        run = start(one, 80, 5)
        one.wait_for_selector("[data-points]:not([data-points='0'])")
        one.get_by_label("Note", exact=True).fill("what I thought of it")
        one.get_by_label("Note", exact=True).blur()
        while own.get(f"jobs/{run}")["note"] != "what I thought of it":
            time.sleep(0.05)
        port = own.url.rsplit(":", 1)[1]
        own.kill()
        one.get_by_text("The studio does not answer").wait_for()
        own.options = (*own.options, "--port", port)
        own.start()
        one.wait_for_selector(".state.finished")
        points(one, 80)
        assert own.get(f"jobs/{run}")["note"] == "what I thought of it"


def test_pause_cancel_and_resume_from_the_page(browser, own, file):
    with page(browser, own.url) as one:
        upload(one, file)
        run = start(one, 6000, 500)
        one.wait_for_selector("[data-points]:not([data-points='0'])")
        one.get_by_role("button", name="Pause").click()
        one.wait_for_selector(".state.paused")
        paused = own.get(f"jobs/{run}")["step"]
        assert 0 < paused < 6000
        one.get_by_role("button", name="Resume").click()
        while own.get(f"jobs/{run}")["step"] <= paused:
            time.sleep(0.05)
        one.get_by_role("button", name="Cancel").click()
        one.get_by_role("button", name="Cancel it?").click()
        one.wait_for_selector(".state.cancelled")
        steps = own.get(f"jobs/{run}/series", points=5000)["columns"]["step"]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) < 6000


def test_an_example_is_edited_and_nothing_learned_says_why(browser, studio, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"messages": [{"role": "user", "content": "only a question"}]}\n')
    good = tmp_path / "good.jsonl"
    good.write_bytes(chats(1) + b"not json\n")
    with page(browser, studio.url) as one:
        one.goto("/data")
        with one.expect_file_chooser() as chooser:
            one.get_by_role("button", name="Choose a file").click()
        chooser.value.set_files(bad)
        one.get_by_text("Nothing can be learned from this.").wait_for()
        assert one.get_by_role("link", name="Train on this").get_attribute("aria-disabled") == "true"
        upload(one, good)
        assert "Line 7" in one.locator(".problems").inner_text()
        one.get_by_role("button", name="Remove them").click()
        one.locator(".problems").wait_for(state="detached")
        one.get_by_role("button", name="Edit").first.click()
        one.get_by_label("The example's line", exact=True).fill(
            json.dumps(
                {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a text of its own"}]}
            )
        )
        one.get_by_role("button", name="Save as a new version").click()
        one.locator("option", has_text="3: 1 changed").wait_for(state="attached")
        until(one, "document.querySelector('.tokens')?.innerText.includes('own')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_accessibility_fault(browser, studio, data, scheme):
    axe = need("axe_playwright_python.sync_playwright").Axe()
    run = studio.until(studio.train(data, studio.model, 2)["id"], "finished")["id"]
    with page(browser, studio.url, "phone" if scheme == "dark" else "laptop", color_scheme=scheme) as one:
        for place in (*PAGES, f"/data/{data}", f"/runs/{run}", f"/adapters/{run}", f"/compare?runs={run}"):
            one.goto(place)
            one.wait_for_selector("h1")
            one.wait_for_load_state("networkidle" if place == "/docs" else "load")
            until(one, "!document.querySelector('[aria-busy=true]')")
            found = [
                f"{place}: {fault['id']}: {fault['nodes'][0]['html'][:200]}"
                for fault in axe.run(one).response["violations"]
                if fault["impact"] in ("serious", "critical")
            ]
            assert not found, found


def test_the_keyboard_reaches_everything(browser, studio, data):
    with page(browser, studio.url) as one:
        one.goto("/data")
        one.get_by_role("link", name="chats.jsonl").first.wait_for()
        one.keyboard.press("Tab")
        assert one.evaluate("document.activeElement.className") == "skip"
        for _ in range(40):
            one.keyboard.press("Tab")
            if one.evaluate("document.activeElement.innerText").startswith("chats.jsonl"):
                break
        one.keyboard.press("Enter")
        one.wait_for_url("**/data/*")
        one.go_back()
        one.wait_for_url("**/data")


def test_the_page_opens_without_the_studio_and_says_so(browser, own):
    with page(browser, own.url, service_workers="allow") as one:
        one.goto("/")
        one.evaluate("navigator.serviceWorker.ready.then(() => 1)")
        until(one, "caches.keys().then((names) => names.length)")
        manifest = one.evaluate("fetch('/manifest.webmanifest').then((answer) => answer.json())")
        assert {"192x192", "512x512"} <= {icon["sizes"] for icon in manifest["icons"]}
        own.kill()
        one.goto("/runs", timeout=PATIENCE)
        one.get_by_text("The studio does not answer").first.wait_for()


def test_the_first_load_is_small(browser, studio):
    sizes = {}
    with page(browser, studio.url) as one:
        one.on(
            "response",
            lambda answer: sizes.update(
                {answer.url.removeprefix(studio.url): int(answer.all_headers().get("content-length", 0))}
            ),
        )
        one.goto("/")
        one.get_by_text("Drop a file here").wait_for()
    files = {name: size for name, size in sizes.items() if not name.startswith("/api")}
    assert 20_000 < sum(files.values()) <= 60_000, files
    assert len(files) > 10
