"""The merged file says what base and adapter say, or tells by how much it does not."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import anytune
from anytune.extras import install
from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.export.distance import weight_error
from anytune.gguf import GGUF, dequantize
from anytune.gguf.encode import encode
from anytune.llamacpp.judge import llamacpp_logprobs
from anytune.llamacpp.verify import TEXT
from tests.export import pairs
from tests.support import tiny, twin
from tests.support.distributions import kl
from tests.support.require import need


def make(folder, name="llama", kind="F32", **options):
    """(base, adapter file) in `folder`."""
    base = tiny.write(folder / "m.gguf", name, kind)
    pairs.adapter(base, **options).save(folder / "a.gguf")
    return base, folder / "a.gguf"


def merge(folder, *more, base="m.gguf", lora="a.gguf", out="out.gguf"):
    return command(
        [
            "export",
            "merge",
            "-m",
            str(folder / base),
            "--lora",
            str(folder / lora),
            "-o",
            str(folder / out),
            "-t",
            "1",
            "--json",
            *more,
        ]
    )


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_merged_in_float32_is_base_and_adapter_in_both_peers(tmp_path, capsys, name):
    need("xllamacpp"), need("torch").set_num_threads(1)
    peft = need("peft")
    base, lora = make(tmp_path, name, size=0.5)
    assert merge(tmp_path, "--type", "F32") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and told["checks"][0]["limit"] == 1e-5
    (apart,) = llamacpp_logprobs(base, [pairs.IDS], vocab=320, adapter=lora, threads=1)
    (merged,) = llamacpp_logprobs(tmp_path / "out.gguf", [pairs.IDS], vocab=320, threads=1)
    (alone,) = llamacpp_logprobs(base, [pairs.IDS], vocab=320, threads=1)
    assert kl(apart, alone).mean() > 0.05, "the adapter does nothing"
    assert kl(apart, merged).max() < (1e-5 if name == "gemma3" else 1e-8)  # f16 GELU table
    with GGUF.open(base) as gguf:
        anytune.Adapter.load(lora, gguf).save(tmp_path / "peft", gguf)
    theirs = peft.PeftModel.from_pretrained(twin.transformers_model(base), tmp_path / "peft").merge_and_unload()
    assert (
        kl(
            twin.logits(theirs.eval(), pairs.IDS),
            twin.logits(twin.transformers_model(tmp_path / "out.gguf"), pairs.IDS),
        ).max()
        < 1e-8
    )


def test_only_adapted_tensors_change_and_everything_else_stays(tmp_path, capsys):
    base, _ = make(tmp_path, kind="Q8_0", parts=("attn_v",))
    assert merge(tmp_path, "--type", "same", "--no-verify") == 0
    adapter = anytune.Adapter.load(tmp_path / "a.gguf")
    with GGUF.open(base) as before, GGUF.open(tmp_path / "out.gguf") as after:
        assert before.metadata.keys() == after.metadata.keys() and list(before.tensors) == list(after.tensors)
        for name, t in before.tensors.items():
            if name in adapter.tensors:
                a, b = adapter.tensors[name]
                wanted = before.float32(name) + np.float32(adapter.scale) * b @ a
                error = np.abs(after.float32(name) - wanted)
                assert error.max() < 0.51 * np.abs(wanted).max() / 127  # half a step of the largest block
            else:
                assert np.array_equal(after.blocks(name), before.blocks(name))


def test_the_numbers_are_what_they_are_called(tmp_path, capsys):
    base, _ = make(tmp_path, kind="Q4_0", size=0.1)
    assert merge(tmp_path, "--type", "same", "--no-verify") == 0
    (row,) = json.loads(capsys.readouterr().out)["types"]
    adapter = anytune.Adapter.load(tmp_path / "a.gguf")
    lost = size = along = change = 0.0
    with GGUF.open(base) as gguf, GGUF.open(tmp_path / "out.gguf") as merged:
        for name, (a, b) in adapter.tensors.items():
            before, delta = gguf.float32(name).astype(np.float64), adapter.scale * b.astype(np.float64) @ a
            after = dequantize(encode((before + delta).astype(np.float32), "Q4_0"), "Q4_0").astype(np.float64)
            np.testing.assert_allclose(merged.float32(name), after, atol=1e-5)
            lost, size = lost + ((after - before - delta) ** 2).sum(), size + ((before + delta) ** 2).sum()
            along, change = along + ((after - before) * delta).sum(), change + (delta**2).sum()
    assert row["error"] == pytest.approx((lost / size) ** 0.5, rel=1e-3)
    assert row["kept"] == pytest.approx(along / change, rel=1e-3)
    model, out = (anytune.load(p, device="numpy", threads=1) for p in (base, tmp_path / "out.gguf"))
    ids = model.tokenize(TEXT)
    n = min(512, model.config.context, len(ids) // 2)
    found = [
        kl(model.logits(ids[lo : lo + n], adapter)[n // 2 : -1], out.logits(ids[lo : lo + n])[n // 2 : -1])
        for lo in range(0, len(ids) - n + 1, n)
    ]
    assert row["kl"] == pytest.approx(np.concatenate(found).mean(), rel=2e-2)


def test_auto_takes_the_files_own_types_where_they_hold_the_adapter(tmp_path, capsys):
    make(tmp_path, kind="F16", size=0.5)
    assert merge(tmp_path, "--no-verify") == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["type"] for row in told["types"]] == ["same"] and told["taken"]["kl"] < 0.05 * told["adapter_kl"]
    with GGUF.open(tmp_path / "out.gguf") as file:
        assert file.tensors["blk.0.attn_q.weight"].type.name == "F16"


def test_auto_goes_on_to_finer_types_where_they_do_not(tmp_path, capsys):
    make(tmp_path, kind="Q4_0", size=0.06)  # far below a step of four bits
    assert merge(tmp_path, "--no-verify") == 0
    told = json.loads(capsys.readouterr().out)
    rows = told["types"]
    assert rows[0]["type"] == "same" and rows[0]["kl"] > 0.05 * told["adapter_kl"]
    assert [row["taken"] for row in rows] == [False] * (len(rows) - 1) + [True] and len(rows) > 1
    assert rows[-1]["kl"] <= 0.05 * told["adapter_kl"]
    assert [row["bytes"] for row in rows] == sorted(row["bytes"] for row in rows)
    assert rows[-1]["kept"] > 0.9 > 0.8 > rows[0]["kept"]
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.gguf", "m.gguf", "out.gguf"]


def test_compare_measures_and_writes_nothing(tmp_path, capsys):
    make(tmp_path, kind="Q8_0")
    assert (
        command(
            [
                "export",
                "merge",
                "-m",
                str(tmp_path / "m.gguf"),
                "--lora",
                str(tmp_path / "a.gguf"),
                "--compare",
                "--candidates",
                "F32,q4_0,same",
                "-t",
                "1",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[2:] if line] == ["Q4_0", "same", "F32"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_quantized_merge_warns_of_what_it_loses(tmp_path, capsys):
    make(tmp_path, kind="Q4_0", size=0.06)
    assert merge(tmp_path, "--type", "same", "--no-verify") == 0
    assert "of what the adapter does" in capsys.readouterr().err


def test_the_adapters_template_and_its_end_of_turn_go_along(tmp_path, capsys):
    base = tiny.write(tmp_path / "m.gguf", "llama")
    adapter = pairs.adapter(base)
    adapter.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|unused_9|>{% endfor %}"
    adapter.save(tmp_path / "a.gguf")
    with GGUF.open(base) as file:  # make <|unused_9|> a token that a template may name
        from anytune.gguf import write_gguf

        kinds = file.metadata["tokenizer.ggml.token_type"].copy()
        wanted = file.metadata["tokenizer.ggml.tokens"].index("<|unused_9|>")
        kinds[wanted] = 3
        write_gguf(
            tmp_path / "n.gguf",
            file.metadata | {"tokenizer.ggml.token_type": kinds},
            [(n, t.shape, "F32", file.float32(n)) for n, t in file.tensors.items()],
            kinds=file.kinds,
        )
    assert merge(tmp_path, "--type", "same", "--no-verify", base="n.gguf") == 0
    with GGUF.open(tmp_path / "out.gguf") as file:
        assert file.metadata["tokenizer.chat_template"] == adapter.chat_template
        assert file.metadata["tokenizer.ggml.eot_token_id"] == wanted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "o.gguf", "--type", "Q9"], ["Q9", "Q4_K_M"]),
        (["-o", "m.gguf", "--type", "same"], ["another name"]),
        (["-o", "a.gguf/o.gguf"], ["a.gguf is a file"]),
        (["-o", "folder"], ["folder"]),
        ([], ["-o"]),
        (["-o", "o.gguf", "--absorb", "4"], ["--calibration"]),
        (["-o", "o.gguf", "--residual-lora", "r.gguf"], ["--absorb"]),
        (["-o", "o.gguf", "-f", "short.txt"], ["too few"]),
        (["-o", "o.gguf", "--candidates", "Q8_0,Q0"], ["Q0"]),
        (
            ["-o", "o.gguf", "--absorb", "4", "-f", "long.txt", "--residual-lora", "m.gguf"],
            ["m.gguf is the model itself"],
        ),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "short.txt").write_text("so short")
    (tmp_path / "long.txt").write_text(pairs.TEXT)
    before = (tmp_path / "m.gguf").read_bytes()
    assert command(["export", "merge", "-m", "m.gguf", "--lora", "a.gguf", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("anytune: ")
    assert all(word in said for word in words), said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "folder", "long.txt", "m.gguf", "short.txt"]
    assert (tmp_path / "m.gguf").read_bytes() == before


def test_too_little_room_is_said_before_the_work(tmp_path, monkeypatch, capsys):
    from types import SimpleNamespace

    make(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    assert merge(tmp_path, "--type", "same") == 2
    assert "1.0 MiB free" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2


def test_a_peer_that_is_missing_is_told(tmp_path, monkeypatch, capsys):
    make(tmp_path)
    monkeypatch.setattr("anytune.llamacpp.judge.available", lambda: False)
    assert (
        command(
            [
                "export",
                "merge",
                "-m",
                str(tmp_path / "m.gguf"),
                "--lora",
                str(tmp_path / "a.gguf"),
                "-o",
                str(tmp_path / "o.gguf"),
                "--type",
                "same",
            ]
        )
        == 0
    )
    assert f"not verified in llama.cpp: it is not installed: {install('verify')}" in capsys.readouterr().out


def test_a_file_that_computes_something_else_fails(tmp_path, monkeypatch, capsys):
    need("xllamacpp")
    make(tmp_path)
    from anytune.llamacpp import verify

    monkeypatch.setattr(
        verify, "llamacpp_logprobs", lambda *a, vocab, positions, **k: [np.zeros((len(positions[0]), vocab))]
    )
    assert merge(tmp_path, "--type", "same") == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


SLOW = """
import sys, time
from anytune.export import merge
real = merge.Merge.measure
def slow(*args):
    print("measuring", flush=True)
    time.sleep(60)
    return real(*args)
