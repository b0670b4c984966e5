"""The Python API: arguments and their errors, data in memory, callbacks, adapters as they are at hand."""

import gc
import inspect
import json
import threading
from pathlib import Path

import numpy as np
import pytest

import anytune
from anytune.words import python_words
from anytune.errors import UserError
from anytune.text.given import Rows, sources
from anytune.train import checkpoint as ckpt
from tests.support import tiny
from tests.support.require import need

SMALL = {"context": 64, "ubatch": 64, "batch": 128, "epochs": 2, "quiet": True}


def rows(count=12):
    return [
        {"messages": [{"role": "user", "content": f"is it {i}"}, {"role": "assistant", "content": f"so it is {i}"}]}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    where = tmp_path_factory.mktemp("api") / "model.gguf"
    tiny.write(where, "llama")
    return where


@pytest.fixture
def model(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with anytune.load(path, device="cpu") as opened:
        yield opened


class Listlike:
    """As a `datasets` object: rows as often as they are asked for."""

    column_names = ("messages",)

    def __init__(self, rows):
        self.rows, self.read = rows, 0

    def __iter__(self):
        self.read += 1
        return iter(self.rows)


def test_rows_in_memory_are_as_good_as_a_file(model, tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()), "utf-8")
    made = [
        anytune.finetune(model, data, **SMALL).path.read_bytes()
        for data in (file, rows(), (row for row in rows()), Listlike(rows()))
    ]
    assert len(set(made)) == 1


def test_a_datasets_object_is_data(model):
    datasets = need("datasets")
    whole = datasets.Dataset.from_list(rows())
    ours = anytune.finetune(model, rows(), val_data=rows(3), max_steps=2, **SMALL)
    theirs = anytune.finetune(model, whole, val_data=whole.select(range(3)), max_steps=2, **SMALL)
    assert ours.path.read_bytes() == theirs.path.read_bytes()
    with pytest.raises(UserError, match="of several splits: give one of them"):
        anytune.finetune(model, datasets.DatasetDict({"train": whole}))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"messages": 3}], "the data, row 1"),
        (rows(2) + [{"nothing": "of use"}], "the data, row 3"),
        ([1, 2], "row 1 is a int"),
        ([], "^the data contains no records"),
        ({"messages": []}, "single dict"),
        (5, "data must be a path"),
        (None, "data must be a path"),
    ],
)
def test_rows_that_cannot_be_used_are_named(model, data, words):
    with pytest.raises(UserError, match=words):
        anytune.finetune(model, data, **SMALL)


