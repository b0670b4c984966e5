"""Style before and after: SmolLM2 learns one person's e-mails, and `anytune evaluate style` measures how near it comes.

    python bench/style.py

The author is invented: the 256 e-mails of examples/email, written by hand in one strong voice, are put into an mbox as
answers to the requests they belong to, and go the way of anybody's mailbox: `anytune data build email`, `anytune
train`, `anytune evaluate style` on the conversations that were held out.
"""

from __future__ import annotations

import json
import mailbox
import subprocess
import tempfile
import time
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import common

ME, DESK = "wren@example.org", "desk@example.org"
options = common.parser(__doc__)
options.add_argument("--steps", type=int, default=30, help="optimizer steps (default: %(default)s)")
options.add_argument("--report", help="keep the report (.html or .json) here")
args = options.parse_args()
before = common.machine()


def corpus(path: Path) -> None:
    """The demo's e-mails as an mbox: each request a mail, each e-mail its answer, with the request quoted below it."""
    box = mailbox.mbox(path)
    rows = [
        json.loads(line)["messages"]
        for name in ("train", "heldout")
        for line in (common.ROOT / "examples" / "email" / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]
    for number, (request, answer) in enumerate(rows):
        quoted = "\n".join(f"> {line}" for line in request["content"].splitlines())
        for sender, key, text in (
            (DESK, "q", request["content"]),
            (ME, "a", f"{answer['content']}\n\nOn 1 Nov 2026, desk <{DESK}> wrote:\n{quoted}"),
        ):
            mail = EmailMessage()
            mail["From"], mail["To"] = sender, ME if sender == DESK else DESK
            mail["Message-ID"] = f"<{key}{number}@example.org>"
            if key == "a":
                mail["In-Reply-To"] = f"<q{number}@example.org>"
            mail.set_content(text)
            box.add(mail)
    box.flush()


def anytune(folder: Path, *words: object) -> str:
    """Run it in the folder; -> what it printed."""
    print("anytune", *words, flush=True)
    env = common.environment(args.threads)
    done = subprocess.run(common.anytune(*words), stdout=subprocess.PIPE, text=True, cwd=folder, env=env)
    if done.returncode:
        raise SystemExit(f"anytune {words[0]} ended with exit code {done.returncode}")
    return done.stdout


def main() -> None:
    model = common.model_file(args.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus(folder / "wren.mbox")
        build = ["data", "build", "email", "wren.mbox", "--from", ME, "-o", "mails"]
        mails = json.loads(anytune(folder, *build, "--val-split", 0.05, "--test-split", 0.1, "--json"))
        start = time.perf_counter()
        train = ["train", "-m", model, "-f", "mails/train.jsonl", "--assistant-loss-only", "-c", 512, "-ub", 512]
        train += ["-b", 1024, "--max-steps", args.steps, "--lr", "1e-3", "--warmup-steps", 3, "-t", args.threads]
        anytune(folder, *train, "--output-adapter", "wren.gguf", "--quiet")
        seconds = time.perf_counter() - start
        judge = ["evaluate", "style", "-m", model, "--lora", "wren.gguf", "-f", "mails/test.jsonl", "-n", 128]
        judge += ["--repeat-penalty", 1.05, "-t", args.threads, "--json"]
        judge += ["-o", Path(args.report).resolve()] if args.report else []
        facts: dict[str, Any] = json.loads(anytune(folder, *judge))
    kept = (
        "messages",
        "tokens",
        "generation",
        "distances",
        "author",
        "change",
        "habits",
        "loss",
        "perplexity",
        "loss_change",
        "answers",
        "to_reference",
        "gain",
        "cosine_of_unrelated",
    )
    items = facts["items"][:2]
    common.save(
        "style",
        args,
        before,
        corpus="examples/email, an invented author",
        data=mails["rows"],
        steps=args.steps,
        train_seconds=round(seconds),
        **{key: _rounded(facts[key]) for key in kept},
        examples=[{key: item[key] for key in ("prompt", "reference", "answers")} for item in items],
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return common.rounded(value, 4) if isinstance(value, float) else value


main()
