"""Peak memory of the whole `anytune train` process, with the speed that it costs, and a 1.1B model in 300 MiB.

    python bench/memory.py

SmolLM2: r=16 on all linears, 512-token micro-batches, chats of about 128 tokens of which half carry loss (made of the
demo's e-mails), at full speed and with --memory 300MiB, in turns. TinyLlama's shape (see tinyllama.py): r=8 on all
linears, -c 128 -ub 128, --memory 300MiB; the bytes that one step reads from the file are counted in a second process
that does nothing but steps.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import cli
import common

options = common.parser(__doc__, rounds=3)
options.add_argument("--steps", type=int, default=6)
options.add_argument("--memory", default="300MiB")
options.add_argument("--skip-tinyllama", action="store_true")
args = options.parse_args()
before = common.machine()
model = str(common.model_file(args.model))
env = common.environment(args.threads)


def figures(run: dict) -> dict:
    return {
        "peak_rss_mib": run["peak_rss_mib"],
        "tokens_per_s": common.rounded(cli.speed(run["rows"]), 4),
        "seconds_per_step": common.rounded(common.median(r["tokens"] / r["tokens_per_s"] for r in run["rows"][1:])),
        "loss_share": round(sum(r["loss_tokens"] for r in run["rows"]) / sum(r["tokens"] for r in run["rows"]), 2),
        "whole_run_s": run["seconds"],
    }


def summary(rounds: list[dict]) -> dict:
    return {
        "peak_rss_mib": max(r["peak_rss_mib"] for r in rounds),
        "tokens_per_s": common.median(r["tokens_per_s"] for r in rounds),
        "seconds_per_step": common.median(r["seconds_per_step"] for r in rounds),
        "rounds": rounds,
    }


def half_with_loss(path: Path) -> None:
    """Chats in which as many tokens are asked as answered: pieces of two e-mails each."""
    mails = [
        json.loads(line)["messages"][1]["content"]
        for line in (common.ROOT / "examples/email/train.jsonl").read_text("utf-8").splitlines()
    ]

    def piece(mail: str, share: float) -> str:
        words = mail.split(" ")
        return " ".join(words[: round(share * len(words))])

    with open(path, "w", encoding="utf-8") as file:
        for question, answer in zip(mails, mails[1:], strict=False):
            messages = [
                {"role": "user", "content": piece(question, 0.32)},
                {"role": "assistant", "content": piece(answer, 0.73)},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def smollm2(folder: Path) -> dict:
    data = folder / "chats.jsonl"
    half_with_loss(data)
    base = ["-m", model, "-f", data, "--assistant-loss-only", "-c", 512, "-ub", 512, "-b", 512]
    base += ["--max-steps", args.steps, "--threads", args.threads]
    settings = {"full speed": [], f"--memory {args.memory}": ["--memory", args.memory]}
    rounds: dict[str, list[dict]] = {name: [] for name in settings}
    for number in range(args.rounds):
        for index, (name, more) in enumerate(settings.items()):
            rounds[name].append(figures(cli.train([*base, *more], folder / f"smollm2-{number}-{index}", env)))
    return {name: summary(some) for name, some in rounds.items()}


def tinyllama(folder: Path) -> dict:
    import tinyllama as shape

    file, text = folder / "tinyllama-q4_0.gguf", folder / "text.jsonl"
    shape.write_model(file)
    shape.write_text(text)
    base = ["-m", file, "-f", text, "--overflow", "truncate", "-c", 128, "-ub", 128, "-b", 128, "--lora-rank", 8]
    base += ["--lora-alpha", 16, "--max-steps", 3, "--threads", args.threads, "--memory", args.memory]
    rounds = [figures(cli.train(base, folder / f"tinyllama-{number}", env)) for number in range(args.rounds)]
    steps = ["bench/steps.py", str(file), "--shape", "1x128", "--threads", str(args.threads), "--rank", "8"]
    alone = common.run_once([*steps, "--memory", args.memory, "--turns", "2", "--warmup", "1"], env)
    return {
        "command": "anytune train -c 128 -ub 128 -b 128 --lora-rank 8 --memory " + args.memory,
        "file_mib": round(file.stat().st_size / common.MIB, 1),
        **summary(rounds),
        "bytes_read_per_step": alone["rounds"][-1]["bytes_read"],
        "mib_read_per_step": round(alone["rounds"][-1]["bytes_read"] / common.MIB, 1),
        "steps_alone": alone,
    }


with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
    small = smollm2(Path(name))
    big = None if args.skip_tinyllama else tinyllama(Path(name))
common.save(
    "memory",
    args,
    before,
    model=Path(model).stem,
    threads=args.threads,
    memory=args.memory,
    smollm2=small,
    tinyllama=big,
)
