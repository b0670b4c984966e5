"""Icarus Verilog, the second simulator of the hardware tests: python -m tests.support.icarus_setup.

It comes from the system's packages (apt, as root or through sudo). Exits with 1 and says what to do where it cannot be
had.
"""

from __future__ import annotations

import shutil
import sys

from tests.support.webgpu_setup import apt


def main() -> int:
    install = ("install", "-y", "--no-install-recommends", "iverilog")
    if not shutil.which("iverilog") and shutil.which("apt-get") and not apt(*install):
        apt("update") and apt(*install)
    if shutil.which("iverilog"):
        return 0
    print(
        "The tests of the hardware cores need Icarus Verilog, which could not be installed. On Debian or Ubuntu: "
        "apt-get install iverilog. To test without: make test ICARUS=no",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
