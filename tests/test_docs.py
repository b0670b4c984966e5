"""The documentation, checked by running it: commands, flags, links, Python, and numbers that come from results."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from anytune.cli.main import cli
from anytune.engine.webgpu.kernels.blocks import TYPES
from anytune.gguf.blocks import BLOCKS
from anytune.quantization.filetypes import FILE_TYPES
from tests.evaluation import pubmedqa_files
from tests.support import tiny
from tests.support.adapters import random_adapter
from tests.support.require import need

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "RELEASE_NOTES.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
    *sorted((ROOT / "benchmarks").rglob("README.md")),
]
BLOCK = re.compile(r"(<!-- run -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
# programs that docs may name
OTHERS = {
    *("sudo", "git", "python3", "python3.12", "pipx", "uv", "brew", "pkg", "./anytune-linux-x86_64.pex"),
    "llama-server",
    "llama-cli",
    "cd",
    "pip",
    "python",
    "make",
    ".",
    "cat",
    "curl",
    "printf",
    "torchrun",
}
OTHERS_FLAGS = {
    "--cases",
    "--check",
    "--extra-index-url",
    "--no-deps",
    "--no-train",
    "--node-rank",
    "--only",
    "--pubmedqa",
    "--reference",
    "--report",
    "--devices",
    "--index-url",
    "--rounds",
    "--shapes",
    "--work",
}


def blocks(page: Path, language: str) -> list[tuple[bool, str]]:
    """(marked to be run, text) of each code block in a language."""
    return [(bool(m[1]), m[3]) for m in BLOCK.finditer(page.read_text("utf-8")) if m[2] == language]


def commands(text: str) -> list[list[str]]:
    """The command lines of a shell block, as words, comments and continuations resolved."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def all_commands() -> list[tuple[str, list[str]]]:
    return [(page.name, words) for page in PAGES for _, text in blocks(page, "sh") for words in commands(text)]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The click command that `anytune WORDS…` calls, and what is left for it."""
    found: click.Command = cli
    while isinstance(found, click.Group) and words and words[0] in found.commands:
        found, words = found.commands[words[0]], words[1:]
    return found, words


def every_command(group: click.Group = cli) -> list[click.Command]:
    return [
        group,
        *(
            c
            for sub in group.commands.values()
            for c in (
                every_command(sub) if isinstance(sub, click.Group) else [sub, *getattr(sub, "parts", {}).values()]
            )
        ),
    ]


def flags(command: click.Command) -> set[str]:
    return {flag for p in command.params if isinstance(p, click.Option) for flag in (*p.opts, *p.secondary_opts)}


def test_the_docs_show_commands():
    assert sum(words[0] == "anytune" for _, words in all_commands()) >= 20


@pytest.mark.parametrize(("page", "words"), all_commands(), ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60])
def test_shown_command_lines_parse(page, words):
    if words[0] not in ("anytune", ".venv/bin/anytune"):
        assert words[0] in OTHERS, f"{page} names a program that this test does not know"
        if words[0] == "make" and len(words) > 1:
            assert re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        if words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).exists()
        return
    command, rest = command_of(words[1:])
    assert not isinstance(command, click.Group) or rest == []
    command.make_context(command.name, list(rest))  # raises for an unknown option, a missing one or a bad value


def test_flags_named_in_the_text_exist():
    known = set().union(*map(flags, every_command())) | {"--help", "--version"} | OTHERS_FLAGS
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text("utf-8"))
        for code in re.findall(r"`([^`\n]+)`", prose):
            words = code.split()
            script = ROOT / words[1] if words[0] == "python" and words[1].startswith("bench/") else None
            takes = known if script is None else flags_of(script)
            for word in words:
                if re.fullmatch(r"--?[a-z][a-z0-9-]*", word):
                    assert word in takes, f"{page.name} names {word} in `{code}`"


def flags_of(script: Path) -> set[str]:
    """What a benchmark's parser takes, and the parser that they share."""
    text = script.read_text("utf-8") + (ROOT / "bench" / "common.py").read_text("utf-8")
    return set(re.findall(r"""["'](--?[a-z][a-z0-9-]*)["']""", text))


def test_every_command_is_listed():
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")

    def listed(group: click.Group, words: str) -> None:
        for name, command in group.commands.items():
            if isinstance(command, click.Group) and not command.hidden:
                listed(command, f"{words} {name}")
            elif not command.hidden:
                assert re.search(rf"\b{words} {name}\b", text), f"{words} {name}"

    listed(cli, "anytune")


