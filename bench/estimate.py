"""The estimate of memory against the measured peak of the whole process, for several settings.

    python bench/estimate.py

Each setting runs in a process of its own (bench/steps.py: two whole optimizer steps).
"""

from __future__ import annotations

from pathlib import Path

import common

SETTINGS = (  # shape (examples x tokens), rank, --memory
    ("1x64", 16, None),
    ("4x128", 16, None),
    ("1x512", 16, None),
    ("2x512", 16, None),
    ("1x512", 64, None),
    ("4x128", 16, "600MiB"),
    ("4x128", 16, "400MiB"),
    ("4x128", 16, "300MiB"),
    ("1x128", 8, "250MiB"),
)

args = common.parser(__doc__, rounds=1).parse_args()
before = common.machine()
model = str(common.model_file(args.model))
rows = []
for shape, rank, memory in SETTINGS:
    command = ["bench/steps.py", model, "--shape", shape, "--rank", str(rank), "--threads", str(args.threads)]
    command += ["--turns", "2", "--warmup", "0", *(["--memory", memory] if memory else [])]
    runs = [common.run_once(command, common.environment(args.threads)) for _ in range(args.rounds)]
    if "refused" in runs[0]:
        rows.append({"shape": shape, "rank": rank, "memory": memory, "refused": runs[0]["refused"]})
        continue
    peak, guess = common.median(r["peak_rss_mib"] for r in runs), runs[0]["estimate_mib"]
    rows.append(
        {
            "shape": shape,
            "rank": rank,
            "memory": memory,
            "peak_rss_mib": peak,
            "estimate_mib": guess,
            "error_percent": round(100 * (guess / peak - 1), 1),
            "held": runs[0]["estimate_text"],
            "tokens_per_s": runs[0]["rounds"][-1]["tokens_per_s"],
        }
    )
common.save(
    "estimate",
    args,
    before,
    model=Path(model).stem,
    threads=args.threads,
    worst_error_percent=max(abs(r["error_percent"]) for r in rows if "refused" not in r),
    settings=rows,
)
