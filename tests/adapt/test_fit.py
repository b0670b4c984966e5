"""The sequential fit on tiny models: known changes come back, engines agree, prompts stay apart."""

import dataclasses

import numpy as np
import pytest

import anytune
from anytune.adapt.answers import continued, spoken
from anytune.adapt.batching import batches
from anytune.adapt.data import Context, Reading, read, text_examples
from anytune.adapt.fit import Couple, Recipe, fit
from anytune.adapt.job import Settings, Task, Teacher, as_adapter
from anytune.adapt.measure import distances, measure
from anytune.adapt.steps import gradient_steps
from anytune.adapt.walk import Side
from anytune.adapter.adapter import Adapter
from anytune.generation.generate import decode
from anytune.generation.sampling import Sampling
from tests.support import tiny
from tests.support.require import need, need_bf16_products
from tests.support.webgpu import need_webgpu

WORDS = "The ferry left a little after six, while the harbour was still grey. Mara counted the crates twice. "


def model_of(path, device="numpy", **options):
    return anytune.load(path, device=device, threads=1, **options)


def adapter_for(model, rank=2, size=0.3, seed=0):
    """Random changes of every linear, of the weights' own size."""
    rng = np.random.default_rng(seed)
    tensors = {}
    every = {name for names in model.config.products() for name in names}
    for name, info in model.gguf.tensors.items():
        if name in every:
            out, columns = info.shape
            tensors[name] = (
                rng.standard_normal((rank, columns)).astype(np.float32) / np.float32(columns) ** 0.5,
                (size * rng.standard_normal((out, rank)) / rank**0.5).astype(np.float32),
            )
    return Adapter(tensors, rank, float(rank), False, model.config.architecture)


def examples_of(model, count=60, seed=0):
    """Random tokens: as many directions as the model has."""
    rng = np.random.default_rng(seed)
    text = "".join(map(chr, rng.integers(33, 126, count * 24)))
    return text_examples(model, text, 24, most=count)


def sides(model, task, examples, slots, size=256, **options):
    share = bool(task.teacher.context)
    one, front = batches(examples, size, False, share)
    other, behind = batches(examples, size, True, share)
    return Couple(
        Side(model, one, front, pairs=slots, **options),
        Side(task.teacher.model, other, behind, adapter=task.teacher.adapter, **options),
    )


def fitted(model, teacher, examples, recipe, **options):
    return fit([sides(model, Task(teacher, examples, examples), examples, {}, **options)], recipe)


OTHERS = ("gemma4", "lfm2moe", "qwen35", "qwen35moe", "glm4moe", "gpt-oss", "gemma4-experts", "deepseek2")


@pytest.mark.parametrize("name", OTHERS)
def test_every_kind_of_layer_is_fitted(tmp_path, name):
    """States, experts beside which there is something else, layers that read others' keys, their own embeddings."""
    model = model_of(tiny.write(tmp_path / "m.gguf", name))
    adapter, examples = adapter_for(model, size=0.1), examples_of(model)
    task = Task(Teacher(model, adapter), examples, examples_of(model, 10, seed=1))
    made = as_adapter(model, fitted(model, task.teacher, examples, Recipe(2, 1e-6)))
    assert set(made.tensors) == {name for names in model.config.products() for name in names}
    found = measure(model, task, made, {}, Settings())
    assert found.before.kl > 0.01 and found.after.kl < 1e-4 * found.before.kl


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3-tied", "gemma3"])
def test_an_adapter_comes_back_from_activations_alone(tmp_path, name):
    model = model_of(tiny.write(tmp_path / "m.gguf", name))
    adapter, examples = adapter_for(model, size=0.1 if name == "gemma3" else 0.3), examples_of(model)
    task = Task(Teacher(model, adapter), examples, examples_of(model, 10, seed=1))
    made = as_adapter(model, fitted(model, task.teacher, examples, Recipe(2, 1e-6)))
    found = measure(model, task, made, {}, Settings())
    assert found.before.kl > 0.02 and found.after.kl < (2e-2 if name == "gemma3" else 1e-4) * found.before.kl
    for tensor, (a, b) in made.tensors.items():  # queries and keys matter through attention alone, and little
        if name != "gemma3":
            wanted = adapter.tensors[tensor][1] @ adapter.tensors[tensor][0]
            assert np.abs(b @ a - wanted).max() < 2e-2 * np.abs(wanted).max(), tensor


