"""anytune train --gpus N: this process starts N of itself with torchrun's environment, and watches over them.

Process 0 writes to the terminal; what the others say is kept, and shown if one of them is the first to fail. A process
that dies takes the others with it within seconds. For several machines there is torchrun itself.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anytune.engine.probe import cores
from anytune.errors import UserError
from anytune.signals import handled
from anytune.distributed.failure import REPORT, launched
from anytune.distributed.environment import TORCHRUN

PATIENCE = 6.0  # seconds for the others to end by themselves once one has failed, or after a second Ctrl-C
PARTING = 60.0  # the same where one has ended well: all have done their work then


def check(count: int, device: str) -> str:
    """The device for `count` processes. Raises UserError if there are not as many."""
    if any(name in os.environ for name in ("RANK", "WORLD_SIZE")):
        raise UserError(
            "--gpus starts the processes itself: omit it under torchrun, otherwise unset RANK and WORLD_SIZE."
        )
    asked, device = device, device if device != "auto" else _best()
    kind, _, number = device.partition(":")
    if number:
        raise UserError(
            f"--gpus {count} uses the cards {kind}:0 to {kind}:{count - 1}: give --device {kind}, and select cards "
            "with CUDA_VISIBLE_DEVICES."
        )
    if kind in ("cuda", "rocm", "xpu", "mps"):
        from anytune.engine.torch.devices import _present, torch_module

        there, words = _present(torch_module(), kind)
    else:
        if asked == "auto":
            raise UserError(
                f"--gpus {count}: there is no GPU here that torch can use; processes on the CPU need "
                "--device cpu-torch or --device numpy."
            )
        there = cores()
        words = f"this machine has {there} cores"
    if count > there:
        raise UserError(f"--gpus {count} is more than available: {words}.")
    return device


def _best() -> str:
    from anytune.engine.devices import choose

    return choose()


def launch(args: Sequence[str], count: int, device: str, debug: bool = False) -> int:
    """Run `anytune ARGS`, the command first, in `count` processes -> the exit code."""
    with tempfile.TemporaryDirectory(prefix="anytune-process_group-") as folder:
        return _Family(list(args), count, device, Path(folder), debug).run()


class _Family:
    """The children: started, heard, ended."""

    def __init__(self, args: list[str], count: int, device: str, folder: Path, debug: bool):
        self.count, self.folder = count, folder
        self.signals: list[int] = []  # that this process was sent, and sent on
        self.children: list[subprocess.Popen] = []
        self.stdin, self.life = os.pipe()  # of the children; that this process lives (see follow_parent)
        self.ended: list[int] = []  # ranks, in the order in which they ended
        self.command = [sys.executable, "-m", "anytune", *args, "--device", device]
        self.common = {
            **os.environ,
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            REPORT: str(folder),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        if debug:
            self.common["ANYTUNE_DEBUG"] = "1"
        if sys.platform == "linux":
            self.common.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are here, whatever this machine calls itself
        if device in ("cpu-torch", "numpy", "cpu", "cpu-bf16", "fpga-sim"):
            self.common.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))

    def run(self) -> int:
        try:
            with handled(self._forward):
                for rank in range(self.count):
                    self.children.append(self._start(rank))
                self._watch()
        finally:
            for child in self.children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            os.close(self.stdin)
            os.close(self.life)
        return self._outcome()

    def _start(self, rank: int) -> subprocess.Popen:
        """A child in a session of its own, so that Ctrl-C reaches it once, from here."""
        env = self.common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if rank == 0:
            return subprocess.Popen(self.command, env=env, stdin=self.stdin, start_new_session=True)
        with open(self.folder / f"words-{rank}", "wb") as file:
            return subprocess.Popen(
                self.command, env=env, stdin=self.stdin, stdout=file, stderr=file, start_new_session=True
            )

    def _forward(self, number: int, _frame: Any) -> None:
        self.signals.append(number)
        for child in self.children:
            if child.poll() is None:
                child.send_signal(number)

    def _watch(self) -> None:
        """Until all have ended; once one has, the others get a little time: they come to their ends together."""
        until = None
        while len(self.ended) < self.count:
            for rank, child in enumerate(self.children):
                if rank not in self.ended and child.poll() is not None:
                    self.ended.append(rank)
                    end = time.monotonic() + (PATIENCE if child.returncode else PARTING)
                    until = end if until is None else min(until, end)
            if len(self.signals) > 1 and until is None:
                until = time.monotonic() + PATIENCE
            if until is not None and time.monotonic() > until:
                return
            time.sleep(0.05)

    def _outcome(self) -> int:
        """The exit code; says what process 0 could not say."""
        codes = [child.returncode for child in self.children]
        if len(self.signals) > 1:
            return 130
        stopped = {130, *(-number for number in self.signals)}  # by the signal itself where training had not begun
        failed = [rank for rank in self.ended if codes[rank] and codes[rank] not in stopped]
        # one that ended because another had gone leaves a word of it, and is not to blame
        guilty = [rank for rank in failed if not self._told("ended", rank)]
        guilty.sort(key=lambda rank: codes[rank] > 0)  # a signal before what it led to
        if not guilty and (self.signals or not failed):
            if not any(codes):
                return 0
            if self.signals and codes[0] != 130:
                self._say("interrupted")
            return 130 if self.signals or 130 in codes else 0
        if not guilty:
            self._say(self._told("ended", failed[0]))
            return abs(codes[failed[0]])
        first = guilty[0]
        code = codes[first]
        if first == 0 and code > 0:
            return code  # it said why
        kept = self._told("saved", 0)
        self._say(
            f"process {first} of {self.count} {_how(code)}{self._last_words(first)}; "
            + (
                f"the last checkpoint is {kept}: the same command with --resume-from auto continues from it."
                if kept
                else "there is no checkpoint yet."
            )
        )
        return code if code > 0 else 1

    def _told(self, name: str, rank: int) -> str:
        try:
            return (self.folder / f"{name}-{rank}").read_text("utf-8")
        except OSError:
            return ""

    def _last_words(self, rank: int) -> str:
        """The last sentence of a child's own, or the last line."""
        lines = [line.strip() for line in self._told("words", rank).splitlines() if line.strip()]
        own = [line for line in lines if line.startswith("anytune: ")]
        return f" ({(own or lines)[-1].removeprefix('anytune: ')[:500]})" if lines else ""

    def _say(self, text: str) -> None:
        sys.stderr.write(f"anytune: {text}\n")


def _how(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def is_child() -> bool:
    """Whether launch() started this process."""
    return launched() and all(name in os.environ for name in TORCHRUN)


def follow_parent() -> None:
    """Stop in good order when the process that started this one ends, however it ends: it holds the other end of this
    one's standard input, and writes nothing there."""

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="anytune-parent").start()
