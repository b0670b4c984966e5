"""What the parts share: the e-mails, the texts, and a session that keeps what it has measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import common

from anytune import load
from anytune.adapt.data import Reading, read
from anytune.adapt.job import Settings, Task, Teacher
from anytune.adapt.measure import measure
from anytune.adapt.report import measured_facts
from anytune.adapter.adapter import Adapter

TEXTS = "36ea9c5"  # the commit whose docs are the ordinary text: docs/training.md guards, drift is of docs/data.md
EMAILS = common.ROOT / "examples" / "email"


def emails(part: str) -> list:
    """[[request, answer]] of "train" or "heldout", as messages."""
    return [json.loads(line)["messages"][-2:] for line in (EMAILS / f"{part}.jsonl").read_text("utf-8").splitlines()]


def text(name: str, folder: Path) -> str:
    """Taken from the repository's history once, so that a copy without it can be given the file."""
    path = folder / f"{TEXTS}-{name}.md"
    if not path.exists():
        command = ["git", "show", f"{TEXTS}:docs/{name}.md"]
        found = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True, check=True).stdout
        path.write_text(found, "utf-8")
    return path.read_text("utf-8")


def command(*args) -> str:
    """A command of this tree; what it prints."""
    return subprocess.run(common.anytune(*args), check=True, cwd=common.ROOT, stdout=subprocess.PIPE, text=True).stdout


class Bench:
    """One part: its model, the data of examples/email, and the result that it continues."""

    def __init__(self, args):
        self.args, self.before, self.folder = args, common.machine(), Path(args.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = common.model_file(args.model)
        self.options = {"device": args.device, "dtype": args.dtype, "threads": args.threads}
        self.model = load(self.path, **self.options)
        self.reading = Reading(self.model.template, 2048)
        self.texts = {name: text(name, self.folder) for name in ("training", "data")}
        guard = self.model.tokenizer.decode(self.model.tokenizer.encode(self.texts["training"], bos=False)[:2048])
        self.settings = Settings(guard_text=guard, drift_text=self.texts["data"])
        self.file = common.RESULTS / f"adapt_{args.part}{args.suffix}.json"
        self.results = json.loads(self.file.read_text())["results"] if self.file.exists() and not args.again else {}

    def write(self, name: str, pairs: list) -> Path:
        path = self.folder / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps({"messages": messages}) for messages in pairs), "utf-8")
        return path

    def as_text(self, part: str) -> Path:
        """The e-mails of a part and their requests, as one text."""
        path = self.folder / f"{part}.txt"
        path.write_text("\n\n".join(f"{one['content']}\n{two['content']}" for one, two in emails(part)), "utf-8")
        return path

    def keep(self, name: str, **facts) -> None:
        self.results[name] = facts
        common.save(
            "adapt",
            self.args,
            self.before,
            into=f"adapt_{self.args.part}{self.args.suffix}",
            model=self.path.name,
            device=self.args.device,
            texts=TEXTS,
            results=self.results,
        )

    def missing(self, name: str) -> bool:
        return name not in self.results

    def examples(self, name: str, pairs: list, context=None):
        return read(self.model, [self.write(name, pairs)], self.reading, context)[0].examples

    def trained(self, name: str, data: Path, steps: int):
        """The adapter `name`, trained if it is not there yet."""
        path = self.folder / f"{name}.gguf"
        if not path.exists():
            train = ["train", "-m", self.path, "-f", data, "--assistant-loss-only", "-c", 512, "-ub", 512, "-b", 1024]
            train += ["--lora-rank", 16, "--lora-alpha", 32, "--max-steps", steps, "--lr", 1e-3, "--warmup-steps", 3]
            command(*train, "--run-dir", self.folder / f"run-{name}", "-o", path, "-q")
        return Adapter.load(path, gguf=self.model.gguf)

    def measured(self, task, made, plain=()) -> dict:
        return measured_facts(measure(self.model, task, made, dict(plain), self.settings))


def email_task(b: Bench) -> tuple[Adapter, Task]:
    """An adapter trained on the e-mails, and the task of coming near it."""
    big = b.trained("wren", EMAILS / "train.jsonl", 40)
    return big, Task(
        Teacher(b.model, big),
        b.examples("train-32", emails("train")[:32]),
        b.examples("heldout-12", emails("heldout")[:12]),
    )
