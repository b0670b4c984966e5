"""A Chromium for the tests of the studio's page, where the system has none: python -m tests.support.chromium_setup.

It comes from the system's packages (apt, as root or through sudo), else from Playwright's own download. Exits with 1
and says what to do where none can be had.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from tests.support.webgpu_setup import apt

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def found() -> str | None:
    """The program, or None: what Playwright fetched, or nothing."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def launches() -> bool:
    code = (
        "from tests.studio.browser import launched\nwith launched() as browser:\n"
        "    browser.new_page().set_content('<p>x</p>')"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def main() -> int:
    if launches():
        return 0
    install = ("install", "-y", "--no-install-recommends", "chromium")
    if shutil.which("apt-get") and (apt(*install) or (apt("update") and apt(*install))) and launches():
        return 0
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)
    if launches():
        return 0
    print(
        "The tests of the studio's page need Chromium, and none could be installed here. On Debian or Ubuntu: "
        "apt-get install chromium. To test without: make test CHROMIUM=no",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
