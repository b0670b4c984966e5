"""anytune quantize: the file as a whole, mistakes, interruption."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.gguf import GGUF, dequantize, write_gguf
from anytune.gguf.encode import encode
from anytune.quantization import quantize
from anytune.quantization.imatrix import write_imatrix
from tests.support import tiny
from tests.support.require import need


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small Llama whose rows have 256 weights."""
    path = tmp_path_factory.mktemp("model") / "f32.gguf"
    shape = tiny.Shape("llama", layers=8, width=256, heads=4, kv_heads=2, head_dim=64, ff=256)
    rng = np.random.default_rng(0)
    tensors = [
        (name, dims, "F32", ((kind == "norm") + scale * rng.standard_normal(dims)).astype(np.float32))
        for name, (dims, scale, kind) in tiny.tensor_table(shape).items()
    ]
    write_gguf(path, tiny.metadata(shape, "llama"), tensors)
    return path


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_K_M", "Q2_K", "IQ4_NL", "Q1_0", "Q2_0", "TQ1_0", "MXFP4"])
def test_every_tensor_is_what_the_plan_says(model, tmp_path, kind):
    facts = quantize(model, tmp_path / "out.gguf", kind, threads=2)
    with GGUF.open(model) as before, GGUF.open(tmp_path / "out.gguf") as after:
        assert list(after.tensors) == list(before.tensors)
        for t in facts["tensors"]:
            rows = before.float32(t["name"]).reshape(-1, t["shape"][-1])
            assert after.tensors[t["name"]].type.name == t["to"]
            assert np.array_equal(after.blocks(t["name"]), encode(rows, t["to"]))
        changed = {"general.file_type", "general.quantization_version"}
        assert all(np.array_equal(after.metadata[key], value) for key, value in before.metadata.items())
        assert set(after.metadata) - set(before.metadata) == changed
        assert facts["bytes_after"] == sum(t.nbytes for t in after.tensors.values())


def test_llama_cpp_reads_what_was_written(model, tmp_path):
    need("xllamacpp")
    from anytune.llamacpp.judge import llamacpp_logprobs
    import anytune

    ids = list(range(5, 45))
    for kind in ("Q4_K_M", "Q3_K_S", "Q6_K", "Q2_K", "Q5_K_S", "IQ4_NL", "IQ4_XS", "Q1_0", "Q2_0", "TQ2_0", "MXFP4"):
        path = tmp_path / f"{kind}.gguf"
        quantize(model, path, kind)
        theirs = llamacpp_logprobs(path, [ids], vocab=320, threads=1)[0].astype(np.float64)
        logits = anytune.load(path, device="numpy", threads=1).logits(ids).astype(np.float64)
        ours = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        kl = (np.exp(ours) * (ours - theirs)).sum(axis=1)
        assert kl.mean() < 2e-2, kind  # llama.cpp rounds activations to 8 bits


def test_threads_do_not_change_a_byte(model, tmp_path):
    quantize(model, tmp_path / "1.gguf", "Q4_K_S", threads=1)
    quantize(model, tmp_path / "5.gguf", "Q4_K_S", threads=5)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "5.gguf").read_bytes()


