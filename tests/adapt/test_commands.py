"""anytune adapt from the command line, on tiny models: figures are of held-out examples, outputs load in llama.cpp,
interrupted runs end in the same bytes, and what is worse is no success."""

import json

import numpy as np
import pytest

import anytune
import anytune.gguf
from anytune.adapt import fit as fitting
from anytune.adapt.collection import solve
from anytune.adapter.adapter import Adapter
from anytune.cli.main import run as command
from tests.adapt.test_fit import adapter_for
from tests.support import tiny
from tests.support.require import need


@pytest.fixture
def place(tmp_path):
    """A model, an adapter of rank 4 and chats in a folder."""
    path = tiny.write(tmp_path / "m.gguf", "llama")
    adapter_for(anytune.load(path, device="numpy", threads=1), rank=4).save(tmp_path / "a.gguf")
    rng = np.random.default_rng(0)
    for name, low, high in (("chats", 97, 123), ("other", 33, 65)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": "".join(map(chr, rng.integers(low, high, 12)))},
                    {"role": "assistant", "content": "".join(map(chr, rng.integers(low, high, 12)))},
                ]
            }
            for _ in range(30)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def told(capsys, *args, code=0):
    assert command(["adapt", *map(str, args), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def common(place, *more):
    return ["-m", place / "m.gguf", "-t", "1", "--device", "numpy", "-f", place / "chats.jsonl", *more]


def test_distilling_an_adapter(place, capsys):
    need("xllamacpp")
    found = told(
        capsys,
        "distill",
        *common(
            place, "--teacher-lora", place / "a.gguf", "--rank", "4", "-o", place / "o.gguf", "--peft", place / "peft"
        ),
    )
    assert found["success"] and found["recovered"] > 0.99 and found["verified"]["ok"] and found["verified"]["exact"]
    assert found["examples"] == 24 and found["after"]["tokens"] < found["tokens"]
    made = Adapter.load(place / "o.gguf", gguf=anytune.load(place / "m.gguf", device="numpy").gguf)
    assert made.chat_template and made.rank == 4 and (place / "peft" / "adapter_config.json").exists()
    assert not list(place.glob("*.partial"))


def test_a_prompt_with_prompts_that_nobody_answered(place, capsys, monkeypatch):
    monkeypatch.setattr("anytune.adapt.answers.LONGEST", 16)
    (place / "system.txt").write_text("You speak of harbours.")
    (place / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"Say {n}"}) for n in range(6)))
    (place / "shot.jsonl").write_text(json.dumps({"prompt": "hey", "completion": "ho, and ho again"}))
    found = told(
        capsys,
        "distill",
        *common(place)[:6],
        "-f",
        place / "prompts.jsonl",
        "--system-file",
        place / "system.txt",
        "--shots",
        place / "shot.jsonl",
        "-o",
        place / "o.gguf",
        "--rank",
        "4",
        "--steps",
        "2",
        "--no-verify",
    )
    assert "the teacher answered 6" in found["notes"][0] and found["context_tokens"] > 50
    assert found["steps"] == 2 and any("without steps" in name for name in found["plain"])


def test_an_interrupted_run_ends_in_the_same_bytes(place, capsys, monkeypatch):
    args = [
        "adapt",
        "distill",
        *map(str, common(place, "--teacher-lora", place / "a.gguf", "--rank", "2", "--no-verify", "--steps", "1")),
    ]
    assert command([*args, "-o", str(place / "whole.gguf")]) == 0
    real = fitting._product

    def stops(*some):
        if some[0][0].student.number == 1:  # in the second layer
            raise KeyboardInterrupt
        return real(*some)

    monkeypatch.setattr(fitting, "_product", stops)
    assert command([*args, "-o", str(place / "parts.gguf")]) == 130
    assert "--resume" in capsys.readouterr().err and (place / "parts.gguf.partial").exists()
    monkeypatch.setattr(
        fitting, "_product", lambda *some: real(*some) if some[0][0].student.number else pytest.fail("layer 0 again")
    )
    assert command([*args, "-o", str(place / "parts.gguf"), "--ridge", "0.5", "--resume"]) == 2  # another run
    assert "ridge" in capsys.readouterr().err
    assert command([*args, "-o", str(place / "parts.gguf"), "--resume"]) == 0
    assert (place / "parts.gguf").read_bytes() == (place / "whole.gguf").read_bytes()
    assert not (place / "parts.gguf.partial").exists()


