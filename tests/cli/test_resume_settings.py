"""--resume-from a checkpoint takes what is not on the command line from it, and says so."""

import pytest

from anytune.train.resume import recorded_settings

RUN = [
    "--learning-rate",
    3e-3,
    "-c",
    64,
    "-ub",
    64,
    "-b",
    64,
    "--lora-rank",
    4,
    "--lora-modules",
    "attn_q,attn_v",
    "--max-steps",
    4,
    "--checkpoint-save-steps",
    2,
    "--checkpoint-save-dir",
    "saved",
    "--run-dir",
    "one",
]


@pytest.fixture
def begun(cli, model, chats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["-m", model, "-f", chats, "-t", 1, "-q"]
    cli("train", *common, *RUN, "-o", "whole.gguf", code=0)
    return common


def test_the_bare_command_ends_in_the_same_bytes(cli, begun, tmp_path):
    said = cli(
        "train",
        *begun,
        "--resume-from",
        "saved/checkpoint_step_00000002",
        "--checkpoint-save-dir",
        "more",
        "--run-dir",
        "two",
        "-o",
        "resumed.gguf",
        code=0,
    ).err
    for part in ("from the checkpoint:", "--learning-rate 0.003", "-c 64", "--lora-rank 4", "--max-steps 4"):
        assert part in said, said
    assert (tmp_path / "resumed.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_what_is_given_is_not_replaced(cli, begun):
    said = cli("train", *begun, "--resume-from", "saved", "--learning-rate", 1e-3, "--run-dir", "two", code=2).err
    assert "--learning-rate (0.003 then, 0.001 now)" in said
    said = cli("train", *begun, "--resume-from", "saved", "--lora-rank", 8, "--run-dir", "two", code=2).err
    assert "--lora-rank (4 then, 8 now)" in said


@pytest.mark.parametrize("text", ["", "[", "[]", '{"identity": 3}', '{"identity": {"settings": [], "trainee": "x"}}'])
def test_what_is_no_checkpoint_says_nothing(tmp_path, text):
    (tmp_path / "checkpoint.json").write_text(text)
    assert recorded_settings(str(tmp_path)) == ({}, {})
    assert recorded_settings("auto") == recorded_settings(None) == recorded_settings(str(tmp_path / "no")) == ({}, {})


def test_a_hostile_setting_is_a_sentence(cli, begun, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "checkpoint.json").write_text('{"identity": {"settings": {"lr": "fast"}}}')
    assert "--learning-rate must be" in cli("train", *begun, "--resume-from", "bad", code=2).err


@pytest.mark.parametrize(
    "args, told",
    [
        (("--resume-from", "gone"), "--resume-from gone: there is no such folder"),
        (("--resume-from", "empty"), "--resume-from empty: there is no checkpoint in it"),
        (("--run-dir", "old"), "--run-dir old already contains a run"),
        (("--run-dir", "old/metrics.jsonl/run"), "metrics.jsonl cannot be written: Not a directory; set --run-dir"),
        (("--checkpoint-save-dir", "old/metrics.jsonl"), "Not a directory; set --checkpoint-save-dir"),
    ],
)
def test_what_cannot_be_meant_is_told_before_the_model_is_loaded(cli, model, chats, tmp_path, monkeypatch, args, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anytune.cli.train.load_model", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").touch()
    assert told in cli("train", "-m", model, "-f", chats, *args, code=2).err