def test_progress_ends_at_all_weights(model, tmp_path):
    seen = []
    quantize(model, tmp_path / "out.gguf", "Q8_0", progress=lambda done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert done == sorted(done) and seen[-1][0] == seen[-1][1] == sum(
        t.n_elements for t in GGUF.open(model).tensors.values()
    )


def formats(path):
    with GGUF.open(path) as file:
        return {name: t.type.name for name, t in file.tensors.items()}


def test_overrides_and_options(model, tmp_path):
    out = tmp_path / "out.gguf"
    overrides = [(r"attn_v|blk\.[01]\.ffn_up", "q6_k"), ("ffn_up", "Q5_1")]
    quantize(model, out, "Q4_K_S", overrides=overrides, embedding="BF16", output="Q8_0")
    found = formats(out)
    assert {found[f"blk.{i}.attn_v.weight"] for i in range(8)} == {"Q6_K"}
    assert [found[f"blk.{i}.ffn_up.weight"] for i in range(3)] == ["Q6_K", "Q6_K", "Q5_1"]
    assert (found["token_embd.weight"], found["output.weight"]) == ("BF16", "Q8_0")
    assert found["blk.0.attn_norm.weight"] == "F32"
    quantize(model, out, "Q4_K_M", pure=True, keep_output=True)
    found = formats(out)
    assert found.pop("output.weight") == "F32"
    assert {found[name] for name in found if "norm" not in name} == {"Q4_K"}


def test_experts_have_an_importance_each(tmp_path):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 8, 256)).astype(np.float32)
    write_gguf(
        tmp_path / "in.gguf", {"general.architecture": "llama"}, [("blk.0.ffn_up_exps.weight", x.shape, "F32", x)]
    )
    sums = np.exp(2 * rng.standard_normal((3, 256))).astype(np.float32)
    name = "blk.0.ffn_up_exps.weight"
    write_gguf(
        tmp_path / "im.gguf",
        {"general.type": "imatrix"},
        [
            (name + ".in_sum2", sums.shape, "F32", sums * 64),
            (name + ".counts", (3, 1), "F32", np.full((3, 1), 64, np.float32)),
        ],
    )
    quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q3_K_S", imatrix=tmp_path / "im.gguf")
    with GGUF.open(tmp_path / "out.gguf") as file:
        got = file.blocks(name).reshape(3, 8, -1)
    scaled = sums / sums.mean()
    for expert in range(3):
        assert np.array_equal(got[expert], encode(x[expert], "Q3_K", np.maximum(scaled[expert], 1e-5)))
    assert not np.array_equal(got[1], encode(x[1], "Q3_K", scaled[0]))