def test_what_is_worse_is_no_success(place, capsys, monkeypatch):
    from anytune.adapt import distillation

    def spoilt(model, pairs, *rest):
        made = real(model, pairs, *rest)
        return type(made)({n: (a, -30 * b) for n, (a, b) in made.tensors.items()}, made.rank, made.alpha)

    real = distillation.as_adapter
    monkeypatch.setattr(distillation, "as_adapter", spoilt)
    found = told(capsys, "distill", *common(place, "--teacher-lora", place / "a.gguf", "-o", place / "o.gguf"), code=1)
    assert not found["success"] and found["after"]["kl"] > found["before"]["kl"] and not (place / "o.gguf").exists()


def test_compressing(place, capsys):
    found = told(
        capsys,
        "compress",
        *common(place, "--lora", place / "a.gguf", "--rank", "2", "-o", place / "o.gguf", "--no-verify"),
    )
    plain = found["plain"].get("truncated SVD", found["after"])
    assert found["success"] and found["after"]["kl"] <= plain["kl"] and set(found["ranks"].values()) != {2}
    whole = told(
        capsys,
        "compress",
        *common(place, "--lora", place / "a.gguf", "--rank", "4", "-o", place / "w.gguf", "--no-verify"),
    )
    assert whole["after"]["kl"] < 1e-8  # all of it
    small = told(
        capsys,
        "compress",
        *common(place, "--lora", place / "a.gguf", "--size", "60KiB", "-o", place / "s.gguf", "--no-verify"),
    )
    assert small["parameters"] * 4 <= 60 << 10 and (place / "s.gguf").stat().st_size <= 60 << 10
    more = told(
        capsys,
        "compress",
        *common(place, "--lora", place / "a.gguf", "--size", "70KiB", "-o", place / "t.gguf", "--no-verify"),
    )
    assert more["parameters"] * 4 > 0.9 * (22 << 10) and (place / "t.gguf").stat().st_size <= 70 << 10
    made = Adapter.load(place / "t.gguf")  # pairs have ranks of their own in the file, and the largest in memory
    assert made.rank == max(more["ranks"].values()) and made.n_parameters > more["parameters"]
    assert (
        command(
            [
                "adapt",
                "compress",
                *map(str, common(place, "--lora", place / "a.gguf", "--size", "1KiB", "-o", place / "s.gguf")),
            ]
        )
        == 2
    )


def test_compressing_what_was_tuned(place, capsys):
    from anytune.quantization.rewrite import rewrite

    base = anytune.load(place / "m.gguf", device="numpy").gguf
    changed = {
        name: (lambda lo, hi, w=base.float32(name): (w + 0.1 * np.outer(np.arange(len(w)) % 3 - 1, w[0]))[lo:hi])
        for name in base.tensors
        if name.startswith("blk.1.ffn") and "norm" not in name
    }
    rewrite(base, place / "tuned.gguf", None, values=changed)
    found = told(
        capsys,
        "compress",
        *common(place, "--tuned", place / "tuned.gguf", "--rank", "1", "-o", place / "o.gguf", "--no-verify"),
    )
    assert found["recovered"] > 0.99 and len(found["ranks"]) == 3


def test_repairing(place, capsys):
    from anytune.quantization.run import quantize

    tiny.write(place / "wide.gguf", "llama", "F16", seed=1)
    quantize(place / "wide.gguf", place / "q.gguf", "Q4_0")
    args = [
        "-m",
        place / "q.gguf",
        "--reference",
        place / "wide.gguf",
        "-t",
        "1",
        "--device",
        "numpy",
        "-f",
        place / "chats.jsonl",
        "--no-verify",
    ]
    found = told(capsys, "repair", *args, "--rank", "16", "-o", place / "r.gguf")
    assert found["success"] and found["after"]["kl"] < min(p["kl"] for p in found["plain"].values())
    made = Adapter.load(place / "r.gguf")  # 16 on average: pairs have ranks of their own in the file
    written = anytune.gguf.GGUF.open(place / "r.gguf")
    spent = sum(info.n_elements for info in written.tensors.values())
    most = 16 * sum(a.shape[1] + b.shape[0] for a, b in made.tensors.values())
    assert 0.9 * most < spent <= most and made.rank > 16


def test_merging(place, capsys):
    adapter_for(anytune.load(place / "m.gguf", device="numpy"), rank=4, seed=5).save(place / "b.gguf")
    found = told(
        capsys,
        "merge",
        *common(
            place,
            "--lora",
            place / "a.gguf",
            "--lora",
            place / "b.gguf",
            "-f",
            place / "other.jsonl",
            "--rank",
            "8",
            "-o",
            place / "o.gguf",
            "--no-verify",
        ),
    )
    assert found["success"] and len(found["tasks"]) == 2
    for task in found["tasks"]:
        assert task["after"]["kl"] < task["plain"]["linear merge, rank 8"]["kl"]
    few = common(place, "--lora", place / "a.gguf", "-o", place / "o.gguf")
    assert command(["adapt", "merge", *map(str, few)]) == 2


