"""A headless Chromium, and the studio's page in it as a person uses it."""

import contextlib
import time
from pathlib import Path

from tests.support.chromium_setup import found

SIZES = {"laptop": (1280, 800), "phone": (390, 844)}
PATIENCE = 120_000  # milliseconds: a shared machine is slow


@contextlib.contextmanager
def launched():
    """A browser. Raises what Playwright raises where there is none."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def page(browser, url: str, size: str = "laptop", **options):
    """A page at a size; what its console complains of fails the test when it is closed."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        base_url=url,
        has_touch=size == "phone",
        **{"service_workers": "block", **options},
    )
    made, trouble = context.new_page(), []
    made.set_default_timeout(PATIENCE)
    made.on("pageerror", lambda error: trouble.append(str(error)))
    made.on("console", lambda one: trouble.append(one.text) if "Content Security Policy" in one.text else None)
    try:
        yield made
        assert not trouble, trouble
    finally:
        context.close()


def upload(one, file: Path) -> None:
    """Choose a file on the Data page, and wait until its tokens are seen."""
    one.goto("/data")
    with one.expect_file_chooser() as chooser:
        one.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(file)
    one.wait_for_selector(".token.learned")


def start(one, steps: int, checkpoint: int = 2, **fields) -> str:
    """From a data set's page: train on it; returns the run's identifier."""
    one.get_by_role("link", name="Train on this").click()
    one.get_by_role("button", name="Quick look").click()
    chosen = {"Maximum steps": steps, "Longest example (-c)": 64, "Tokens per step (-b)": 64, **fields}
    for label, value in chosen.items():
        one.get_by_label(label, exact=True).fill(str(value))
    one.get_by_text("More", exact=True).click()
    one.get_by_label("Micro-batch, tokens (-ub)", exact=True).fill("64")
    one.get_by_label("Checkpoint every, steps", exact=True).fill(str(checkpoint))
    for number in (2, 3):
        one.get_by_label(f"Prompt {number}", exact=True).fill("")
    one.wait_for_selector(".dock .facts")
    one.get_by_role("button", name="Start training").click()
    one.wait_for_url("**/runs/*")
    return one.url.rsplit("/", 1)[-1]


def points(one, count: int) -> None:
    """Wait until the page of a run holds this many points."""
    one.wait_for_selector(f"[data-points='{count}']")


def until(one, expression: str) -> None:
    """Wait until an expression holds. (wait_for_function would evaluate it in the page, whose policy forbids that.)"""
    end = time.monotonic() + PATIENCE / 1000
    while not one.evaluate(expression):
        assert time.monotonic() < end, expression
        one.wait_for_timeout(50)