merge.Merge.measure = slow
from anytune.cli.main import main
main(sys.argv[1:])
"""


def test_ctrl_c_leaves_no_half_file(tmp_path):
    make(tmp_path)
    (tmp_path / "out.gguf").write_bytes(b"older")
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SLOW,
            "export",
            "merge",
            "-m",
            str(tmp_path / "m.gguf"),
            "--lora",
            str(tmp_path / "a.gguf"),
            "-o",
            str(tmp_path / "out.gguf"),
            "--json",
            "--force",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"measuring\n"
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    assert sorted(os.listdir(tmp_path)) == ["a.gguf", "m.gguf", "out.gguf"]
    assert (tmp_path / "out.gguf").read_bytes() == b"older"


def test_weight_error_of_the_same_file_is_zero(tmp_path):
    base, _ = make(tmp_path)
    with GGUF.open(base) as file:
        assert weight_error(file, None, file) == {"error": 0.0, "kept": None, "worst": None, "worst_error": 0.0}


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    import errno

    from anytune import files

    def refuse(folder):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "try_writing", refuse)
    with pytest.raises(UserError, match=r"cannot be written: Read-only file system; choose another place\.$"):
        files.check_output(tmp_path / "m.gguf")


def test_rounding_in_llamacpp_is_not_held_against_the_file(tmp_path, monkeypatch):
    """Above the limit beside quantized weights, the file is judged in float32, where the limit is a thousandth."""
    from anytune.export import checks

    asked = []

    def verify(model, adapter, *, exact=False, **_):
        asked.append(exact)
        kl, limit = (3e-9, 1e-5) if exact else (1.1e-2, 1e-2)
        base = {"kl_mean": kl, "kl_max": kl, "limit": limit, "top1_agreement": 1.0, "ok": kl < limit}
        return {"base": base, "ok": base["ok"], "exact_float": exact}

    monkeypatch.setattr(checks, "verify", verify)
    monkeypatch.setattr("anytune.llamacpp.judge.available", lambda: True)
    facts = checks.in_llamacpp(None)
    assert facts["ok"] and asked == [False, True] and facts["rounding_kl"] == 1.1e-2
    said = checks.line(facts)
    assert said.startswith("PASS: llama.cpp in float32 computes the same") and "1.1e-02" in said
    monkeypatch.setattr(
        checks,
        "verify",
        lambda *args, exact=False, **_: {**verify(*args, exact=exact), "ok": False, "exact_float": exact},
    )
    assert checks.line(checks.in_llamacpp(None)).startswith("FAIL")
