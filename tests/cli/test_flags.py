"""One meaning per flag over all commands; old spellings with a notice; outputs that exist; completion."""

import re

import click
import pytest

from anytune.adapter.adapter import Adapter
from anytune.cli.command import ADVANCED
from anytune.gguf import GGUF
from tests.support import tiny
from tests.test_docs import every_command

MEANINGS = {  # flag -> what its help must speak of, whatever the command
    "-c": "Tokens|[Cc]ontext|window",
    "-b": "[Tt]okens",
    "-n": "[Tt]okens",
    "-o": "[Ww]rite|[Aa]dapter|folder|file|[Rr]eport|result|Where|JSON|FILE|VCD|waveform|models",
    "--type": "[Tt]ype|format",
    "--format": "data's format",
}


def options():
    for command in every_command():
        for option in command.params:
            if isinstance(option, click.Option) and not command.hidden:
                yield command, option


@pytest.mark.parametrize("flag", MEANINGS)
def test_a_flag_means_one_thing(flag):
    found = [(command.name, option.help) for command, option in options() if flag in option.opts]
    assert found
    for name, text in found:
        assert re.search(MEANINGS[flag], text or ""), (flag, name, text)


def test_seeds_are_the_same_everywhere():
    found = {o.default for c, o in options() if "--seed" in o.opts and c.name not in ("generate", "chat")}
    assert found <= {42, None}, found


def test_every_command_has_an_example_and_rare_flags_come_last():
    for command in every_command():
        if not isinstance(command, click.Group):
            assert command.example.strip(), command.name
            help_ = command.get_help(click.Context(command))
            if "--tf32" in help_ or "--max-binding" in help_:
                assert help_.index(ADVANCED) < help_.index("--max-binding") and "--device" in help_.split(ADVANCED)[0]


