"""The suite's core on a 64-bit ARM processor, emulated: what passes, and the same training beside this machine's.

    python bench/aarch64.py --python PYTHON

PYTHON runs an aarch64 interpreter that sees the wheels of pyproject.toml's dependencies with Numba, pytest, hypothesis
and gguf: on x86-64 a script of two lines around qemu-aarch64-static, on an ARM machine its own interpreter. Speed under
emulation says nothing about a processor, so none is kept but the seconds that the run took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import common

CORE = (
    "tests/gguf/test_blocks.py",
    "tests/gguf/test_reader.py",
    "tests/engine/test_conformance.py",
    "tests/model/test_model.py",
    "tests/model/test_trainee.py",
    "tests/train/test_trainer.py",
    "tests/text/test_tokenizer.py",
    "tests/text/test_packing.py",
)
STEPS, TOKENS = 3, 64
TRAIN = """
import json, sys
import anytune, numpy as np
from anytune.benchmark.cases import Test
from anytune.benchmark.work import Training
model = anytune.load(sys.argv[1], device="numpy", threads=1)
work, losses = Training(model, Test(kind="train", examples=1, tokens=int(sys.argv[3]))), []
for _ in range(int(sys.argv[2])):
    work.take()
    losses.append(work.mean_loss())
import platform
print(json.dumps({"losses": losses, "machine": platform.machine(), "compiled": model.engine.identity().get("compiled"),
                  "python": platform.python_version(), "numpy": np.__version__}))
"""


def surroundings() -> dict[str, str]:
    path = os.pathsep.join([str(common.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def suite(python: str, files: list[str]) -> dict[str, Any]:
    """Counts of pytest's outcomes, by file, and the sentences of failures and of skips."""
    with tempfile.TemporaryDirectory() as folder:
        report, begun = Path(folder) / "report.xml", time.perf_counter()
        subprocess.run(
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files],
            cwd=common.ROOT,
            env=surroundings(),
            stdout=sys.stderr,
            check=False,
        )
        cases = list(ElementTree.parse(report).iter("testcase"))
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - begun), "files": {}, "failed": [], "skipped": []}
    for case in cases:
        if not case.get("classname"):
            continue  # pytest's own, of a file that was not run to its end
        name = "/".join(case.get("classname", "").split("."))
        kind = next((k for k in ("failure", "error", "skipped") if case.find(k) is not None), "passed")
        row = found["files"].setdefault(name, {"passed": 0, "failed": 0, "skipped": 0})
        row["failed" if kind in ("failure", "error") else kind] += 1
        if kind != "passed":
            said = (case.find(kind).get("message") or "").splitlines()
            found["skipped" if kind == "skipped" else "failed"].append(
                f"{case.get('name')}: {said[0][:200] if said else ''}"
            )
    found["skipped"] = sorted(set(found["skipped"]))
    return found


def training(python: str, model: Path) -> dict[str, Any]:
    done = subprocess.run(
        [python, "-c", TRAIN, str(model), str(STEPS), str(TOKENS)],
        env=surroundings(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def again(python: str, kept: dict[str, Any]) -> dict[str, Any]:
    """The kept suite, with what failed in it and the files that it lacks run again and put in their places."""
    suite_, names = kept["suite"], [sentence.partition(":")[0] for sentence in kept["suite"]["failed"]]
    missing = [file for file in CORE if file.removesuffix(".py") not in suite_["files"]]
    others = [file for file in CORE if suite_["files"].get(file.removesuffix(".py"), {}).get("failed")]
    found = [suite(python, [*others, "-k", " or ".join(names)])] if names else []
    found += [suite(python, missing)] if missing else []
    for part in found:
        suite_["seconds"] += part["seconds"]
        for file, counts in part["files"].items():
            row = suite_["files"].setdefault(file, {"passed": 0, "failed": 0, "skipped": 0})
            row["failed"] -= counts["passed"] if file + ".py" in others else 0
            row["passed"] += counts["passed"]
            row["skipped"] += counts["skipped"]
            row["failed"] += 0 if file + ".py" in others else counts["failed"]
    suite_["failed"] = [sentence for part in found for sentence in part["failed"]]
    suite_["skipped"] = sorted({*suite_["skipped"], *(s for part in found for s in part["skipped"])})
    suite_["files"].pop("", None)
    return suite_


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--python", required=True, help="an aarch64 interpreter, or a script that emulates one")
    options.add_argument("--only", nargs="*", default=CORE, metavar="FILE", help="test files instead of the core")
    options.add_argument("--again", action="store_true", help="run what failed or is missing in the kept result, alone")
    args = options.parse_args()
    if args.again:
        kept = json.loads((common.RESULTS / "aarch64.json").read_text())
        facts = {key: kept[key] for key in ("emulated", "processor", "training")}
        before = (
            kept.get("note") or f"The training and most of the suite are of {kept['date']}, commit {kept['commit']}."
        )
        common.save("aarch64", args, kept["machine"], **facts, suite=again(args.python, kept), note=before)
        return
    before, model = common.machine(), common.model_file(args.model)
    there, here = training(args.python, model), training(sys.executable, model)
    if there["machine"] not in ("aarch64", "arm64"):
        raise SystemExit(f"{args.python} runs on {there['machine']}, not on aarch64")
    apart = max(abs(a - b) / b for a, b in zip(there["losses"], here["losses"], strict=True))
    common.save(
        "aarch64",
        args,
        before,
        emulated=there["machine"] != os.uname().machine,
        processor=os.environ.get("QEMU_CPU"),
        training={"model": model.name, "tokens": TOKENS, "there": there, "here": here, "largest_difference": apart},
        suite=suite(args.python, list(args.only)),
    )


if __name__ == "__main__":
    main()
