"""Before and after: SmolLM2-135M learns to write e-mails in one person's voice, on this computer's CPU.

    make demo        or        python examples/demo.py

Fetches the model (once, 93 MB), answers three requests that are not in the training data, trains a LoRA adapter
on examples/email/train.jsonl, answers again, and lets llama.cpp check the result. Needs no terminal and no answers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))  # the working tree, whether or not it is installed

import anytune  # noqa: E402
from anytune.errors import UserError  # noqa: E402

DATA, HELD_OUT = FOLDER / "email" / "train.jsonl", FOLDER / "email" / "heldout.jsonl"
SHOWN = (5, 3, 6)  # lines of the held-out file whose requests are answered
VOICE = {
    "ahoy": lambda mail: mail.startswith("ahoy "),
    "lower case": lambda mail: mail == mail.lower(),
    "onwards": lambda mail: "onwards,\nwren" in mail,
    "goose": lambda mail: "goose report:" in mail,
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("-m", "--model", default="smollm2-135m", help="a GGUF file or a name for `anytune pull`")
    options.add_argument("--steps", type=int, default=40, help="optimizer steps (default: %(default)s)")
    options.add_argument("--threads", type=int, help="CPU threads (default: a short probe chooses)")
    options.add_argument("--svg", type=Path, help="also draw before and after as a picture into this file")
    args = options.parse_args()
    try:
        return run(args)
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    started = time.perf_counter()
    console.rule("[bold]1  the model")
    from anytune.hub.pull import pull

    path = Path(args.model) if Path(args.model).is_file() else pull(args.model)
    model = anytune.load(path, threads=args.threads)
    threads = model.engine.workers.count
    console.print(
        f"{path.name}: {path.stat().st_size / 1e6:.0f} MB, quantized, used as it is, on {threads} CPU "
        f"thread{'s' * (threads > 1)}"
    )
    requests = [row["messages"][0]["content"] for row in read(HELD_OUT)]
    requests = [requests[line - 1] for line in SHOWN]
    console.rule("[bold]2  before")
    before = answers(model, requests, None)
    for request, mail in zip(requests, before, strict=True):
        console.print(panel(request, mail, "before"))
    console.rule("[bold]3  training")
    console.print(
        f"{len(read(DATA))} e-mails by one person: lower case, “ahoy”, a goose. The requests above are not among them."
    )
    result = train(model, args.steps, console)
    console.rule("[bold]4  before and after")
    after = answers(model, requests, result.adapter)
    side_by_side(console, requests, before, after)
    console.rule("[bold]5  does llama.cpp compute the same?")
    proven = check(console, model, result.path)
    if args.svg:
        draw(args.svg, requests[:2], before[:2], after[:2])
    console.rule("[bold]6  what you have now")
    farewell(console, args.model, result, time.perf_counter() - started)
    return 0 if proven else 1


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def answers(model, requests: list[str], adapter) -> list[str]:
    return [
        mail.strip()
        for mail in model.generate(requests, adapter=adapter, max_tokens=130, temperature=0.0, repeat_penalty=1.05)
    ]


def train(model, steps: int, console):
    """Train with a bar in a terminal, with a line now and then elsewhere."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("first step …", total=steps)

        def show(row: dict) -> None:
            text = f"loss {row['loss']:.3f}  {row['tokens_per_s']:.0f} tokens/s"
            bar.update(task, completed=row["step"], description=text)
            if not console.is_terminal and (row["step"] % 5 == 0 or row["step"] in (1, steps)):
                console.print(f"step {row['step']:>3}/{steps}  {text}")

        result = anytune.finetune(
            model,
            DATA,
            lora=anytune.Lora(rank=16, alpha=32.0),
            context=512,
            ubatch=512,
            batch=1024,
            max_steps=steps,
            lr=1e-3,
            warmup_steps=3,
            val_file=HELD_OUT,
            val_every=steps,
            run_name="demo",
            quiet=True,
            progress=show,
        )
    rows = result.metrics
    console.print(
        f"loss {rows[0]['loss']:.2f} → {rows[-1]['loss']:.2f}; {rows[-1]['val_loss']:.2f} on the held-out "
        f"e-mails; {sum(row['tokens'] for row in rows):,} tokens"
    )
    return result


def panel(request: str, mail: str, name: str):
    """One mail in a frame, with a mark for each trait of the voice."""
    from rich.panel import Panel
    from rich.text import Text

    text = Text(mail + "\n\n")
    for trait, has in VOICE.items():
        good = has(mail)
        text.append(f"{'✓' if good else '✗'}\N{NO-BREAK SPACE}{trait}  ", style="bold green" if good else "dim")
    colour = "yellow" if name == "before" else "green"
    title = f"{name}: {request}" if request else name
    return Panel(text, title=Text(title), title_align="left", border_style=colour)


def side_by_side(console, requests: list[str], before: list[str], after: list[str]) -> None:
    from rich.table import Table

    for request, old, new in zip(requests, before, after, strict=True):
        table = Table.grid(expand=True, padding=(0, 1))
        table.add_column(ratio=1)
        table.add_column(ratio=1)
        table.add_row(panel("", old, "before"), panel("", new, "after"))
        console.print(f"\n[bold]{request}")
        console.print(table)
    for name, mails in (("before", before), ("after", after)):
        hits = sum(has(mail) for mail in mails for has in VOICE.values())
        console.print(f"traits of the voice {name}: {hits} of {len(mails) * len(VOICE)}")


def draw(path: Path, requests: list[str], before: list[str], after: list[str]) -> None:
    """The comparison as a picture of a terminal, without fonts from elsewhere."""
    import io
    import re

    from rich.console import Console

    recorder = Console(record=True, width=110, file=io.StringIO(), highlight=False)
    side_by_side(recorder, requests, before, after)
    picture = recorder.export_svg(title="make demo")
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), "utf-8")


def check(console, model, adapter: Path) -> bool:
    """llama.cpp's verdict; True too if it is not installed here (the demo then says so)."""
    from anytune.llamacpp import judge, verify

    if not judge.available():
        console.print("llama.cpp is not installed here: pip install xllamacpp, then run anytune verify.")
        return True
    with verify.on_reference(model) as reference:  # training may have run in bf16, on a GPU or after `anytune doctor`
        facts = verify.verify(reference, adapter, exact=True)
    console.print(verify.report(facts), markup=False, soft_wrap=True)
    return bool(facts["ok"])


def farewell(console, name: str, result, seconds: float) -> None:
    command = "anytune" if shutil.which("anytune") else str(Path(sys.executable).with_name("anytune"))
    command = command.replace(f"{Path.cwd()}/", "")
    console.print(
        f"{result.path}   the adapter, {result.path.stat().st_size / 1e6:.0f} MB; llama.cpp "
        f"takes it with --lora\n{result.run_dir}/   settings, metrics.jsonl, loss.svg, checkpoints, the log\n"
        f"\nTalk to it:      {command} chat -m {name} --lora {result.path} --temp 0.3"
        f"\nTrain your own:  {command} train -m {name} -f yours.jsonl"
        f"\n\n{seconds / 60:.1f} minutes in all.",
        soft_wrap=True,
        markup=False,
    )


if __name__ == "__main__":
    sys.exit(main())
