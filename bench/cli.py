"""Run `anytune …` as a person would, from outside: its time, its peak memory, the metrics of its run."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import common


def train(args: list, folder: Path, env: dict[str, str]) -> dict[str, Any]:
    """`anytune train ARGS --run-dir FOLDER` in a process of its own; folder must not exist yet.

    Returns seconds (of the whole process), peak_rss_mib (of the whole process, as the system counted it for the
    parent), rows (metrics.jsonl) and written (when metrics.jsonl was last written, seconds after the start).
    """
    command = common.anytune("train", *args, "--run-dir", folder)
    log = folder.with_suffix(".txt")
    with open(log, "wb") as output:
        started = time.time()
        process = subprocess.Popen(
            command, env=env, cwd=common.ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _, code, usage = os.wait4(process.pid, 0)
        seconds = time.time() - started
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"anytune train ended with exit code {process.returncode}:\n{log.read_text('utf-8')[-3000:]}")
    metrics = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    return {
        "seconds": round(seconds, 2),
        "peak_rss_mib": round(usage.ru_maxrss * 1024 / common.MIB, 1),
        "rows": rows,
        "written": metrics.stat().st_mtime - started,
    }


def speed(rows: list[dict[str, Any]], skip: int = 1) -> float:
    """Median tokens/s over the steps after the first `skip` (they fill caches and buffers)."""
    return common.median(row["tokens_per_s"] for row in rows[skip:])
