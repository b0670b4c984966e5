"""Software Vulkan devices for the tests, where the system has none: python -m tests.support.webgpu_setup.

Mesa's lavapipe comes from the system's packages (apt, as root or through sudo); SwiftShader is taken out of Debian's
Chromium package into the virtual environment, without installing that. Exits with 1 and says what to do where no device
can be had; without SwiftShader its one test is skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("mesa-vulkan-drivers", "libvulkan1")
SWIFTSHADER = Path(sys.prefix) / "swiftshader"
FILES = ("libvk_swiftshader.so", "vk_swiftshader_icd.json")


def devices() -> int:
    """How many a fresh process sees: the loader looks for drivers once."""
    code = "from anytune.engine.webgpu.adapters import adapters; print(len(adapters()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else 0


def apt(*words: str) -> bool:
    sudo = [] if getattr(os, "geteuid", lambda: 1)() == 0 else ["sudo", "-n"]
    try:
        return subprocess.run([*sudo, "apt-get", "-qq", *words], stdout=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def lavapipe() -> bool:
    """Install it; False where this is not possible."""
    install = ("install", "-y", "--no-install-recommends", *PACKAGES)
    return bool(shutil.which("apt-get")) and (apt(*install) or (apt("update") and apt(*install)))


def swiftshader() -> bool:
    """Fetch it; False where this is not possible."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return False
    with tempfile.TemporaryDirectory(prefix="swiftshader-") as folder:
        for package in ("chromium-common", "chromium"):  # where it is depends on the release
            try:
                subprocess.run(
                    ["apt-get", "-qq", "download", package],
                    cwd=folder,
                    check=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                subprocess.run(
                    ["dpkg-deb", "-x", str(next(Path(folder).glob(f"{package}_*.deb"))), f"{folder}/out"], check=True
                )
            except (subprocess.CalledProcessError, StopIteration, OSError):
                continue
            found = [path for name in FILES for path in Path(folder, "out").rglob(name)]
            if len(found) == len(FILES):
                SWIFTSHADER.mkdir(parents=True, exist_ok=True)
                for path in found:
                    shutil.copy(path, SWIFTSHADER / path.name)
                return True
    return False


def main() -> int:
    if not devices() and not (lavapipe() and devices()):
        print(
            "The tests of --device webgpu need a Vulkan, Metal or DX12 driver, and none could be installed here. On "
            f"Debian or Ubuntu: apt-get install {' '.join(PACKAGES)}. To test without: make test VULKAN=no",
            file=sys.stderr,
        )
        return 1
    if not (SWIFTSHADER / FILES[1]).exists() and not swiftshader():
        print("SwiftShader, a second software device, could not be fetched: its test will be skipped.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
