"""One executable file for Linux, x86-64 and aarch64: built by PEX from wheels, tried in an empty environment, weighed.

    python bench/onefile.py [--emulator PYTHON]

The file for aarch64 is put together here from that platform's wheels. It is tried where this machine is one, or with
--emulator, a command that runs an aarch64 Python 3.11 (its children too).
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import common

from tests.support import tiny

DIST = common.ROOT / "dist"
MACHINES = ("x86_64", "aarch64")
PYTHON = "3.11"
CHAT = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}\n'


def build(machine: str) -> Path:
    """dist/anytune-linux-MACHINE.pex: anytune with Numba, in a virtual environment that it makes at its first start."""
    wheel = max(DIST.glob("anytune-*.whl"), key=os.path.getmtime)
    made = DIST / f"anytune-linux-{machine}.pex"
    numbers = PYTHON.replace(".", "")
    subprocess.run(
        [
            *(sys.executable, "-m", "pex", f"anytune[fast] @ {wheel.as_uri()}", "-c", "anytune", "--venv", "prepend"),
            *("--platform", f"manylinux_2_28_{machine}-cp-{PYTHON}.0-cp{numbers}", "--python-shebang"),
            *(f"/usr/bin/env python{PYTHON}", "--only-binary", ":all:", "-o", str(made)),
        ],
        check=True,
    )
    return made


def tried(pex: Path, start: list[str]) -> list[str]:
    """Commands that ran with nothing but the file, a model and data; a failure ends this script."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tiny.write(place / "m.gguf", "llama")
        (place / "chats.jsonl").write_text(CHAT)
        shutil.copy(pex, place / "anytune.pex")
        ran = []
        for command in (
            "--version",
            "train -m m.gguf -f chats.jsonl --max-steps 1 -t 1 -o a.gguf",
            "generate -m m.gguf --lora a.gguf -p hi -n 4 -t 1",
            "bench -m m.gguf --device numpy -t 1 -p 8 -n 4 --train 0 -r 3",
        ):
            clean = {"PATH": os.environ["PATH"], "HOME": folder, "LANG": "C.UTF-8"}
            subprocess.run([*start, "./anytune.pex", *command.split()], cwd=place, env=clean, check=True)
            ran.append(f"./anytune.pex {command}")
    return ran


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--emulator", help="what runs an aarch64 Python here")
    options.add_argument("--no-save", action="store_true", help="print only; leave bench/results alone")
    args, before = options.parse_args(), common.machine()
    subprocess.run([sys.executable, "-m", "build", "--wheel", str(common.ROOT)], check=True, stdout=subprocess.DEVNULL)
    files = []
    for machine in MACHINES:
        made, here = build(machine), platform.machine() == machine
        emulated = args.emulator if machine == "aarch64" and not here else None
        ran = tried(made, shlex.split(emulated) if emulated else []) if here or emulated else []
        files.append(
            {
                "file": made.name,
                "mib": round(made.stat().st_size / common.MIB, 1),
                "tried": ran,
                "emulated": emulated is not None,
            }
        )
    common.save("onefile", args, before, python=PYTHON, glibc="2.28", files=files)


if __name__ == "__main__":
    main()