def test_deep_rows_are_refused():
    deep = row = {}
    for _ in range(1000):
        row["a"] = row = {}
    with pytest.raises(UserError, match="too deeply"):
        list(sources([deep])[0])
    assert list(Rows([{"a": np.array([1, 2]), "b": (1, {2: np.float32(0.5)})}])) == [
        (1, {"a": [1, 2], "b": [1, {"2": 0.5}]})
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lerning_rate": 1e-3}, "no argument 'lerning_rate': did you mean learning_rate"),
        ({"lr": 1e-3, "learning_rate": 1e-3}, "lr and learning_rate are the same"),
        ({"learning_rate": -1.0}, "^learning_rate must be"),
        ({"epochs": "two"}, "epochs must be a whole number"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"val_data": "x", "val_split": 0.1}, "^Give val_data or val_split, not both"),
        ({"early_stop": 2}, "^early_stop needs .* give val_data or val_split"),
        ({"lora": 8}, "lora is a int"),
        ({"adapter": 3.5}, "adapter cannot be a float"),
        ({"adapter": "nowhere.gguf"}, "no adapter|nowhere.gguf"),
        ({"callbacks": "loss"}, "on_step, on_evaluate, on_checkpoint"),
        ({"callbacks": {"on_epoch": print}}, "'on_epoch'"),
        ({"loss": "some"}, "loss must be"),
        ({"lora": anytune.Lora(modules="attn_x")}, r"Lora\(modules=…\) takes all"),
        ({"overflow": "error", "context": 4, "ubatch": 4}, "tokens, more than the 4 of context"),
        ({"resume_from": "gone"}, "^resume_from gone: there is no such folder"),
    ],
)
def test_mistakes_name_the_argument(model, arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        anytune.finetune(model, rows(), **{**SMALL, **arguments})
    assert "--" not in str(caught.value)


def test_no_call_ends_in_a_bare_error(model):
    for call in (
        lambda: anytune.finetune(3, rows()),
        lambda: anytune.generate(model, "x", max_tokens="many"),
        lambda: anytune.generate(None, "x"),
        lambda: anytune.stream(model, "x", temperatur=1),
        lambda: anytune.Conversation(3),
        lambda: anytune.verify(3),
        lambda: anytune.merge(model, None, "x.gguf"),
        lambda: anytune.export(model, None, "x.gguf", format="pt"),
        lambda: anytune.quantize("nowhere.gguf", "x.gguf", "Q4_0"),
        lambda: anytune.perplexity(model, None),
        lambda: anytune.load(None),
        lambda: anytune.load("nowhere.gguf"),
        lambda: anytune.Lora("16"),
        lambda: anytune.Lora(ranks=3),
        lambda: anytune.Full(optimiser="sgd"),
        lambda: model.logits([1, 2], adapter=5),
    ):
        with pytest.raises(UserError):
            call()


def test_words_of_other_libraries_are_answered(model):
    copied = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none", "task_type": "CAUSAL_LM"}
    assert anytune.Lora(**copied) == anytune.Lora(rank=8, alpha=16.0, modules=["q_proj"])
    with pytest.raises(UserError, match="no argument 'bias'"):
        anytune.Lora(bias="all")
    with pytest.raises(UserError, match="batch is counted in tokens"):
        anytune.finetune(model, rows(), per_device_train_batch_size=4)
    with pytest.raises(UserError, match="temperature=0.0 takes the likeliest"):
        anytune.generate(model, "a", do_sample=False)


def test_flags_become_arguments_and_command_lines_stay():
    said = "Lower -ub or --learning-rate; the same command with --resume-from auto continues (`anytune info -m x`)."
    assert python_words(said) == (
        "Lower ubatch or learning_rate; the same call with resume_from='auto' continues (`anytune info -m x`)."
    )


def test_every_public_name_is_typed_and_documented():
    for name in anytune.__all__[1:]:
        value = getattr(anytune, name)
        assert inspect.getdoc(value), name
        if inspect.isfunction(value):
            for parameter in inspect.signature(value).parameters.values():
                assert parameter.annotation is not parameter.empty, (name, parameter)
                assert parameter.kind is not parameter.VAR_KEYWORD, (name, parameter)
    assert (Path(anytune.__file__).parent / "py.typed").exists()


def test_pefts_words_are_understood(model):
    assert anytune.Lora(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], lora_dropout=0.1, use_rslora=True
    ) == (anytune.Lora(4, 8.0, ["q_proj", "down_proj"], True, dropout=0.1))
    ours = anytune.finetune(model, rows(), lora=anytune.Lora(4, 8.0, "attn_q,ffn_down"), **SMALL)
    words = anytune.Lora(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    theirs = anytune.finetune(
        model, rows(), lora=words, num_epochs=2, **{k: v for k, v in SMALL.items() if k != "epochs"}
    )
    assert ours.path.read_bytes() == theirs.path.read_bytes()
    assert model.generate("x", max_new_tokens=3, temp=0) == model.generate("x", max_tokens=3, temperature=0)
    peft = need("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    assert anytune.finetune(model, rows(), lora=config, **SMALL).path.read_bytes() == ours.path.read_bytes()
    with pytest.raises(UserError, match="use_dora"):
        anytune.finetune(model, rows(), lora=peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]), **SMALL)


def test_the_seed_reaches_the_adapters_start(model):
    starts = []
    for seed in (1, 2, 1):
        run = anytune.finetune(model, rows(), lora=anytune.Lora(rank=4), seed=seed, max_steps=1, lr=1e-9, **SMALL)
        starts.append(next(iter(run.adapter.tensors.values()))[0])
    assert not np.allclose(starts[0], starts[1]) and np.array_equal(starts[0], starts[2])
    own = anytune.finetune(model, rows(), lora=anytune.Lora(rank=4, seed=1), seed=2, max_steps=1, lr=1e-9, **SMALL)
    np.testing.assert_allclose(next(iter(own.adapter.tensors.values()))[0], starts[0], atol=1e-6)


class Watcher:
    def __init__(self, last=99):
        self.steps, self.values, self.files, self.last = [], [], [], last

    def on_step(self, row):
        self.steps.append(row["step"])
        return row["step"] < self.last

    def on_evaluate(self, row):
        self.values.append((row["step"], row["val_loss"]))

    def on_checkpoint(self, path):
        self.files.append(path.name)
        assert path.is_dir()


