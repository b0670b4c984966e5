"""Several processes that find each other by gloo on this machine's cores, and what they train: a tiny random model."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import tiny

ROOT = Path(__file__).parents[2]
WORDS = "the cat sat on a warm stone in the sun and then it went to see the other cat".split()
JOB = {
    "context": 96,
    "ubatch": 96,
    "batch": 288,
    "epochs": 3,
    "lr": 5e-3,
    "val_split": 0.2,
    "quiet": True,
    "assistant_loss_only": True,
    "checkpoint_save_steps": 5,
    "keep_checkpoints": 9,
}
SAME = ("step", "epoch", "lr", "tokens", "loss_tokens")
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by Linux's /proc")


def write_inputs(folder: Path, name: str = "qwen3", **meta) -> None:
    """A tiny model of quantized blocks and chats for 12 steps of one to three micro-batches."""
    rng = random.Random(0)
    tiny.write(folder / "model.gguf", name, type="Q8_0", **meta)
    rows = [
        {
            "messages": [
                {"role": "user", "content": " ".join(rng.choices(WORDS, k=4))},
                {"role": "assistant", "content": " ".join(WORDS[: rng.randint(3, 8)])},
            ]
        }
        for _ in range(24)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def places(rank: int, size: int, port: int) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "PYTHONPATH": path,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def start(command: list[str], folder: Path, size: int = 2) -> list[subprocess.Popen]:
    """The command in `size` processes that are to find each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env=places(rank, size, port),
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """(exit code, what it said) of each."""
    try:
        said = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, out + err) for process, (out, err) in zip(processes, said)]


def together(name: str, folder: Path, size: int = 2, module: str = "tests.train.test_process_group") -> list[dict]:
    """What a function of a test module returned in each process."""
    ends = finish(start([module, name, str(folder)], folder, size))
    assert all(code == 0 for code, _ in ends), ends
    return [json.loads(text.splitlines()[-1]) for _, text in ends]


def line(folder: Path, run: str, *more: str) -> list[str]:
    """A training's command line, which takes long enough to be interrupted."""
    return [
        "anytune",
        "train",
        "-m",
        str(folder / "model.gguf"),
        "-f",
        str(folder / "chats.jsonl"),
        "-c",
        "96",
        "-ub",
        "96",
        "-b",
        "288",
        "--num-epochs",
        "2000",
        "--assistant-loss-only",
        "--checkpoint-save-steps",
        "3",
        "--device",
        "cpu-torch",
        "--run-dir",
        run,
        *more,
    ]


def until(path: Path, rows: int, seconds: float = 40) -> None:
    """Wait for so many lines of metrics."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.read_text().count("\n") >= rows:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come to {rows} lines")


def child(parent: int, rank: int) -> int:
    """The process of this rank among the children of --gpus."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError("it is gone")


def train(folder: Path, name: str, **changes):
    import anytune
    from anytune.train.finetune import train as run

    what = {} if "full" in changes or "lora" in changes else {"lora": anytune.Lora(rank=4, dropout=0.05)}
    return run(
        folder / "model.gguf",
        folder / "chats.jsonl",
        run_dir=str(folder / name),
        **{"device": "cpu-torch", **JOB, **what, **changes},
    )


def rows(run: Path) -> list[dict]:
    return [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
