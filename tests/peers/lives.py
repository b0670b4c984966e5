"""Run `anytune train` again and again in forked children that are killed, then let it end.

    python -m tests.peers.lives FOLDER KILLS SEED TRAIN-ARGUMENTS...

A process of its own that has imported everything, so that a life begins at once and 30 of them take seconds.
FOLDER holds a numbered run for each time that the command came to its end; {run} in the arguments stands for
it. Prints the number of lives that were cut short.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def life(arguments: list[str], log: Path) -> int:
    """Fork a child that runs the command with its output in `log`; -> its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        from anytune.cli.main import run

        code = run(["train", *arguments])
    finally:
        sys.stdout.flush()
        os._exit(code)


def killed(arguments: list[str], run: Path, rng: random.Random) -> bool:
    """Live once and be killed; False if the command ended by itself before. RuntimeError if it failed.

    One life in five dies while it starts, the others within a few steps (and saves) after they made progress.
    """
    metrics, log = run / "metrics.jsonl", run.with_suffix(".log")
    before, early = size(metrics), rng.random() < 0.2
    pid = life(arguments, log)
    deadline = time.monotonic() + (rng.uniform(0, 0.2) if early else 300)
    ended, status = os.waitpid(pid, os.WNOHANG)
    while not ended and time.monotonic() < deadline and size(metrics) <= before:
        time.sleep(0.002)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        time.sleep(0 if early else rng.uniform(0, 0.12))
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"exit code {code}: {log.read_text()[-2000:]}")
    return code != 0


def main() -> None:
    for name in ("cli.main", "engine.devices", "model.lora_trainee", "train.finetune", "text.build"):
        importlib.import_module(f"anytune.{name}")
    folder, kills, seed, arguments = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    rng, done, number = random.Random(seed), 0, 0
    while done < kills:
        run = folder / str(number)
        own = [a.replace("{run}", str(run)) for a in arguments]
        while killed(own, run, rng):
            done += 1
        number += 1
    print(done)


if __name__ == "__main__":
    main()