def test_collecting_and_solving_apart(place, capsys):
    collected = told(
        capsys, "collect", *common(place, "--teacher-lora", place / "a.gguf", "--rank", "4", "-o", place / "s.npz")
    )
    assert collected["success"]
    solved = told(capsys, "solve", place / "s.npz", "-o", place / "o.gguf")
    assert solved["measured"]["after"]["kl"] == collected["after"]["kl"]
    one = told(
        capsys,
        "distill",
        *common(place, "--teacher-lora", place / "a.gguf", "--rank", "4", "-o", place / "d.gguf", "--no-verify"),
    )
    assert one["after"]["kl"] == pytest.approx(collected["after"]["kl"], rel=1e-3)
    ours, theirs = (Adapter.load(place / name) for name in ("o.gguf", "d.gguf"))
    for name, (a, b) in ours.tensors.items():
        wanted = theirs.tensors[name][1] @ theirs.tensors[name][0]
        assert np.abs(b @ a - wanted).max() < 1e-3 * np.abs(wanted).max()
    assert ours.chat_template == theirs.chat_template
    assert told(capsys, "solve", place / "s.npz", "--rank", "2", "-o", place / "p.gguf")["measured"] is None


def stopping(monkeypatch):
    """The fit is interrupted in the second layer; -> a call after which it runs, but never in the first one."""
    real = fitting._product

    def stops(*some):
        if some[0][0].student.number == 1:
            raise KeyboardInterrupt
        return real(*some)

    monkeypatch.setattr(fitting, "_product", stops)
    return lambda: monkeypatch.setattr(
        fitting, "_product", lambda *some: real(*some) if some[0][0].student.number else pytest.fail("layer 0 again")
    )


@pytest.mark.parametrize("kind", ["compress", "collect"])
def test_the_others_end_in_the_same_bytes_too(place, capsys, monkeypatch, kind):
    given = {
        "compress": ["--lora", place / "a.gguf", "--rank", "2", "--no-verify"],
        "collect": ["--teacher-lora", place / "a.gguf", "--rank", "2"],
    }[kind]
    end = {"compress": "gguf", "collect": "npz"}[kind]
    args = ["adapt", kind, *map(str, common(place, *given))]
    whole, parts = place / f"whole.{end}", place / f"parts.{end}"
    assert command([*args, "-o", str(whole)]) == 0
    again = stopping(monkeypatch)
    assert command([*args, "-o", str(parts)]) == 130
    assert parts.with_name(f"{parts.name}.partial").exists() and not parts.exists()
    again()
    if kind == "compress":
        monkeypatch.setattr("anytune.adapt.compression.look_back", lambda *_, **__: pytest.fail("backward again"))
    assert command([*args, "-o", str(parts), "--resume"]) == 0
    assert parts.read_bytes() == whole.read_bytes()
    assert not list(place.glob("*.partial")) and not list(place.glob("*.sums"))


def test_what_is_made_on_the_way_is_kept_on_request(place, capsys):
    need("xllamacpp")
    told(
        capsys,
        "distill",
        *common(
            place,
            "--teacher-lora",
            place / "a.gguf",
            "--rank",
            "4",
            "--steps",
            "1",
            "--intermediate",
            place / "way",
            "-o",
            place / "o.gguf",
            "--no-verify",
        ),
    )
    assert {path.name for path in (place / "way").iterdir()} == {"statistics.npz", "closed-form", "closed-form.gguf"}
    told(capsys, "solve", place / "way" / "statistics.npz", "-o", place / "s.gguf")
    before, solved = (Adapter.load(path) for path in (place / "way" / "closed-form.gguf", place / "s.gguf"))
    for name, (a, b) in before.tensors.items():
        wanted = b @ a
        assert np.abs(solved.tensors[name][1] @ solved.tensors[name][0] - wanted).max() < 1e-3 * np.abs(wanted).max()
    told(
        capsys,
        "compress",
        *common(
            place,
            "--lora",
            place / "a.gguf",
            "--rank",
            "2",
            "--intermediate",
            place / "ways",
            "-o",
            place / "c.gguf",
            "--no-verify",
        ),
    )
    assert (place / "ways" / "truncated-svd" / "adapter_model.safetensors").exists()
    with np.load(place / "ways" / "worth.npz") as file:
        assert all(np.diff(file[name]).max() <= 1e-9 for name in file if name.endswith(".worth"))