def test_recomputing_and_any_batches_give_the_same(tmp_path):
    model = model_of(tiny.write(tmp_path / "m.gguf", "qwen3"))
    adapter, examples = adapter_for(model), examples_of(model, 20)
    found = [
        fitted(model, Teacher(model, adapter), examples, Recipe(2, 1e-3), size=size, keep=keep)
        for size, keep in ((64, True), (64, False), (10_000, True))
    ]
    for name, pair in found[0].items():
        whole = pair.b @ pair.a
        for other in found[1:]:
            assert np.abs(whole - other[name].b @ other[name].a).max() < 1e-3 * np.abs(whole).max(), name


@pytest.mark.parametrize("device", ["cpu-bf16", "cpu-torch", "webgpu"])
def test_engines_agree(tmp_path, device):
    {"cpu-bf16": need_bf16_products, "cpu-torch": lambda: need("torch"), "webgpu": need_webgpu}[device]()
    path = tiny.write(tmp_path / "m.gguf", "llama")
    results = {}
    for name in ("numpy", device):
        model = model_of(path, name, **({"dtype": "f32"} if name == "cpu-torch" else {}))
        adapter, examples = adapter_for(model), examples_of(model, 12)
        made = as_adapter(model, fitted(model, Teacher(model, adapter), examples, Recipe(2, 1e-2)))
        task = Task(Teacher(model, adapter), examples, examples_of(model, 4, seed=1))
        results[name] = measure(model, task, made, {}, Settings())
        stepped, _ = gradient_steps(model, task, made, 2, Settings(), rate=1e-3)
        results[name, "steps"] = measure(model, task, stepped, {}, Settings()).after.kl
    loose = 0.15 if device == "cpu-bf16" else 0.01
    assert abs(results[device].before.kl - results["numpy"].before.kl) < loose * results["numpy"].before.kl
    one, other = results["numpy"].after.kl, results[device].after.kl
    assert abs(one - other) < loose * one + (2e-3 if device == "cpu-bf16" else 2e-5)
    assert abs(results["numpy", "steps"] - results[device, "steps"]) < 3 * loose * one + 2e-3
    assert results["numpy"].after.kl < 0.2 * results["numpy"].before.kl


def chats(tmp_path, count=12):
    import json

    path = tmp_path / "chats.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"Say {n} again"},
                        {"role": "assistant", "content": f"{n} and {n * n}, then."},
                    ]
                }
            )
            for n in range(count)
        )
    )
    return path


def test_the_teachers_prompt_is_not_in_the_students_rows(tmp_path):
    model = model_of(tiny.write(tmp_path / "m.gguf", "llama"))
    context = Context(
        "You speak of harbours.", ({"role": "user", "content": "hey"}, {"role": "assistant", "content": "ho"})
    )
    examples, held = read(model, [chats(tmp_path)], Reading(model.template), context, 0.25)
    assert len(examples.examples) == 9 and len(held.examples) == 3
    for example in examples.examples:
        text = model.tokenizer.decode(example.ids.tolist())
        assert "harbours" not in text and "harbours" in model.tokenizer.decode(example.behind.tolist())
        assert np.array_equal(example.ids[-example.own :], example.behind[-example.own :])
        assert example.own == len(example.ids)
    (batch, *_), front = batches(examples.examples, 10_000, True)
    assert "harbours" in model.tokenizer.decode(front.tolist()) and batch.behind == len(front)
    read_by_student = np.concatenate([b.ids for b in batches(examples.examples, 64, False)[0]])
    assert "harbours" not in model.tokenizer.decode(read_by_student.tolist())


@pytest.mark.parametrize("name", ["qwen35moe", "lfm2"])
def test_layers_with_a_state_share_no_beginning(tmp_path, name):
    model = model_of(tiny.write(tmp_path / "m.gguf", name))
    teacher = Teacher(model, None, Context("You speak of harbours, and of little else but harbours."))
    examples = read(model, [chats(tmp_path, 5)], Reading(model.template), teacher.context)[0].examples
    assert not teacher.shares
    found = measure(model, Task(teacher, examples, examples), Adapter({}, 1, 1.0, False, name), {}, Settings())
    side = Side(model, batches(examples, 120, True, False)[0])
    side.through()
    assert found.before.kl > 0 and np.isfinite(side.engine.host(side.hidden(side.walkers[0]))).all()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gemma4", "gemma4-experts", "gpt-oss"])