def test_old_spellings_work_with_a_notice(cli, model, chats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = cli("data", "preview", "-m", model, "-f", chats, "-n", "1", code=0)
    assert "-n is now --examples" in said.err and said.out.count("--- example") == 1
    assert "[…]: learned" in said.out
    quick = ["-c", "64", "-ub", "64", "-b", "64", "-t", "1", "--max-steps", "1", "-q"]
    said = cli("finetune", "-m", model, "-f", chats, "-o", "t.gguf", "--output-type=Q8_0", *quick, code=0).err
    assert "anytune finetune is now anytune train --full" in said and "--output-type is now --type" in said
    with GGUF.open("t.gguf") as made:
        assert "token_embd.weight" in made.tensors


def test_outputs_that_exist_need_force(cli, model, chats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["-c", "64", "-ub", "64", "-b", "64", "-t", "1", "--max-steps", "1", "-q"]
    train = ["train", "-m", model, "-f", chats, *quick]
    cli(*train, "-o", "new/a.gguf", code=0)  # the folder is made
    commands = [
        [*train, "-o", "new/a.gguf"],
        ["export", "gguf", "-m", model, "--lora", "new/a.gguf", "-o", "deep/b.gguf", "--no-verify"],
        ["export", "peft", "-m", model, "--lora", "new/a.gguf", "-o", "deep/peft", "--no-verify"],
        ["quantize", model, "deep/q.gguf", "Q8_0"],
    ]
    for number, command in enumerate(commands):
        if number:
            cli(*command, code=0)
        assert "already exists" in cli(*command, code=2).err and "--force" in cli(*command, code=2).err
        cli(*command, "--force", code=0)
    (tmp_path / "deep/peft/mine.doc").write_text("x")
    assert "mine.doc" in cli(*commands[2], "--force", code=2).err


def test_back_to_float32_is_exact_and_needs_no_flag(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path / "q.gguf", "llama", type="Q8_0")
    cli("quantize", "q.gguf", "f.gguf", "F32", code=0)
    with GGUF.open("q.gguf") as before, GGUF.open("f.gguf") as after:
        for name in before.tensors:
            assert after.tensors[name].type.name == "F32"
            assert (before.float32(name) == after.float32(name)).all()
    assert "--allow-requantize" in cli("quantize", "q.gguf", "x.gguf", "Q4_0", code=2).err


def test_near_names_are_offered(cli, model, tmp_path):
    assert "Did you mean Q4_K_M?" in cli("quantize", model, tmp_path / "x.gguf", "q4_km", code=2).err
    assert "Did you mean smollm2-135m?" in cli("info", "smolm2-135m", code=2).err
    assert "gemma3-270m" in cli("pull", "--list", code=0).out


def test_flags_of_other_programs_are_understood(cli, model, chats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = cli(
        *("train", "-m", model, "-f", chats, "--max_length", "64", "--ubatch_size", "64", "-b", "64", "-t", "1"),
        *("--max-steps", "1", "--target-modules", "q_proj,v_proj", "--lora-r", "4", "--learning_rate=1e-3", "-q"),
        *("--num-train-epochs", "1", "--run-dir", "run"),
        code=0,
    )
    for said in (
        "--target-modules is --lora-modules here",
        "--lora-r is --lora-rank here",
        "--max_length is --ctx-size",
    ):
        assert said in made.err
    adapter = Adapter.load("run/adapter.gguf")
    assert adapter.rank == 4 and {name.split(".")[2] for name in adapter.tensors} == {"attn_q", "attn_v"}
    text = cli("generate", "-m", model, "--raw", "-p", "--max-tokens", "--max-new-tokens", "2", "--json", code=0)
    assert text.json["results"][0]["tokens"] <= 2 and text.json["results"][0]["prompt"] == "--max-tokens"


@pytest.mark.parametrize(
    "flag, given, meant",
    [
        ("--lora-modules", "q_prj", "q_proj"),
        ("--device", "cdua", "cuda"),
        ("--report-to", "tensorbord", "tensorboard"),
        ("--chat-template", "lama3", "llama3"),
    ],
)
def test_near_words_are_offered(cli, model, chats, tmp_path, monkeypatch, flag, given, meant):
    monkeypatch.chdir(tmp_path)
    assert f"Did you mean {meant}?" in cli("train", "-m", model, "-f", chats, flag, given, code=2).err


def test_the_shell_completes(cli, monkeypatch, capsys):
    for shell in ("bash", "zsh", "fish"):
        assert "_ANYTUNE_COMPLETE" in cli("completion", shell, code=0).out
    from click.shell_completion import ShellComplete

    from anytune.cli.main import cli as root

    def offered(words, start):
        return [item.value for item in ShellComplete(root, {}, "anytune", "_X").get_completions(words, start)]

    assert "quantize" in offered([], "qu") and "--lora-rank" in offered(["train"], "--lora-r")
    assert "smollm2-135m" in offered(["train", "-m"], "smol")
    assert "Q4_K_M" in offered(["export", "merge", "--type"], "Q4_K")


def kind(option: click.Option) -> str:
    """What a flag takes: nothing, a place in the file system, or a value."""
    if option.is_flag or option.flag_value == "auto":  # --resume means --resume auto
        return "nothing"
    return "a place" if re.search(r"FILE|FOLDER|PATH|GGUF|ADAPTER|DATA|REPORT|DIR", option.metavar or "") else "a value"


def test_a_flag_takes_one_kind_of_thing():
    found: dict[str, dict[str, list[str]]] = {}
    for command, option in options():
        for flag in (*option.opts, *option.secondary_opts):
            found.setdefault(flag, {}).setdefault(kind(option), []).append(command.name)
    differ = {flag: kinds for flag, kinds in found.items() if len(kinds) > 1}
    assert differ == {}


def test_chat_template_is_a_file_or_a_built_in_name_everywhere(cli, model, tmp_path):
    found = [command for command, option in options() if "--chat-template" in option.opts]
    assert len(found) > 10
    for command in found:
        (option,) = (option for option in command.params if "--chat-template" in option.opts)
        assert option.metavar == "FILE|NAME", command.name
    for name in (["export", "hf"], ["adapt", "distill", "-f", model]):
        common = [*name, "-m", model, "-o", tmp_path / "out", "--chat-template"]
        assert "built-in template of that name" in cli(*common, "nothing", code=2).err
    cli("export", "hf", "-m", model, "-o", tmp_path / "out", "--no-verify", "--chat-template", "zephyr", code=0)
    assert "<|assistant|>" in (tmp_path / "out" / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("given", "meant"), [([], None), (["--resume"], "auto"), (["--resume-from", "run"], "run"), (["--resume=x"], "x")]
)
def test_resume_needs_no_value(given, meant):
    from anytune.cli.main import cli as root

    words = ["-m", "m.gguf", *given, "-f", "d.jsonl"]
    assert root.commands["train"].make_context("train", words).params["resume_from"] == meant
