"""One executable file for Linux, x86-64 and aarch64: built by PEX from wheels, tried in an empty folder, weighed.

    python bench/onefile.py                                 # both files; tries the one of this machine
    python bench/onefile.py --only aarch64 --emulator qemu-aarch64-static --root ROOT   # tries the other, too

A file is anytune with Numba and llama.cpp, and makes a virtual environment at its first start. The one for the other
machine is put together here from that machine's wheels. ROOT is a folder with its system in it (its loader, its C
library, its Python), for an emulator of user programs; proot carries the emulator on to the processes that it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import common
from packaging import tags

from tests.support import tiny

DIST = common.ROOT / "dist"
MACHINES = ("x86_64", "aarch64")
CHAT = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}\n'
STEP = "train -m m.gguf -f chats.jsonl --max-steps 1 -t 1 -o a.gguf"
NATIVE = (
    "--version",
    STEP,
    "verify -m m.gguf --lora a.gguf --exact",
    "generate -m m.gguf --lora a.gguf -p hi -n 4 -t 1",
    "bench -m m.gguf --device numpy -t 1 -p 8 -n 4 --train 0 -r 3",
    "doctor -t 1",  # last: it compiles every kernel
)
EMULATED = NATIVE[:3]  # each takes minutes there: Numba compiles for the emulated processor

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--python", default="3.11", help="the Python that the files are for, such as 3.12")
options.add_argument("--only", choices=MACHINES, help="build and try this one; the other stays in the result")
options.add_argument("--emulator", metavar="QEMU", help="what runs aarch64 programs here, through proot")
options.add_argument("--root", type=Path, help="a folder with an aarch64 system, with that Python in it")
options.add_argument("--no-save", action="store_true", help="print only; leave bench/results alone")


def target(machine: str, python: str) -> dict:
    """PEX's description of a Linux with glibc 2.28 or newer and this CPython: markers, and its tags of wheels."""
    version = tuple(map(int, python.split(".")))
    abi = f"cp{version[0]}{version[1]}"
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(28, 16, -1)]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    found = [*tags.cpython_tags(version, [abi], platforms), *tags.compatible_tags(version, abi, platforms)]
    markers = {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    return {"marker_environment": markers, "compatible_tags": list(map(str, found))}


def build(machine: str, python: str, wanted: str = "fast,verify") -> Path:
    """dist/anytune-linux-MACHINE.pex, of the newest wheel there."""
    wheel = max(DIST.glob("anytune-*.whl"), key=os.path.getmtime)
    made = DIST / f"anytune-linux-{machine}.pex"
    subprocess.run(
        [
            *(sys.executable, "-m", "pex", f"anytune[{wanted}] @ {wheel.as_uri()}", "-c", "anytune"),
            *("--venv", "prepend", "--use-pip-config", "--no-build", "-o", str(made)),
            *("--complete-platform", json.dumps(target(machine, python))),
            *("--python-shebang", f"/usr/bin/env python{python}"),
        ],
        check=True,
    )
    return made


def tried(pex: Path, commands: tuple[str, ...], start: list[str], path: str) -> Iterator[dict]:
    """Commands that ran with nothing but the file, a model and data, each when it has; a failure ends this script.
    start: what comes before the file, {here} standing for the folder; path: PATH there."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tiny.write(place / "m.gguf", "llama")
        (place / "chats.jsonl").write_text(CHAT)
        shutil.copy(pex, place / "anytune.pex")
        for command in commands:
            begun = time.perf_counter()
            clean = {"PATH": path, "HOME": folder, "LANG": "C.UTF-8"}
            words = [*(word.replace("{here}", folder) for word in start), "./anytune.pex", *command.split()]
            subprocess.run(words, cwd=place, env=clean, check=True)
            yield {"command": f"./anytune.pex {command}", "seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    args, before = options.parse_args(), common.machine()
    if (args.emulator is None) != (args.root is None):
        options.error("--emulator and --root belong together")
    subprocess.run([sys.executable, "-m", "build", "--wheel", str(common.ROOT)], check=True, stdout=subprocess.DEVNULL)
    kept = common.RESULTS / "onefile.json"
    files = {file["machine"]: file for file in json.loads(kept.read_text())["files"]} if kept.exists() else {}
    for machine in [args.only] if args.only else MACHINES:
        made, here = build(machine, args.python), platform.machine() == machine
        emulated = machine == "aarch64" and not here and args.emulator is not None
        size = round(made.stat().st_size / common.MIB, 1)
        files[machine] = {"file": made.name, "machine": machine, "mib": size, "tried": [], "emulated": emulated}
        inside = ["-b", "/tmp", "-b", "/proc", "-b", "/dev", "-w", "{here}"]
        start = ["proot", "-q", *shlex.split(args.emulator), "-R", str(args.root), *inside] if emulated else []
        ran = tried(made, NATIVE if here else EMULATED, start, os.environ["PATH"] if here else "/usr/bin:/bin")
        for command in ran if here or emulated else [None]:  # saved after each: an emulator may not be waited for
            files[machine]["tried"] += [command] if command else []
            common.save("onefile", args, before, python=args.python, glibc="2.28", files=list(files.values()))


if __name__ == "__main__":
    main()