def test_every_type_is_listed():
    helped, page = cli.commands["quantize"].help, (ROOT / "docs" / "quantize.md").read_text("utf-8")
    for name in FILE_TYPES:
        assert re.search(rf"\b{name}\b", helped) and f"`{name}`" in page, name
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in BLOCKS.keys() - {"I8", "I16", "I32", "I64", "F64"}:
        assert name.startswith("IQ") or name.endswith("_K") or re.search(rf"base types .*\b{name}\b", readme), name
    wgsl = (ROOT / "docs" / "webgpu.md").read_text("utf-8")
    for name in TYPES:
        assert name.endswith("_K") or re.search(rf"Block types read by the kernels: [^.]*\b{name}\b", wgsl), name


def test_every_flag_of_train_is_documented():
    text = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("training.md", "data.md", "finetune.md"))
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", text))
    for option in cli.commands["train"].params:
        if isinstance(option, click.Option) and not option.hidden and option.name != "help":
            assert named & {*option.opts, *option.secondary_opts}, f"{option.opts} is in no page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", BLOCK.sub("", page.read_text("utf-8"))):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_example_lines_of_json_are_json():
    found = [text for page in PAGES for _, text in blocks(page, "json")]
    assert found
    for text in found:
        try:
            json.loads(text)
        except json.JSONDecodeError:  # lines of JSON
            assert [json.loads(line) for line in text.splitlines()]


def prepare(folder: Path) -> None:
    """The files that marked blocks use."""
    tiny.write(folder / "model.gguf", "llama")
    mails = (ROOT / "examples" / "email" / "train.jsonl").read_text("utf-8").splitlines()
    for name, lines in (("chats.jsonl", mails[:6]), ("train.jsonl", mails[:6]), ("heldout.jsonl", mails[6:10])):
        (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "text.txt").write_text("the rest of the west wind was in the air. " * 60, "utf-8")
    task = {"context": "the wind was", "choices": ["in the air", "on"], "answer": 0}
    (folder / "prompts.txt").write_text("is it so\nand now\n", "utf-8")
    (folder / "truth.txt").write_text("yes\nmaybe\n", "utf-8")
    (folder / "tasks.jsonl").write_text(json.dumps(task) + "\n", "utf-8")
    (folder / "private.json").write_text(json.dumps([json.loads(line) for line in mails[:3]]), "utf-8")
    questions = [{"prompt": f"Is it so, {n}? ", "completion": "yes" if n % 2 else "no"} for n in range(14)]
    for name, rows in (("pairs.jsonl", questions[:10]), ("pairs-test.jsonl", questions[10:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    random_adapter(folder / "model.gguf", folder / "teacher.gguf")
    pubmedqa_files.write(folder, {"yes": 4, "no": 4, "maybe": 3}, {"yes": 2, "no": 2, "maybe": 1})


def execute(args: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"


MARKED = [(page.name, text) for page in PAGES for run, text in blocks(page, "sh") if run]


def test_blocks_are_marked():
    assert len(MARKED) >= 4


@pytest.mark.parametrize(("page", "text"), MARKED, ids=lambda x: x if x.endswith(".md") else "")
def test_marked_shell_blocks_run(page, text, tmp_path):
    prepare(tmp_path)
    if "verify" in text:
        need("xllamacpp")
    for words in commands(text):
        assert words[0] == "anytune"
        execute(["-m", *words], tmp_path)


@pytest.mark.parametrize(
    ("page", "text", "run"),
    [(page.name, text, run) for page in PAGES for run, text in blocks(page, "python")],
    ids=lambda x: x if isinstance(x, str) and x.endswith(".md") else "",
)
def test_python_blocks(page, text, run, tmp_path):
    """All compile; the marked ones run, on a tiny model and some of the demo's e-mails."""
    compile(text, page, "exec")
    if not run:
        return
    prepare(tmp_path)
    execute(["-c", text], tmp_path)
    assert (tmp_path / "adapter.gguf").exists()
    assert list(tmp_path.glob("runs/*/metrics.jsonl"))


def test_numbers_are_those_of_the_results():
    done = subprocess.run([sys.executable, "bench/table.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_results_say_where_they_come_from():
    for path in (ROOT / "bench" / "results").glob("*.json"):
        data = json.loads(path.read_text("utf-8"))
        assert {"benchmark", "command", "date", "machine", "versions"} <= set(data), path.name
        assert {"cpu", "cores", "memory_gib"} <= set(data["machine"])
        assert str(ROOT) not in path.read_text("utf-8")
