"""anytune bench: every number is of what it says, failures and Ctrl-C lose nothing, and the JSON names nobody."""

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import anytune
from anytune.benchmark import document, cases, run
from anytune.benchmark.cases import Cell, Settings, Test
from anytune.benchmark.work import work
from tests.cli.conftest import cli, model  # noqa: F401 (fixtures)
from tests.support.require import need

ROOT = Path(__file__).parents[2]
SMALL = ("-p", "8", "-n", "3", "--train", "2x8", "-r", "3", "-t", "1", "--lora-rank", "2", "--device", "numpy")


def test_what_is_measured_is_told(cli, model, tmp_path):
    save = tmp_path / "here.json"
    outcome = cli("bench", "-m", model, *SMALL, "-npl", "2", "-d", "4", "-o", save, code=0)
    shown = json.loads(save.read_text())
    assert [r["test"] for r in shown["results"]] == ["train 2x8", "pp8 @ d4", "tg3 x2 @ d4"]
    for row in shown["results"]:
        assert row["problem"] is None and (row["device"], row["threads"], len(row["rounds"])) == ("numpy", 1, 3)
        assert 0 < row["min"] <= row["tokens_per_s"] <= row["max"] and row["peak_bytes"] > 20 << 20
        assert row["test"] in outcome.out
    train = shown["results"][0]
    # the peak of so small a model is that of the start
    assert 20 << 20 < train["estimate_bytes"] < 1.4 * train["peak_bytes"] and train["how"]
    assert shown["models"][0]["type"] == "F32" and len(shown["models"][0]["sha256"]) == 64
    assert not shown["interrupted"] and document.load(save)["results"]
    # as another person would give it, and as this program takes it
    words = shown["command"].split()
    assert words[:4] == ["anytune", "bench", "-m", model.name] and words[-2:] == ["-o", "here.json"]
    from anytune.cli.bench import bench

    assert bench.make_context("bench", words[2:]).params["repeats"] == 3
    names = {getpass.getuser(), socket.gethostname(), str(tmp_path), str(model.parent), str(Path.home())} - {"root"}
    assert not [name for name in names if name in save.read_text()]


def test_a_failed_cell_is_a_sentence_and_the_others_are_measured(cli, model):
    outcome = cli(
        "bench",
        "-m",
        model,
        "--device",
        "webgpu:99",
        "--device",
        "numpy",
        "-p",
        "4",
        "-n",
        "0",
        "--train",
        "0",
        "-t",
        "1",
        "-r",
        "1",
        code=1,
    )
    assert "failed" in outcome.out and "webgpu:99, pp4: " in outcome.out
    rows = [line for line in outcome.out.splitlines() if "| pp4" in line]
    assert len(rows) == 2 and "numpy" in rows[1] and "failed" not in rows[1]
    outcome = cli(
        "bench", "-m", model, "-p", "0", "-n", "100000", "--train", "4x8", "-ub", "4", "-t", "1", "--json", code=1
    )
    problems = [row["problem"] for row in outcome.json["results"]]
    assert "-ub 4" in problems[0] and "context" in problems[1] and all(str(model) not in p for p in problems)


CHILDREN = {  # what the process does after two rounds -> words of the problem
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "killed by SIGSEGV",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "when memory runs out",
    "raise ValueError('no such thing')": "exit code 1: ValueError: no such thing",
    'print(\'{"refused": "no room in /home/someone/models/a.gguf today."}\')': "no room in a.gguf today.",
    "import time; time.sleep(60)": "more than the 2 s of --timeout",
    "": "exit code 0",
}


def fake(monkeypatch, end: str) -> None:
    """A process that says it is ready, does two rounds, and then this."""
    script = f"""
import json, sys
job = json.loads(sys.stdin.readline())
print("noise")
print(json.dumps({{"ready": {{"engine": "numpy", "threads": 1}}}}))
for s in (0.5, 0.25):
    print(json.dumps({{"seconds": s}}), flush=True)
{end}
"""
    monkeypatch.setattr(run, "CHILD", ["-c", script])


@pytest.mark.parametrize("end", CHILDREN)
def test_how_a_process_may_end(monkeypatch, end):
    fake(monkeypatch, end)
    made = document.begin(["anytune", "bench"], Settings(), [])
    cell = Cell(Path("/home/someone/a.gguf"), "auto", None, Test("prompt", 10))
    assert run.measure(
        [cell, cell],
        Settings(repeats=2, timeout=2 if "sleep" in end else None),
        lambda row: document.add(made, row, cell.model),
    )
    assert len(made["results"]) == 2
    for row in made["results"]:
        assert CHILDREN[end] in row["problem"] and row["tokens_per_s"] is None and row["device"] == "numpy"
        assert "someone" not in json.dumps(row)