def test_importance_lowers_the_error_that_it_weighs(model, tmp_path):
    name = "blk.3.ffn_down.weight"
    with GGUF.open(model) as file:
        sums = {
            n: np.exp(2 * np.random.default_rng(3).standard_normal(t.shape[-1]))
            for n, t in file.tensors.items()
            if n.startswith("blk.") and len(t.shape) == 2
        }
        x = file.float32(name)
    write_imatrix(tmp_path / "im.gguf", sums, dict.fromkeys(sums, 512), ["some.txt"], 1, 512)
    errors = []
    for imatrix in (None, tmp_path / "im.gguf"):
        quantize(model, tmp_path / "out.gguf", "Q4_K_S", imatrix=imatrix, overrides=[(name, "Q3_K")])
        with GGUF.open(tmp_path / "out.gguf") as file:
            errors.append((sums[name] * (dequantize(file.blocks(name), "Q3_K") - x) ** 2).sum())
            extra = {key for key in file.metadata if key.startswith("quantize.imatrix")}
    assert errors[1] < 0.85 * errors[0]
    assert len(extra) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.gguf", "o.gguf", "Q4_0"], ["missing.gguf"]),
        (["{model}", "o.gguf", "Q4_9"], ["Q4_9", "Q4_K_M"]),
        (["{model}", "o.gguf"], ["IN OUT TYPE"]),
        (["{model}", "{model}", "Q4_0"], ["another name"]),
        (["{model}", "{model}/o.gguf", "Q4_0"], ["cannot be written"]),
        (["{model}", ".", "Q4_0"], ["folder"]),
        (["{model}", "o.gguf", "Q4_0", "--imatrix", "gone.gguf"], ["gone.gguf"]),
        (["{model}", "o.gguf", "Q4_0", "--imatrix", "{model}"], ["not an importance matrix"]),
        (["{model}", "o.gguf", "Q4_0", "--tensor-type", "attn_v"], ["PATTERN=TYPE"]),
        (["{model}", "o.gguf", "Q4_0", "--tensor-type", "(=Q8_0"], ["pattern"]),
        (["{model}", "o.gguf", "Q4_0", "--tensor-type", "attn_v=Q9"], ["Q9"]),
        (["{model}", "o.gguf", "Q4_0", "--tensor-type", "attn_w=Q8_0"], ["attn_w"]),
    ],
)
def test_mistakes_are_told_in_a_sentence(model, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert command(["quantize", *(a.format(model=model) for a in arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("anytune: ") and said.count("\n") == 1
    assert all(word in said for word in words), said
    assert not list(tmp_path.iterdir())


def test_a_quantized_file_is_not_rounded_again_unasked(model, tmp_path):
    quantize(model, tmp_path / "q8.gguf", "Q8_0")
    with pytest.raises(UserError, match="--allow-requantize"):
        quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0")
    assert not (tmp_path / "q4.gguf").exists()
    quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0", requantize=True)
    quantize(tmp_path / "q8.gguf", tmp_path / "same.gguf", "Q8_0")  # nothing is rounded
    with GGUF.open(tmp_path / "q8.gguf") as a, GGUF.open(tmp_path / "same.gguf") as b:
        assert all(np.array_equal(a.blocks(name), b.blocks(name)) for name in a.tensors)


def test_an_imatrix_of_another_model(model, tmp_path):
    write_imatrix(tmp_path / "im.gguf", {"blk.0.attn_q.weight": np.ones(64)}, {"blk.0.attn_q.weight": 5}, ["t"], 1, 512)
    with pytest.raises(UserError, match="another model"):
        quantize(model, tmp_path / "out.gguf", "Q4_0", imatrix=tmp_path / "im.gguf")


def test_weights_that_are_no_numbers(tmp_path):
    x = np.ones((4, 256), np.float32)
    x[2, 9] = np.nan
    write_gguf(tmp_path / "in.gguf", {"general.architecture": "llama"}, [("blk.0.ffn_up.weight", x.shape, "F32", x)])
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight"):
        quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_K_S")
    assert os.listdir(tmp_path) == ["in.gguf"]


def test_weights_beyond_half_precision(tmp_path):
    x = np.full((2, 256), 7e4, np.float32)
    write_gguf(tmp_path / "in.gguf", {"general.architecture": "llama"}, [("blk.0.ffn_up.weight", x.shape, "F32", x)])
    with pytest.raises(UserError, match="BF16"):
        quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "F16")
    quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "BF16")


def test_a_disk_that_fills_leaves_nothing(model, tmp_path, monkeypatch):
    import errno

    from anytune.gguf import writer

    real, calls = writer._write_tensor, []

    def full(*args):
        calls.append(1)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)

    monkeypatch.setattr(writer, "_write_tensor", full)
    with pytest.raises(UserError, match="No space"):
        quantize(model, tmp_path / "out.gguf", "Q8_0")
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_said_before_the_work(model, tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(UserError, match=r"1\.0 MiB free"):
        quantize(model, tmp_path / "out.gguf", "Q8_0", progress=lambda *_: pytest.fail("it has begun"))


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, or under nohup, some are ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from anytune.quantization import rewrite as run
real = run._portion
def slow(*args):
    time.sleep(0.2)
    return real(*args)
run._portion = slow
from anytune.cli.main import main
print("ready", flush=True)
main(sys.argv[1:])
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_request_to_stop_leaves_no_half_file(model, tmp_path, name):
    target = tmp_path / "out.gguf"
    target.write_bytes(b"older")
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, "quantize", str(model), str(target), "Q8_0", "-t", "1", "--force"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)  # until the temporary file is there
    child.send_signal(getattr(signal, name))
    assert child.wait(60) == 130
    assert b"interrupted" in child.stderr.read()
    assert os.listdir(tmp_path) == ["out.gguf"] and target.read_bytes() == b"older"


def test_memory_stays_far_below_the_model(tmp_path):
    """One tensor of 256 MiB: the process must not hold it, nor the 136 MiB that it becomes."""
    path = tmp_path / "in.gguf"
    part = np.random.default_rng(0).standard_normal((1 << 12, 1024)).astype(np.float32)
    write_gguf(
        path,
        {"general.architecture": "llama"},
        [("blk.0.ffn_up.weight", (1 << 16, 1024), "F32", lambda: (part.view(np.uint8) for _ in range(16)))],
    )
    code = (
        "import resource, sys\nfrom anytune.quantization import quantize\nfrom anytune.gguf.encode import encode\n"
        "import numpy as np\nencode(np.ones((4, 256), np.float32), 'Q8_0')\n"
        "from anytune.gguf.kernels import KERNELS; KERNELS['F32']\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "quantize(sys.argv[1], sys.argv[2], 'Q8_0', output='Q8_0', threads=2)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path, tmp_path / "out.gguf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60 << 10  # KiB; the portions in work are 2 threads' and 4 waiting ones


def test_a_dry_run_writes_nothing(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(["quantize", str(model), "Q4_K_M", "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] is None and not list(tmp_path.iterdir())
    quantize(model, "out.gguf", "Q4_K_M")
    with GGUF.open("out.gguf") as file:
        assert {t["name"]: t["to"] for t in facts["tensors"]} == {n: t.type.name for n, t in file.tensors.items()}
        assert facts["bytes_after"] == sum(t.type.row_bytes(t.shape[-1]) * t.rows for t in file.tensors.values())