def test_a_common_beginning_is_as_good_as_one_for_each(tmp_path, name):
    """Keys and values of the beginning, made once, against whole sequences: the same hidden states."""
    model = model_of(tiny.write(tmp_path / "m.gguf", name))
    context = Context("You speak of harbours, and of little else but harbours.")
    examples = read(model, [chats(tmp_path, 5)], Reading(model.template), context)[0].examples
    hidden = []
    for share in (True, False):
        side = Side(model, *batches(examples, 120, True, share))
        side.through()
        hidden.append(np.concatenate([side.engine.host(side.hidden(walker)) for walker in side.walkers]))
    assert len(side.walkers) > 1
    assert np.abs(hidden[0] - hidden[1]).max() < 2e-4 * np.abs(hidden[1]).max()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_answers_behind_a_prompt_that_is_read_once(tmp_path, name):
    model = model_of(tiny.write(tmp_path / "m.gguf", name))
    context = Context("You speak of harbours, and of little else but harbours.")
    teacher = Teacher(model, context=context)
    examples = read(model, [chats(tmp_path, 5)], Reading(model.template), context)[0].examples
    prompts = [example.behind[:-8].tolist() for example in examples]
    greedy = Sampling(temperature=0.0)
    for number, reply in enumerate(spoken(teacher, prompts, greedy, 9)):
        alone: list = []
        list(
            decode(model.decoder(), model.tokenizer, prompts[number : number + 1], greedy, max_tokens=9, replies=alone)
        )
        assert reply.ids == alone[0].ids
    made = continued(teacher, examples, seed=1)
    assert [e.ids.tolist() for e in made] == [e.ids.tolist() for e in continued(teacher, examples, seed=1)]
    assert [e.ids.tolist() for e in made] != [e.ids.tolist() for e in continued(teacher, examples, seed=2)]
    for old, new in zip(examples, made, strict=True):
        cut = int(np.flatnonzero(old.loss)[0])
        assert np.array_equal(new.ids[:cut], old.ids[:cut]) and cut < len(new.ids) <= len(old.ids)
        assert np.array_equal(new.ids[-new.own :], new.behind[-new.own :]) and new.loss[cut:].all()
        assert len(new.ids) - new.own == len(old.ids) - old.own and not new.loss[:cut].any()
    text = examples_of(model, 3)
    assert continued(teacher, text, seed=1) == text


def test_a_prompt_becomes_an_adapter_and_first_tokens_count(tmp_path):
    model = model_of(tiny.write(tmp_path / "m.gguf", "llama"))
    context = Context("You speak of harbours.")
    examples, held = read(model, [chats(tmp_path, 40)], Reading(model.template), context, 0.2)
    task = Task(Teacher(model, context=context), examples.examples, held.examples)
    student = sides(model, task, task.examples, {}).student
    assert all(0 in walker.batch.rows for walker in student.walkers)
    guard = Side(model, batches(text_examples(model, WORDS * 4, 32), 256, False, False)[0], ())
    pairs = fit([sides(model, task, task.examples, {})], Recipe(8, 0.1, 1.0), guard=guard)
    found = measure(model, task, as_adapter(model, pairs), {}, Settings())
    assert found.after.kl < 0.6 * found.before.kl


def test_a_teacher_of_its_own_words_changes_nothing(tmp_path):
    model = model_of(tiny.write(tmp_path / "m.gguf", "llama"))
    examples = examples_of(model, 8)
    pairs = fitted(model, Teacher(model), examples, Recipe(2, 1e-2))
    assert all(np.abs(pair.b @ pair.a).max() < 1e-4 for pair in pairs.values())
    one = sides(model, Task(Teacher(model), examples, examples), examples, {})
    for side in (one.student, one.teacher):
        side.through()
    (found,) = distances(one.teacher, [one.student])
    assert found.kl < 1e-9 and found.top == 1


def test_steps_from_the_closed_form_come_nearer(tmp_path):
    model = model_of(tiny.write(tmp_path / "m.gguf", "qwen3"))
    adapter, examples = adapter_for(model, rank=4), examples_of(model, 16)
    task = Task(Teacher(model, adapter), examples, examples_of(model, 6, seed=3))
    made = as_adapter(model, fitted(model, task.teacher, examples, Recipe(4, 3.0)))
    again, took = gradient_steps(model, task, made, 20, Settings(), rate=3e-3)
    one, other = (measure(model, task, a, {}, Settings()).after.kl for a in (made, again))
    assert took["steps"] == 20 and again.rank == 4 and other < 0.95 * one
    held, _ = gradient_steps(model, task, made, 20, Settings(guard_text=WORDS * 9), rate=3e-3, guard=4.0)
    drift = [measure(model, task, a, {}, Settings(drift_text=WORDS * 9)).drift for a in (again, held)]
    assert drift[1] < drift[0]


def test_a_context_keeps_a_conversations_own_system_message():
    context = Context("Be brief.", ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
    found = context.before([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "c"}])
    assert [m["content"] for m in found] == ["Be brief.\n\nBe kind.", "a", "b", "c"]
    assert not Context() and Context("x") and dataclasses.replace(context, system=None).before([])[0]["content"] == "a"