def test_a_model_that_nobody_holds_leaves_no_threads(model):
    before = set(threading.enumerate())
    loaded = anytune.load(model.gguf.path, device="numpy", threads=3)
    loaded.logits([5, 6, 7])
    own = set(threading.enumerate()) - before
    assert len(own) == 2
    del loaded
    gc.collect()
    for thread in own:
        thread.join(30)
    assert not any(thread.is_alive() for thread in own)


def test_callbacks_are_told_and_can_stop(model):
    calm, watcher = dict(SMALL, epochs=6, val_split=0.2, checkpoint_save_steps=2), Watcher()
    whole = anytune.finetune(model, rows(), callbacks=[watcher], run_name="whole", **calm)
    assert whole.stopped == "finished" and watcher.steps == [row["step"] for row in whole.metrics]
    assert watcher.values == [(r["step"], r["val_loss"]) for r in whole.metrics if r["val_loss"] is not None]
    assert len(watcher.files) == len(watcher.steps) // 2 + len(watcher.steps) % 2
    cut = anytune.finetune(model, rows(), callbacks=Watcher(3), run_name="cut", **calm)
    assert (cut.stopped, cut.step, ckpt.load(cut.checkpoint).step, cut.exit_code) == ("callback", 3, 3, 0)
    assert cut.adapter.rank == 16
    again = anytune.finetune(model, rows(), resume_from=cut.run_dir, **calm)
    assert again.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("error", [RuntimeError("mine"), OSError("mine"), KeyboardInterrupt("mine")])
@pytest.mark.parametrize("event", ["on_step", "on_evaluate", "on_checkpoint"])
def test_a_callback_that_raises_leaves_a_checkpoint(model, event, error):
    def fail(_):
        raise error

    options = dict(SMALL, val_split=0.2, val_every=2, checkpoint_save_steps=2, run_dir="run")
    with pytest.raises(type(error), match="mine"):
        anytune.finetune(model, rows(), callbacks={event: fail}, **options)
    step = 1 if event == "on_step" else 2
    assert ckpt.newest(Path("run/checkpoints"), print).step == step
    assert anytune.Adapter.load("run/adapter.gguf", gguf=model.gguf).rank == 16


def test_adapters_as_they_are_at_hand(model, tmp_path):
    run = anytune.finetune(model, rows(), lora=anytune.Lora(rank=2), learning_rate=0.01, **SMALL)
    other = anytune.finetune(model, rows(5), lora=anytune.Lora(rank=3), learning_rate=0.01, **SMALL)
    run.adapter.save("a.gguf")
    ids = model.tokenize("so it is")
    plain = model.logits(ids, run.adapter)
    for given in (run, "a.gguf", Path("a.gguf"), [run], ["a.gguf"]):
        np.testing.assert_array_equal(model.logits(ids, given), plain)
    text = [anytune.generate(model, "is it", adapter=a, max_tokens=6, temperature=0) for a in (run, "a.gguf", [run])]
    assert len(set(text)) == 1
    assert "".join(anytune.stream(model, "is it", run, max_tokens=6, temperature=0)) == text[0]
    chat = anytune.Conversation(model, "a.gguf", max_tokens=6, temperature=0)
    assert chat.ask("is it") == text[0]
    both = model.logits(ids, [run, other])
    merged = {name: a.T @ b.T * run.adapter.scale for name, (a, b) in run.adapter.tensors.items()}
    assert not np.allclose(both, plain) and merged
    rank = np.linalg.matrix_rank
    from anytune.adapter.resolve import resolve

    summed = resolve([run, "a.gguf", other], model.gguf)
    name = next(iter(summed.tensors))
    delta = [a.scale * a.tensors[name][1] @ a.tensors[name][0] for a in (run.adapter, run.adapter, other.adapter)]
    np.testing.assert_allclose(summed.scale * summed.tensors[name][1] @ summed.tensors[name][0], sum(delta), atol=1e-6)
    assert rank(summed.tensors[name][0]) <= 7


def test_representations_are_one_line(model):
    run = anytune.finetune(model, rows(), max_steps=1, **SMALL)
    for value in (run, run.adapter, model, anytune.Lora(), anytune.Full()):
        assert len(repr(value)) < 300 and "\n" not in repr(value), type(value)
    assert "rank 16" in repr(run.adapter) and "finished at step 1 of 1" in repr(run)
