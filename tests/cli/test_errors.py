"""Every mistake of a user ends with one sentence on stderr and exit code 2, never with a traceback."""

import json
import os
import subprocess
import sys

import pytest

import anytune
from anytune.cli import main as entry
from anytune.cli.main import cli as root
from tests.support.require import need

COMMANDS = ["pull", "info", "train", "generate", "chat", "verify", "quantize", "imatrix", "perplexity", "doctor"]


def one_sentence(outcome, *words):
    assert outcome.out == ""
    assert outcome.err.startswith("anytune: ") and outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.mark.parametrize(
    "args, words",
    [
        (["nope"], ["nope"]),
        (["train"], ["--model"]),
        (["train", "-m", "x.gguf"], ["--file"]),
        (["train", "-m", "x", "-f", "y", "-c", "many"], ["-c", "many"]),
        (["train", "-m", "x", "-f", "y", "-fa", "perhaps"], ["-fa", "perhaps"]),
        (["train", "-m", "x", "-f", "y", "--overflow", "explode"], ["explode"]),
        (["train", "-m", "x", "-f", "y", "--memory", "lots"], ["lots"]),
        (["train", "-m", "x", "-f", "y", "--memory", "-1GiB"], ["-1GiB"]),
        (["train", "-m", "x", "-f", "y", "-t", "0"], ["-t"]),
        (["train", "-m", "x", "-f", "y", "-c", "0"], ["-c"]),
        (["train", "-m", "x", "-f", "y", "--learning-rate", "-1"], ["--learning-rate"]),
        (["train", "-m", "x", "-f", "y", "--learning-rate", "nan"], ["--learning-rate"]),
        (["train", "-m", "x", "-f", "y", "--lr-scheduler", "zigzag"], ["--lr-scheduler", "zigzag"]),
        (["train", "-m", "x", "-f", "y", "--val-split", "1.5"], ["--val-split"]),
        (["train", "-m", "x", "-f", "y", "--frobnicate"], ["--frobnicate"]),
        (["generate", "-m", "x"], []),
        (["generate", "-m", "x", "-p", "y", "--top-p", "7"], ["top-p"]),
        (["generate", "-m", "x", "-p", "y", "-n", "-2"], ["-2"]),
        (["chat", "-m", "x", "--temp", "nan"], ["temperature"]),
        (["verify", "-m", "x", "--positions", "0"], ["--positions"]),
        (["info"], ["GGUF"]),
        (["info", "a", "-m", "b"], ["GGUF"]),
        (["data", "preview"], ["--model"]),
        (["doctor", "extra"], ["extra"]),
    ],
)
def test_wrong_arguments(cli, args, words, monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    one_sentence(cli(*args, code=2), *words)


def everything_with(path, data):
    """A command line for each command that reads a model."""
    return [
        ["info", path],
        ["train", "-m", path, "-f", data],
        ["generate", "-m", path, "-p", "x"],
        ["chat", "-m", path],
        ["verify", "-m", path],
        ["data", "preview", "-m", path, "-f", data],
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_model_that_cannot_be_one(cli, number, tmp_path, chats):
    if number == 4:
        need("xllamacpp")
    empty, text, torn = tmp_path / "empty.gguf", tmp_path / "text.gguf", tmp_path / "torn.gguf"
    empty.write_bytes(b"")
    text.write_text("I am not a model, whatever my name says.\n" * 20)
    torn.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 200)
    for path in (tmp_path / "missing.gguf", tmp_path, empty, text, torn, "a\0b.gguf"):
        args = everything_with(path, chats)[number]
        name = path if isinstance(path, str) else path.name
        one_sentence(cli(*args, code=2), *([] if isinstance(path, str) else [name]))


def test_a_model_that_may_not_be_read(cli, model, tmp_path, monkeypatch):
    path, closed, root = tmp_path / "secret.gguf", tmp_path / "closed", os.geteuid() == 0
    path.write_bytes(model.read_bytes())
    path.chmod(0)
    closed.mkdir(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # another user may not search the folders above it
    cli("info", "missing.gguf", code=2)  # nor the modules that this imports
    if root:
        os.setresuid(65534, 65534, 0)  # root may read everything
    try:
        said = [cli("info", name, code=2) for name in ("secret.gguf", "closed/secret.gguf")]
    finally:
        if root:
            os.setresuid(0, 0, 0)
        closed.chmod(0o700)
    for one in said:
        one_sentence(one, "secret.gguf is not readable", "permissions")


@pytest.mark.parametrize("command", ["train", "preview"])
@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["data.jsonl"]),
        (b"\n\n\n", ["data.jsonl"]),
        (b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n{"mess\n', ["2"]),
        (b'{"messages": []}\n', ["1"]),
        (b"\xff\xfe\x00broken" * 10, []),
    ],
)
def test_data_that_cannot_be_used(cli, model, tmp_path, monkeypatch, command, content, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    args = ["train", "--run-dir", "run"] if command == "train" else ["data", "preview"]
    one_sentence(cli(*args, "-m", model, "-f", path, "--assistant-loss-only", code=2), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--lora", "--chat-template", "-f"])
def test_other_files_that_are_not_there(cli, model, tmp_path, chats, flag):
    args = ["train", "-m", model, "-f", chats, "--run-dir", tmp_path / "run", flag, tmp_path / "gone.file"]
    one_sentence(cli(*args, code=2), "gone.file")


def test_a_model_is_no_adapter_and_an_adapter_no_model(cli, model, tmp_path):
    import numpy as np

    path = tmp_path / "adapter.gguf"
    pair = (np.ones((2, 64), np.float32), np.ones((128, 2), np.float32))
    anytune.Adapter({"blk.0.attn_q.weight": pair}, rank=2, alpha=4.0).save(path)
    one_sentence(cli("generate", "-m", path, "-p", "x", code=2), "adapter")
    one_sentence(cli("generate", "-m", model, "-p", "x", "--lora", model, code=2), "tiny.gguf")
    assert cli("info", path, "--json", code=0).json["adapter"]["rank"] == 2


def test_an_unknown_device_and_a_senseless_ngl(cli, model):
    one_sentence(cli("generate", "-m", model, "-p", "x", "--device", "abacus", code=2), "abacus")
    one_sentence(cli("generate", "-m", model, "-p", "x", "-ngl", "some", code=2), "some")


def test_what_is_no_fault_of_the_user_says_where_the_log_is(cli, monkeypatch):
    import re

    def broken(*_):
        raise RuntimeError("the\nengine room burns")

    monkeypatch.setattr("anytune.doctor.examine", broken)
    outcome = cli("doctor", code=1)
    one_sentence(outcome, "engine room burns", "RuntimeError")
    log = re.search(r"\S+\.log", outcome.err).group()
    assert "Traceback" in open(log).read()
    os.unlink(log)
    with pytest.raises(RuntimeError):
        cli("doctor", "--debug")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("what", ["-o", "--run-dir", "-f", "-m"])
def test_names_that_are_not_utf8_are_names(cli, model, chats, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9")
    given = {"-m": model, "-f": chats, "-o": "a.gguf", "--run-dir": "run"}
    if what in ("-m", "-f"):
        os.symlink(given[what], name)
    given[what] = name
    words = [str(word) for pair in given.items() for word in pair]
    cli("train", *words, *"-c 64 -ub 64 -b 64 -t 1 --max-steps 1 -q".split(), code=0)
    assert json.loads(open(os.path.join(given["--run-dir"], "settings.json")).read())
    assert os.path.exists(given["-o"]) and os.path.exists(os.path.join(given["--run-dir"], "loss.svg"))


def test_a_crash_is_logged_whatever_its_arguments_are(cli, monkeypatch, tmp_path):
    monkeypatch.setattr("anytune.doctor.examine", lambda *_: 1 / 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["anytune", os.fsdecode(b"caf\xe9")])
    one_sentence(cli("doctor", code=1), "ZeroDivisionError", ".log")
    (log,) = tmp_path.glob("*.log")
    assert "caf\\udce9" in log.read_text("utf-8")


@pytest.mark.parametrize(
    "command", [["data", "preview"], ["train"], ["adapt", "distill"], ["evaluate", "compare", "--lora", "a.gguf"]]
)
def test_a_column_is_not_empty_text(cli, model, chats, command):
    one_sentence(cli(*command, "-m", model, "-f", chats, "--prompt-key", "", code=2), "--prompt-key", "empty")


def test_ctrl_c_ends_with_130(cli, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("anytune.doctor.examine", interrupted)
    assert cli("doctor").code == 130


def test_a_reader_that_goes_away_is_no_error():
    child = subprocess.Popen(
        [sys.executable, "-m", "anytune", "train", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait(60) in (0, 1)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(command, cli):
    text = cli(command, "--help", code=0).out
    example = text.split("Example:\n", 1)[1]
    assert f"anytune {command}" in example
    import shlex

    for line in example.strip().splitlines():
        words = shlex.split(line.split("|")[-1])
        if words[:2] == ["anytune", command]:
            root.commands[command].make_context(command, words[2:], resilient_parsing=False)


def test_help_and_version_import_no_numpy():
    code = (
        "import sys\nfrom anytune.cli.main import run\n"
        "assert run(['--help']) == run(['train', '--help']) == run(['--version']) == 0\n"
        "heavy = {'numpy', 'jinja2', 'tokenizers', 'numba', 'rich', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"anytune {anytune.__version__}" in done.stdout


def test_every_setting_of_a_run_has_a_flag():
    from anytune.cli.train_options import LORA, SETTINGS
    from anytune.model import Lora
    from anytune.train.settings import FIELDS

    assert [name for name, *_ in SETTINGS] == list(FIELDS)
    defaults = {name: default for name, _, _, default, _ in LORA if name != "seed"}
    assert set(defaults) == set(Lora.__dataclass_fields__) - {"seed"}
    assert Lora(**defaults) == Lora()


def test_sampling_defaults_are_those_of_python():
    from anytune.cli.sampling import DEFAULTS
    from anytune.generation.sampling import Sampling

    assert Sampling(**{**DEFAULTS, "seed": None}) == Sampling()


def test_main_exits_with_the_code():
    with pytest.raises(SystemExit) as stop:
        entry.main(["nope"])
    assert stop.value.code == 2