def test_damaged_statistics_are_refused(place, capsys):
    told(capsys, "collect", *common(place, "--teacher-lora", place / "a.gguf", "--rank", "2", "-o", place / "s.npz"))
    raw = (place / "s.npz").read_bytes()
    for damaged in (raw[: len(raw) // 2], b"PK" + bytes(100), raw.replace(b'"rank": 2', b'"rank": 0')):
        (place / "bad.npz").write_bytes(damaged)
        with pytest.raises(anytune.UserError):
            solve(place / "bad.npz")
    np.savez(place / "pickled.npz", about=np.array([{}], object))
    with pytest.raises(anytune.UserError):
        solve(place / "pickled.npz")


@pytest.mark.parametrize(
    "wrong,says",
    [
        ([], "no teacher"),
        (["--teacher-model", "other.gguf"], "shape"),
        (["--val-split", "0"], "held out"),
        (["--teacher-lora", "m.gguf"], "not a LoRA adapter"),
    ],
)
def test_what_cannot_be_distilled_is_said(place, capsys, wrong, says):
    tiny.write(place / "other.gguf", "llama-tied")
    args = [str(place / w) if w.endswith(".gguf") else w for w in wrong]
    if "--val-split" in args:
        args += ["--teacher-lora", str(place / "a.gguf")]
    assert command(["adapt", "distill", *map(str, common(place)), *args, "-o", str(place / "o.gguf")]) == 2
    assert says in capsys.readouterr().err
    assert not (place / "o.gguf").exists()


def test_the_same_from_python(place):
    import anytune.adapt

    model = anytune.load(place / "m.gguf", device="numpy", threads=1)
    done = anytune.adapt.distill(
        model,
        place / "chats.jsonl",
        teacher_adapter=Adapter.load(place / "a.gguf"),
        rank=4,
        outputs=anytune.adapt.Outputs(place / "o.gguf", verify=False),
    )
    assert done.success and (place / "o.gguf").exists() and "held-out tokens" in str(done)
    assert done.adapter.rank == 4 and set(anytune.adapt.__all__) >= {"compress", "repair", "merge", "collect", "solve"}
    assert all(callable(getattr(anytune.adapt, name)) for name in anytune.adapt.__all__)


def test_outputs_that_exist_need_force(place, capsys):
    few = [*common(place), "--val-split", "0.5", "--no-verify"]
    one = ["--lora", place / "a.gguf"]
    runs = {
        "distill": [*few, "--teacher-lora", place / "a.gguf", "--rank", "1"],
        "compress": [*few, *one, "--rank", "1"],
        "repair": [*few, "--reference", place / "m.gguf"],
        "merge": [*few, *one, *one, "-f", place / "other.jsonl"],
        "collect": [*few[:-1], "--teacher-lora", place / "a.gguf"],
        "solve": [place / "chats.jsonl"],
    }
    for kind, args in runs.items():
        output = place / ("o.npz" if kind == "collect" else "o.gguf")
        output.write_text("mine")
        assert command(["adapt", kind, *map(str, args), "-o", str(output)]) == 2
        said = capsys.readouterr().err
        assert f"{output} already exists" in said and "--force" in said and output.read_text() == "mine"
    args = ["adapt", "distill", *map(str, runs["distill"]), "-o", str(place / "o.gguf")]
    assert command([*args, "--resume"]) == 2  # nothing to go on from: what is there is something else
    assert command([*args, "--force"]) == 0 and Adapter.load(place / "o.gguf").rank == 1
    for option in ("--peft", "--intermediate"):
        folder = place / option.strip("-")
        assert command([*args, "--force", option, str(place / "a.gguf")]) == 2  # an input
        assert command([*args, "--force", option, str(folder)]) == 0 and any(folder.iterdir())
        assert command([*args[:-1], str(place / "p.gguf"), option, str(folder)]) == 2
        assert f"{folder} already exists" in capsys.readouterr().err
        assert command([*args, "--force", option, str(folder)]) == 0
    (place / "file").write_text("mine")
    assert command([*args[:-1], str(place / "file"), "--force"]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err and (place / "file").read_text() == "mine"
    assert command([*args[:-1], str(place / "new" / "folder" / "a.gguf")]) == 0


@pytest.mark.parametrize("name", ["qwen35", "lfm2"])
def test_a_prompt_into_layers_that_keep_a_state(tmp_path, capsys, name):
    """Written if it is nearer to the teacher, and only then."""
    model = tiny.write(tmp_path / "m.gguf", name)
    (tmp_path / "p.jsonl").write_text(
        "".join(f'{{"prompt": "a{i}", "completion": "b{i}"}}\n' for i in range(12)), "utf-8"
    )
    (tmp_path / "s.txt").write_text("Be kind.", "utf-8")
    words = ["adapt", "distill", "-m", str(model), "-t", "1", "--device", "numpy", "--system", str(tmp_path / "s.txt")]
    code = command([*words, "-f", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "a.gguf"), "--json"])
    found = json.loads(capsys.readouterr().out)
    nearer = found["after"]["kl"] < found["before"]["kl"]
    assert code == (0 if nearer else 1) and (tmp_path / "a.gguf").exists() == nearer
