"""What every benchmark shares: the machine, child processes that take turns, medians, and the result file.

A benchmark starts each contestant in a process of its own, lets them take turns (A B A B …, so that a change of
the machine's load meets both), and writes bench/results/NAME.json with all rounds, their medians, the machine,
the versions, the command and the date. Tables in the docs are made from these files by bench/table.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
ROOT = BENCH.parent
sys.path.insert(0, str(ROOT))  # the working tree, whether or not it is installed
MIB = 1 << 20
PACKAGES = ("anytune", "numpy", "numba", "torch", "transformers", "peft", "xllamacpp", "tokenizers", "gguf", "wgpu")


# ---- the machine -----------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    from anytune.benchmark.machine import machine as found

    return found()


def versions() -> dict[str, str]:
    from anytune.benchmark.machine import versions as found

    return found(PACKAGES)


def commit() -> str | None:
    """The commit that was measured, with a + if files differ from it."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "anytune")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


# ---- one process's own figures (called inside the children) ------------------------------------------------


def status(field: str) -> int:
    """A field of /proc/self/status in bytes (VmHWM: the peak of the resident set; VmRSS: now)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def bytes_read() -> int:
    """Bytes that this process has asked the system to read so far (page cache included)."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise KeyError("rchar")


class Peak:
    """Peak resident memory of this process: of the whole of it, and since mark()."""

    def __init__(self):
        self.before = 0

    def mark(self) -> None:
        self.before = max(self.before, status("VmHWM"))
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass  # not permitted: then both figures are the whole process's

    def figures(self) -> dict[str, float]:
        now = status("VmHWM")
        return {"peak_rss_mib": round(max(now, self.before) / MIB, 1), "peak_rss_steps_mib": round(now / MIB, 1)}


# ---- children ----------------------------------------------------------------------------------------------


def environment(threads: int, **more: str) -> dict[str, str]:
    """The surroundings of a contestant: so many threads for whatever library it uses."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **{name: str(threads) for name in names}, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}


def anytune(*words: object) -> list[str]:
    """The command line of `anytune WORDS…` with this tree's package, for subprocess in ROOT or with environment()."""
    return [sys.executable, "-m", "anytune", *map(str, words)]


class Child:
    """A contestant: says it is ready, does one round for every line it is sent, reports at the end.

    Its side of the talk is `serve`. Each answer is one line of JSON.
    """

    def __init__(self, name: str, command: list[str], env: dict[str, str]):
        self.name = name
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, *command], env=env, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.ready = self._answer()
        self.ready["seconds_to_ready"] = round(time.perf_counter() - self.started, 2)

    def _answer(self) -> dict[str, Any]:
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}; its message is above")

    def turn(self) -> dict[str, Any]:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> dict[str, Any]:
        self.process.stdin.close()
        last = self._answer()
        self.process.wait()
        return last


def serve(ready: dict[str, Any], turn, end) -> None:
    """The child's side: turn() -> dict for each line of stdin, end() -> dict after the last."""
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), flush=True)
    print(json.dumps(end()), flush=True)


def take_turns(children: list[Child], rounds: int, pause: float = 0.25) -> list[list[dict[str, Any]]]:
    """rounds × children results, in the order A B, A B …; a short pause lets the other's threads fall asleep."""
    results = []
    for _ in range(rounds):
        row = []
        for child in children:
            time.sleep(pause)
            row.append(child.turn())
        results.append(row)
    return results


def run(command: list[str], env: dict[str, str], limit: float) -> None:
    """Run a script whose output nobody reads."""
    subprocess.run([sys.executable, *command], env=env, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=limit, check=True)


def run_once(command: list[str], env: dict[str, str], limit: float | None = None) -> dict[str, Any]:
    """Run a script that prints JSON lines, for at most `limit` seconds; returns the last."""
    try:
        done = subprocess.run(
            [sys.executable, *command], env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, timeout=limit
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{shlex.join(command)} took more than {limit:.0f} seconds") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{shlex.join(command)} ended with exit code {done.returncode}: {done.stdout[-2000:]}")
    return json.loads(lines[-1])


# ---- results -----------------------------------------------------------------------------------------------


def median(values) -> float:
    return statistics.median(values)


def rounded(value: float, digits: int = 3) -> float:
    """To so many significant digits: results are read by people."""
    return float(f"{value:.{digits}g}") if value else 0.0


def saving(text: str) -> argparse.ArgumentParser:
    """The options of a benchmark that chooses its own models: what `save` asks for."""
    made = argparse.ArgumentParser(description=text.strip().splitlines()[0])
    made.add_argument("--no-save", action="store_true", help="print only; leave bench/results alone")
    return made


def steps_parser(text: str, device: str, shape: str) -> argparse.ArgumentParser:
    """The options of a contestant that trains: steps of one shape on one device."""
    made = argparse.ArgumentParser(description=text.strip().splitlines()[0])
    made.add_argument("model")
    made.add_argument("--device", default=device)
    made.add_argument("--shape", default=shape, help="of a micro-batch: examples x tokens of each")
    return made


def parser(text: str, rounds: int = 7) -> argparse.ArgumentParser:
    made = saving(text)
    made.add_argument("-m", "--model", default="smollm2-135m", help="a GGUF file or a name that `anytune pull` knows")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--rounds", type=int, default=rounds)
    return made


def model_file(name: str) -> Path:
    if Path(name).is_file():
        return Path(name).resolve()
    from anytune.hub.pull import pull

    return pull(name)


def save(
    name: str, options: argparse.Namespace, before: dict[str, Any], into: str = "", quiet: bool = False, **result: Any
) -> None:
    """Write bench/results/NAME.json, or INTO.json (and print it, unless quiet, as of a part of the rows). before:
    machine(), taken before the run."""
    data = {
        "benchmark": name,
        "command": command(name),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": before,
        "versions": versions(),
        **result,
    }
    text = json.dumps(data, indent=1)
    if not quiet:
        print(text)
    if not options.no_save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{into or name}.json").write_text(text + "\n")


def command(name: str) -> str:
    """The command line of this run of bench/NAME.py."""
    return shlex.join(["python", f"bench/{name}.py", *_without_paths(sys.argv[1:])])


def _without_paths(args: list[str]) -> list[str]:
    """Arguments as another person would give them: a path becomes its file name."""
    return [Path(arg).name if os.sep in arg and Path(arg).exists() else arg for arg in args]


def serve_rounds(rounds: int, turn, end) -> None:
    """A child alone: so many turns, then one line {"rounds": […], …end()}."""
    print(json.dumps({"rounds": [turn() for _ in range(rounds)], **end()}), flush=True)
