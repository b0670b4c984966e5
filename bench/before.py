"""Speed against another tree of this project: the same commands on both, in turns, in CPU seconds.

    git worktree add --detach ../before COMMIT
    python bench/before.py ../before [NAME …]

Each command is a process of its own, start included, on one thread; what is compiled is on disk before the first round.
With names only those commands run; rows of the others at the same commits stay in the results, each with the command
line that measured it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import common

from anytune.gguf import GGUF, write_gguf

TEXT = 3  # times the same documentation


def commands(folder: Path, model: Path) -> dict[str, list[str]]:
    """{name: arguments of anytune}"""
    text, chats, f32 = folder / "text.txt", folder / "chats.jsonl", folder / "f32.gguf"
    on, data = ["-m", str(model), "-t", "1"], ["-f", str(text), "-c", "256"]
    steps = ["-f", str(chats), "-q", *"-c 128 -ub 256 -b 256 --max-steps 3".split()]
    small = ["-f", str(chats), "-q", *"-c 64 -ub 64 -b 64 --max-steps 2".split()]  # a device may be software
    return {
        "decode": ["generate", *on, "-p", "A walk along the canal", *"--raw -n 96 --temp 0".split()],
        "decode, cpu-bf16": ["generate", *on, "-p", "A walk along", *"--device cpu-bf16 --raw -n 64 -s 1".split()],
        "perplexity": ["perplexity", *on, *data, "--chunks", "6"],
        "imatrix": ["imatrix", *on, *data, "--chunks", "6", "-o", "OUT.gguf"],
        "quantize Q4_0": ["quantize", str(f32), "OUT.gguf", "Q4_0", "-t", "1"],
        "quantize Q4_K_M": ["quantize", str(f32), "OUT.gguf", "Q4_K_M", "-t", "1"],
        "train": ["train", *on, "--device", "numpy", *steps, "-o", "OUT.gguf"],
        "train, cpu-bf16": ["train", *on, "--device", "cpu-bf16", *steps, "-o", "OUT.gguf"],
        "train, webgpu": ["train", *on, "--device", "webgpu", *small, "-o", "OUT.gguf"],
        "data preview": ["data", "preview", "-m", str(model), "-f", str(folder / "many.jsonl"), "-c", "128"],
    }


def write_inputs(folder: Path, model: Path) -> None:
    pages = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:40]
    text = "\n".join(page.read_text(encoding="utf-8", errors="replace") for page in pages)
    (folder / "text.txt").write_text(text[:60_000] * TEXT, encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if len(line) > 40]
    for name, count in (("chats.jsonl", 64), ("many.jsonl", 6000)):
        rows = [
            {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
            for a, b in zip(lines[:count], lines[count : 2 * count])
        ]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with GGUF.open(model) as gguf:
        tensors = [(name, tuple(info.shape), "F32", gguf.float32(name)) for name, info in gguf.tensors.items()]
        write_gguf(folder / "f32.gguf", gguf.metadata | {"general.file_type": 0}, tensors)


def seconds(tree: Path, arguments: list[str], folder: Path) -> float:
    """CPU seconds of one command in a tree, its children's too."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        arguments = [str(Path(own) / x) if x.startswith("OUT") else x for x in arguments]
        env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            common.anytune(*arguments),
            cwd=own, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{tree}: anytune {' '.join(arguments)} failed:\n{said[-2000:]}")
    return used.ru_utime + used.ru_stime


parser = common.parser(__doc__, rounds=4)
parser.add_argument("tree", type=Path)
parser.add_argument("names", nargs="*")
args = parser.parse_args()
here, there = Path(common.__file__).resolve().parents[1], args.tree.resolve()
model, machine = common.model_file(args.model), common.machine()
compared = subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], cwd=there, capture_output=True, text=True, check=True
).stdout.strip()
saved = common.RESULTS / "before.json"
rows = {}
if args.names and saved.exists():  # the other rows of this comparison stay
    last = json.loads(saved.read_text())
    rows = last["commands"] if (last["commit"], last["compared_with"]) == (common.commit(), compared) else {}
with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    write_inputs(folder, model)
    for name, arguments in commands(folder, model).items():
        if args.names and name not in args.names:
            continue
        found: dict[Path, list[float]] = {here: [], there: []}
        for turn in range(args.rounds + 1):
            for tree in (here, there) if turn % 2 else (there, here):
                found[tree].append(seconds(tree, arguments, folder))
        now, then = (statistics.median(found[tree][1:]) for tree in (here, there))
        rows[name] = {
            "cpu_s": round(now, 2),
            "before_cpu_s": round(then, 2),
            "speed": round(then / now, 3),
            "command": common.command("before"),
        }
        print(f"{name:20} {now:7.2f} s, before {then:7.2f} s: {then / now:.3f} times as fast", flush=True)
        common.save("before", args, machine, compared_with=compared, commands=rows)