def test_an_interrupt_keeps_the_rounds_under_way(monkeypatch):
    fake(monkeypatch, "import time; time.sleep(60)")
    rows, cells = [], [Cell(Path("a.gguf"), "numpy", 1, Test("prompt", n)) for n in (10, 20)]

    def progress(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    assert not run.measure(cells, Settings(repeats=5), rows.append, progress)
    assert [row["test"] for row in rows] == ["pp10"] and rows[0]["rounds"] == [20.0, 40.0]
    assert rows[0]["problem"] is None and rows[0]["tokens_per_s"] == 30.0 and rows[0]["mad"] == 10.0


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_prints_and_saves_what_there_is(model, tmp_path, number):
    command = [
        sys.executable,
        "-m",
        "anytune",
        "bench",
        "-m",
        str(model),
        "-p",
        "8",
        "-n",
        "0",
        "--train",
        "0",
        "-r",
        "20000",
        "-t",
        "1",
        "--device",
        "numpy",
        "-o",
        str(tmp_path / "here.json"),
    ]
    job = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert "10 %" in job.stderr.readline()
    job.send_signal(number)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 130 and "Traceback" not in err and "Interrupted" in out and "| pp8" in out
    saved = document.load(tmp_path / "here.json")
    assert saved["interrupted"] and 2000 <= len(saved["results"][0]["rounds"]) < 20000


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by Linux's /proc")
def test_nothing_is_left_of_a_killed_one(model):
    command = [
        sys.executable,
        "-m",
        "anytune",
        "bench",
        "-m",
        str(model),
        "-p",
        "8",
        "-n",
        "0",
        "--train",
        "0",
        "-r",
        "1000000",
        "-t",
        "1",
        "--device",
        "numpy",
    ]
    job = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    children, end = "", time.monotonic() + 60
    while not children and time.monotonic() < end:
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().strip()
        time.sleep(0.02)
    job.kill()
    job.wait()
    while Path(f"/proc/{children}/exe").exists() and time.monotonic() < end:  # one that ended has none
        time.sleep(0.02)
    assert children and not Path(f"/proc/{children}/exe").exists()


def test_rounds_do_what_they_count(model):
    """Steps move the adapter, prompts and generations fill the cache from the same depth each time."""
    loaded = anytune.load(model, threads=1)
    fed = []
    for test in (Test("prompt", 9, 1, 5), Test("generate", 4, 3, 5)):
        task = work(loaded, test, Settings())
        right = task.decoder.feed
        task.decoder.feed = lambda tokens, right=right: fed.append(sum(map(len, tokens))) or right(tokens)
        for _ in range(2):
            fed.clear()
            assert task.round() > 0
            assert sum(fed) == test.count and task.decoder.lengths == [test.context] * test.examples
        assert len(fed) == (1 if test.kind == "prompt" else 4)
    task = work(loaded, Test("train", 8, 5), Settings(rank=2, ubatch=17))
    assert [len(b.starts) - 1 for b in task.batches] == [2, 2, 1] and task.loss_tokens == 5 * 4
    task.warm()
    task.steps, before = 3, (task.step, task.mean_loss())
    task.round()
    assert task.step == before[0] + 3 and task.mean_loss() < before[1]


def test_llama_cpp_is_measured_too(cli, model):
    need("xllamacpp")
    outcome = cli(
        "bench",
        "-m",
        model,
        "-p",
        "600",
        "-n",
        "3",
        "--train",
        "1x8",
        "-r",
        "1",
        "-t",
        "1",
        "-npl",
        "2",
        "-d",
        "4",
        "--device",
        "numpy",
        "--peer",
        "llama.cpp",
        "--json",
    )
    rows = {(r["device"], r["test"]): r for r in outcome.json["results"]}
    assert ("llama.cpp", "train 1x8") not in rows
    assert rows["llama.cpp", "tg3 x2 @ d4"]["tokens_per_s"] > 0 and rows["numpy", "tg3 x2 @ d4"]["tokens_per_s"] > 0
    short = {device: rows[device, "pp600 @ d4"]["problem"] for device in ("numpy", "llama.cpp")}
    assert short["numpy"] == short["llama.cpp"] and "context" in short["numpy"]


def test_llama_cpp_computes_what_is_counted(model):
    need("xllamacpp")
    code = """
import sys
import time
from pathlib import Path
from anytune.benchmark.llamacpp import LlamaCpp
from anytune.benchmark.cases import Settings, Test
for test in (Test("prompt", 30, 1, 7), Test("generate", 5, 3, 7)):
    one = LlamaCpp(Path(sys.argv[1]), "llama.cpp", 1, test, Settings())
    one.start()
    for _ in range(2):
        assert one.round() > 0
        last = [one.lib.llama_memory_seq_pos_max(one.held, n) for n in range(test.examples)]
        assert last == [test.context - 1] * test.examples
    print("fine", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.count("fine") == 2, done.stderr


def test_all_combinations_once():
    found = cases.tests(["1x8", "0", "4x8"], [5, 0], [6], [0, 3], [1, 4])
    assert [t.name for t in found] == [
        "train 1x8",
        "train 4x8",
        "pp5",
        "tg6",
        "tg6 x4",
        "pp5 @ d3",
        "tg6 @ d3",
        "tg6 x4 @ d3",
    ]
    cells = cases.cells([Path("a"), Path("b")], ["auto", "cuda"], [1, 2], found[:3], True)
    assert len(cells) == 2 * (2 * 3 + 3 + 2 * 1)  # a GPU once; of llama.cpp no training
    assert {c.threads for c in cells if c.device == "cuda"} == {None}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "name one with -m"),
        (("--train", "0", "-p", "0", "-n", "0"), "Nothing is left to measure"),
        (("--train", "8"), "examples x tokens"),
        (("--train", "1x1"), "two at least"),
        (("--train", "99999999x2"), "examples x tokens"),
        (("-p", "8,x"), "not a number"),
        (("-npl", "0"), "not between 1"),
        (("--device", "abacus"), "there is no device 'abacus'"),
        (("-o", "there.txt"), "already exists"),
    ],
)
def test_mistakes_are_one_sentence(cli, model, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").write_text("my only copy")
    outcome = cli("bench", *(("-m", model) if args else ()), *args, code=2)
    assert words in outcome.err and outcome.err.count("\n") == 1
    assert (tmp_path / "there.txt").read_text() == "my only copy"
