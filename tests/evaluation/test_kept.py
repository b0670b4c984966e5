"""An evaluation that is interrupted goes on where it was: the same figures, and nothing answered twice."""

import errno
import json
from types import SimpleNamespace

import pytest

import anytune
import anytune.generation.generate
from anytune.evaluation import answers, kept
from anytune.generation.sampling import Sampling
from tests.support import tiny
from tests.support.adapters import random_adapter

CHATS = [
    ("the rain", "on the sea"),
    ("a wave", "in the west wind"),
    ("say it", "the worst of the rain"),
    ("where", "here"),
]
QUESTIONS = [
    {"question": f"Is it {word}?", "label": label}
    for word, label in (("rain", "yes"), ("wind", "no"), ("the sea", "maybe"), ("a wave", "yes"))
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    model = tiny.write(folder / "tiny.gguf", "llama")
    random_adapter(model, folder / "mine.gguf")
    (folder / "heldout.jsonl").write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}) + "\n"
            for a, b in CHATS
        )
    )
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    return folder


@pytest.fixture
def command(files, cli, tmp_path):
    """Runs a measure with its report at tmp_path/report.json."""

    def run(measure, *more):
        size = ("-n", 6, "-b", 2) if measure != "biomed" else ("-n", 4, "-b", 128)
        data = "questions.jsonl" if measure == "biomed" else "heldout.jsonl"
        return cli(
            "evaluate",
            measure,
            "-m",
            files / "tiny.gguf",
            "--lora",
            files / "mine.gguf",
            "-f",
            files / data,
            "-o",
            tmp_path / "report.json",
            "-t",
            1,
            "--device",
            "numpy",
            *size,
            *more,
        )

    return run


@pytest.fixture
def batches(monkeypatch):
    """(one entry a batch that was decoded, a list that says after how many Ctrl-C comes)."""
    decoded, most, whole = [], [], anytune.generation.generate.decode

    def decode(*args, **how):
        if most and len(decoded) >= most[0]:
            raise KeyboardInterrupt
        decoded.append(1)
        return whole(*args, **how)

    monkeypatch.setattr(anytune.generation.generate, "decode", decode)  # biomed asks for it when it runs
    monkeypatch.setattr(answers, "decode", decode)
    return decoded, most


@pytest.mark.parametrize("measure", ["compare", "style", "biomed"])
def test_an_interrupted_evaluation_goes_on(command, batches, tmp_path, measure):
    decoded, most = batches
    assert command(measure).code == 0
    whole, count = json.loads((tmp_path / "report.json").read_text()), len(decoded)
    assert count >= 4 and not list(tmp_path.glob("*" + kept.SUFFIX))
    (tmp_path / "report.json").unlink()
    decoded.clear()
    most.append(count - 1)
    stopped = command(measure)
    assert stopped.code == 130 and ".answers.jsonl: the same command continues" in stopped.err
    assert not (tmp_path / "report.json").exists()
    decoded.clear()
    most.clear()
    assert command(measure).code == 0
    assert len(decoded) == 1 and json.loads((tmp_path / "report.json").read_text()) == whole
    assert not list(tmp_path.glob("*" + kept.SUFFIX))


def the_file(folder):
    (path,) = folder.glob("report.json.*" + kept.SUFFIX)
    return path


def test_another_evaluation_does_not_take_what_was_kept(command, batches, tmp_path):
    decoded, most = batches
    most.append(3)
    assert command("compare").code == 130
    before = the_file(tmp_path).read_text()
    assert len(before.splitlines()) == 4
    for change in (("--seed", 1), ("-n", 7), ("--stop", "sea"), ("--limit", 3)):
        decoded.clear()
        most[:] = [0]
        assert command("compare", *change).code == 130
        assert not decoded and the_file(tmp_path).read_text() == before  # without an answer nothing is left behind
    decoded.clear()
    most.clear()
    assert command("compare").code == 0 and len(decoded) == 1


@pytest.mark.parametrize(
    "damage, right",
    [(lambda text: text[:-20], 2), (lambda text: text + "{}\n", 3), (lambda text: "nonsense", 0), (lambda text: "", 0)],
)
def test_a_damaged_file_counts_as_far_as_it_is_right(command, batches, tmp_path, damage, right):
    decoded, most = batches
    most.append(3)
    assert command("compare").code == 130
    path = the_file(tmp_path)
    path.write_text(damage(path.read_text()))
    decoded.clear()
    most.clear()
    assert command("compare").code == 0 and len(decoded) == 4 - right


@pytest.mark.parametrize("when", ["at the start", "at the second batch"])
def test_where_nothing_can_be_kept_the_answers_still_come(command, tmp_path, monkeypatch, when):
    synced = []

    def full(*args, **how):
        synced.append(args)
        if when == "at the start" or len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        kept, *(("atomic_write", full) if when == "at the start" else ("os", SimpleNamespace(fsync=full)))
    )
    done = command("compare")
    assert done.code == 0 and done.err.count("answers cannot be saved") == 1 and "No space left" in done.err
    assert json.loads((tmp_path / "report.json").read_text())["prompts"] == len(CHATS)
    assert not list(tmp_path.glob("*" + kept.SUFFIX)) and len(synced) == (1 if when == "at the start" else 2)


def test_an_adapter_that_was_trained_again_is_another(files, tmp_path):
    model = anytune.load(files / "tiny.gguf", threads=1)
    one = anytune.Adapter.load(files / "mine.gguf", model.gguf)
    known = kept.identity(model, {"mine": one})
    assert kept.identity(model, {"mine": anytune.Adapter.load(files / "mine.gguf", model.gguf)}) == known
    next(iter(one.tensors.values()))[0][0, 0] += 1e-6
    assert kept.identity(model, {"mine": one}) != known


def test_without_a_report_nothing_is_written(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = anytune.load(files / "tiny.gguf", threads=1)
    ids = [model.tokenize(text) for text in ("a sea", "on")]
    with kept.Kept() as nothing:
        nothing.begin({})
        assert len(answers.answer(model, None, ids, Sampling(temperature=0), max_tokens=3, kept=nothing)) == 2
    with pytest.raises(KeyboardInterrupt), kept.Kept() as nothing:
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
