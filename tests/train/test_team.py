"""Several processes that train one model: gloo on this machine's cores, tiny random models.

Run as a program (`python -m tests.train.test_team NAME FOLDER`) it is one of those processes; NAME is a function below.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from anytune.train import checkpoint as ckpt
from anytune.train import team as teams
from tests.support import tiny

ROOT = Path(__file__).parents[2]
WORDS = "the cat sat on a warm stone in the sun and then it went to see the other cat".split()
JOB = {"context": 96, "ubatch": 96, "batch": 288, "epochs": 3, "lr": 5e-3, "val_split": 0.2, "quiet": True,
       "assistant_loss_only": True, "checkpoint_save_steps": 5, "keep_checkpoints": 9}
SAME = ("step", "epoch", "lr", "tokens", "loss_tokens")
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by Linux's /proc")


def write_inputs(folder: Path) -> None:
    """A tiny model of quantized blocks and chats for 12 steps of one to three micro-batches."""
    rng = random.Random(0)
    tiny.write(folder / "model.gguf", "qwen3", type="Q8_0")
    rows = [{"messages": [{"role": "user", "content": " ".join(rng.choices(WORDS, k=4))},
                          {"role": "assistant", "content": " ".join(WORDS[: rng.randint(3, 8)])}]} for _ in range(24)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---- processes ---------------------------------------------------------------------------------------------

def places(rank: int, size: int, port: int) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "PYTHONPATH": path,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def start(command: list[str], folder: Path, size: int = 2) -> list[subprocess.Popen]:
    """The command in `size` processes that are to find each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [subprocess.Popen([sys.executable, "-m", *command], env=places(rank, size, port), cwd=folder, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in range(size)]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """(exit code, what it said) of each."""
    try:
        said = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, out + err) for process, (out, err) in zip(processes, said)]


def together(name: str, folder: Path, size: int = 2) -> list[dict]:
    """What each process's function returned."""
    ends = finish(start(["tests.train.test_team", name, str(folder)], folder, size))
    assert all(code == 0 for code, _ in ends), ends
    return [json.loads(text.splitlines()[-1]) for _, text in ends]


def line(folder: Path, run: str, *more: str) -> list[str]:
    """A training's command line, which takes long enough to be interrupted."""
    return ["anytune", "train", "-m", str(folder / "model.gguf"), "-f", str(folder / "chats.jsonl"), "-c", "96",
            "-ub", "96", "-b", "288", "--num-epochs", "2000", "--assistant-loss-only", "--checkpoint-save-steps", "3",
            "--device", "cpu-torch", "--run-dir", run, *more]


def until(path: Path, rows: int, seconds: float = 40) -> None:
    """Wait for so many lines of metrics."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.read_text().count("\n") >= rows:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come to {rows} lines")


def child(parent: int, rank: int) -> int:
    """The process of this rank among the children of --gpus."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError("it is gone")


# ---- Team itself -------------------------------------------------------------------------------------------

def methods(folder: Path) -> dict:
    import torch

    from anytune.errors import UserError
    team = teams.join(torch.device("cpu"))
    array, tensor = np.full(5, 1.0 + team.rank, np.float32), torch.arange(4.0) * (team.rank + 1)
    team.sum_(array)
    team.sum_(tensor[1:3])
    gathered = torch.zeros((2 * team.size, 3), dtype=torch.uint8)
    team.wait_for(team.gather_(gathered, torch.full((2, 3), team.rank, dtype=torch.uint8)))
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros(0, np.float32)}
    spread = team.spread_arrays(arrays if team.rank == 0 else {})

    def fails():
        raise UserError("no room")

    try:
        heard = team.lead(fails)
    except UserError as error:
        heard = f"{type(error).__name__}: {error}"
    found = {
        "array": array.tolist(), "tensor": tensor.tolist(), "gathered": gathered.tolist(),
        "share": team.share(range(7)), "heard": heard,
        "arrays": {name: value.tolist() for name, value in spread.items()},
        "sums": team.sums([0.1 * (team.rank + 1), 1e16 if team.rank == 1 else 1.0]),
        "nan": str(team.sums([float("nan") if team.rank else 0.0])[0]),
        "any": [team.any(team.rank == 1), team.any(False)], "least": team.least(7 - team.rank),
        "spread": team.spread({"rank": team.rank, "text": "ü", "none": None}), "lead": team.lead(lambda: team.rank)}
    team.wait()
    team.leave()
    again = teams.join(torch.device("cpu"))     # a second training in the same process
    found["again"] = again.sums([1.0])
    again.leave()
    return found


def test_what_every_process_hears(tmp_path):
    found = together("methods", tmp_path, 3)
    for rank, got in enumerate(found):
        assert got["share"] == list(range(7))[rank::3]
        assert got["heard"] == ("UserError: no room" if rank == 0 else "Elsewhere: UserError: no room")
        assert got["array"] == [6.0] * 5 and got["tensor"] == [0.0, 6.0, 12.0, 3.0 * (rank + 1)]
        assert got["gathered"] == [[r] * 3 for r in (0, 0, 1, 1, 2, 2)]
        assert got["arrays"] == {"a": [[0, 1, 2], [3, 4, 5]], "none": []}
        assert got["sums"] == [(0.1 + 0.2) + 0.1 * 3, (1.0 + 1e16) + 1.0] and got["nan"] == "nan"
        assert got["any"] == [True, False] and got["least"] == 5 and got["lead"] == 0 and got["again"] == [3.0]
        assert got["spread"] == {"rank": 0, "text": "ü", "none": None}


def vanish(folder: Path) -> dict:
    """Rank 1 ends without a word, in the middle of things."""
    team = teams.join()
    team.wait()
    if team.rank == 1:
        os._exit(0)
    begin = time.monotonic()
    try:
        team.sums([1.0])
    except teams.Lost as error:
        team.drop()
        return {"lost": str(error), "seconds": time.monotonic() - begin}
    return {}


def test_a_process_that_vanishes_is_noticed(tmp_path):
    (_, text), _ = finish(start(["tests.train.test_team", "vanish", str(tmp_path)], tmp_path))
    got = json.loads(text.splitlines()[-1])
    assert "lost the others" in got["lost"] and got["seconds"] < 5


def hang(folder: Path) -> dict:
    """Rank 0 waits for something that torch knows nothing of, while rank 1 is gone."""
    teams.GRACE = 0.5
    team = teams.join()
    team.wait()
    if team.rank == 1:
        os._exit(0)
    time.sleep(60)
    return {}


def test_a_process_that_waits_in_vain_is_ended(tmp_path):
    (code, text), _ = finish(start(["tests.train.test_team", "hang", str(tmp_path)], tmp_path))
    assert code == 1 and "process 1 of 2 is gone" in text and "Traceback" not in text


def test_one_process_is_no_team(monkeypatch):
    for name in teams.PLACES:
        monkeypatch.delenv(name, raising=False)
    solo = teams.join()
    assert (solo.size, solo.sums([1, 2]), solo.any(True), solo.share([1, 2])) == (1, [1.0, 2.0], True, [1, 2])
    assert teams.local_device("cuda") == "cuda" and solo.lead(lambda: {1: "anything"}) == {1: "anything"}
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert teams.places() == {}
    from anytune.errors import UserError
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="LOCAL_RANK is not"):
        teams.places()
    for name, value in (("LOCAL_RANK", "1"), ("MASTER_ADDR", "here"), ("MASTER_PORT", "x")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="MASTER_PORT=x"):
        teams.places()
    monkeypatch.setenv("MASTER_PORT", "1")
    assert teams.local_device("cuda") == "cuda:1" and teams.local_device("cpu-torch") == "cpu-torch"


# ---- trainings ---------------------------------------------------------------------------------------------

def train(folder: Path, name: str, **changes):
    import anytune
    from anytune.train.finetune import train as run
    lora = anytune.Lora(rank=4, dropout=0.05)
    return run(folder / "model.gguf", folder / "chats.jsonl", device="cpu-torch", lora=lora,
               run_dir=str(folder / name), **{**JOB, **changes})


def trainings(folder: Path) -> dict:
    """One after the other in the same processes: whole, sharded, and from the checkpoint of a lonely run."""
    from anytune.engine.torch import slices
    made, known = {}, []
    real = slices.Slices.__init__

    def noted(self, *args):
        real(self, *args)
        known.append(self)

    slices.Slices.__init__ = noted
    late = []
    resumed = str(folder / "one" / "checkpoints" / "checkpoint_step_00000005")
    for name, changes in (("two", {}), ("one-two", {"resume_from": resumed}),
                          ("shard", {"shard": True, "progress": lambda row: late.append(known[0].late)})):
        run = train(folder, name, **changes)
        made[name] = str(run.adapter_path)
        run.adapter.save(folder / f"{name}-{os.environ['RANK']}.gguf")
    made["late"], made["slices"] = late, len(known)
    return made


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """A folder with the runs one (a single process), two, shard, one-two and two-one."""
    folder = tmp_path_factory.mktemp("jobs")
    write_inputs(folder)
    train(folder, "one")
    found = together("trainings", folder)
    train(folder, "two-one", resume_from=str(folder / "two" / "checkpoints" / "checkpoint_step_00000005"))
    return folder, found


def rows(run: Path) -> list[dict]:
    return [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["two", "shard", "one-two", "two-one"])
def test_the_curve_is_that_of_one_process(jobs, name):
    folder, _ = jobs
    one = rows(folder / "one")
    got = rows(folder / name)
    one = one[-len(got):]
    assert len(got) == (7 if "-" in name else 12)   # a resume in a folder of its own has the rows after it
    for ours, theirs in zip(got, one, strict=True):
        assert [ours[key] for key in SAME] == [theirs[key] for key in SAME]
        for key in ("loss", "grad_norm", "val_loss"):
            assert ours[key] == (theirs[key] and pytest.approx(theirs[key], rel=1e-4)), (ours["step"], key)


@pytest.mark.parametrize("name", ["two", "shard", "one-two"])
def test_every_process_ends_in_the_same_bytes(jobs, name):
    folder, _ = jobs
    first = (folder / name / "adapter.gguf").read_bytes()
    assert first == (folder / f"{name}-0.gguf").read_bytes() == (folder / f"{name}-1.gguf").read_bytes()
    if name == "shard":
        assert first == (folder / "two" / "adapter.gguf").read_bytes()


def test_slices_are_foreseen(jobs):
    late = jobs[1][0]["late"]
    assert jobs[1][0]["slices"] == jobs[1][1]["slices"] == 1
    # the first micro-batch meets every matrix unprepared, forward and backward (the last one twice in a row)
    assert late[0] == 2 * 7 * 2 - 1
    assert late[4] == late[5] == late[6]    # later ones none; an evaluation after step 8 comes and goes unforeseen
    assert late[-1] - late[6] <= 4


def test_a_resume_says_that_sums_round_differently(jobs):
    folder, _ = jobs
    assert "processes 2" in (folder / "one-two" / "train.log").read_text()
    info = ckpt.load(folder / "two" / "checkpoints" / "checkpoint_step_00000010").info
    assert info["engine"]["processes"] == 2 and "processes" not in json.dumps(info["identity"])


# ---- the parent of --gpus ---------------------------------------------------------------------------------

FAMILIES = {    # what each process does -> the job's exit code, how the second ended, words
    "all is well": ("0", "0", 0, 0, ""),
    "asked to stop": ("130", "130", 130, 130, ""),
    "asked to stop while one waits for the others": ("130", "time.sleep(60)", 130, -9, ""),
    "one fails and says why": ("0", "print('anytune: no such file') or 2", 2, 2,
                               "process 1 of 2 ended with exit code 2 (no such file); there is no checkpoint yet."),
    "one is killed while the other waits": ("os.kill(os.getpid(), 9)", "time.sleep(60)", 1, -9,
                                            "process 0 of 2 was ended by SIGKILL; there is no checkpoint yet."),
    "one is gone and the other leaves a word": (
        "told('saved', 'here') or told('ended', 'lost') or 1", "os.kill(os.getpid(), 15)", 1, -15,
        "process 1 of 2 was ended by SIGTERM; the last checkpoint is here: "),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_how_a_family_ends(name, monkeypatch, tmp_path, capsys):
    from anytune.train import launch
    first, second, code, last, words = FAMILIES[name]
    monkeypatch.setattr(launch, "PATIENCE", 1.0)
    family = launch._Family([], 2, "cpu-torch", tmp_path, False)
    family.command = [sys.executable, "-c", f"""
import os, sys, time
rank = int(os.environ["RANK"])
def told(name, text):
    with open(os.path.join(os.environ[{teams.REPORT!r}], f"{{name}}-{{rank}}"), "w") as file:
        file.write(text)
sys.exit(({second}) if rank else ({first}))
"""]
    assert family.run() == code
    said = capsys.readouterr().err
    assert words in said and bool(said) == bool(words)
    assert family.children[1].returncode == last


# ---- from the command line ---------------------------------------------------------------------------------

@linux
def test_a_killed_process_ends_the_job_and_ctrl_c_saves(jobs, tmp_path):
    folder, run = jobs[0], tmp_path / "run"
    command = [sys.executable, "-m", *line(folder, str(run), "--gpus", "2", "--resume-from", "auto")]
    env = {**os.environ, "PYTHONPATH": places(0, 1, 0)["PYTHONPATH"]}
    job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(run / "metrics.jsonl", 5)
    os.kill(child(job.pid, 1), signal.SIGKILL)
    begin = time.monotonic()
    (code, text), = finish([job])
    assert code == 1 and time.monotonic() - begin < 10
    last = text.splitlines()[-1]
    assert "process 1 of 2 was ended by SIGKILL" in last and "--resume-from auto" in last and "Traceback" not in text
    saved = ckpt.newest(run / "checkpoints", print)
    assert saved.step >= 3 and str(saved.path) in last

    job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(run / "metrics.jsonl", saved.step + 4)
    job.send_signal(signal.SIGINT)
    (code, text), = finish([job])
    assert code == 130 and f"Continuing after step {saved.step} " in text and "--resume-from" in text, text
    assert text.count("Stopping after this micro-batch") == 1 and "Traceback" not in text
    after = ckpt.newest(run / "checkpoints", print)
    assert after.step == rows(run)[-1]["step"] > saved.step and (run / "adapter.gguf").exists()


@linux
def test_processes_stop_in_good_order_when_their_parent_is_killed(jobs, tmp_path):
    run = tmp_path / "run"
    job = subprocess.Popen([sys.executable, "-m", *line(jobs[0], str(run), "--gpus", "2")],
                           env={**os.environ, "PYTHONPATH": places(0, 1, 0)["PYTHONPATH"]}, stderr=subprocess.PIPE)
    until(run / "metrics.jsonl", 4)
    children = [child(job.pid, rank) for rank in (0, 1)]
    job.kill()
    job.communicate(timeout=60)     # until the last of them has closed it
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert ckpt.newest(run / "checkpoints", print).step == rows(run)[-1]["step"] and (run / "adapter.gguf").exists()


@linux
def test_ctrl_c_on_one_process_stops_all_and_a_lost_one_is_a_sentence(jobs, tmp_path):
    folder = jobs[0]
    both = start(line(folder, str(tmp_path / "a")), tmp_path)
    until(tmp_path / "a" / "metrics.jsonl", 2)
    both[1].send_signal(signal.SIGINT)
    ends = finish(both)
    assert [code for code, _ in ends] == [130, 130] and ends[1][1] == "", ends
    assert ckpt.newest(tmp_path / "a" / "checkpoints", print).step == rows(tmp_path / "a")[-1]["step"]

    both = start(line(folder, str(tmp_path / "b")), tmp_path)
    until(tmp_path / "b" / "metrics.jsonl", 4)
    both[1].kill()
    code, text = finish(both)[0]
    assert code == 1 and "Traceback" not in text
    assert "lost the others" in text.splitlines()[-1] and "checkpoint_step_0000" in text.splitlines()[-1]


def test_torchrun_starts_the_same(jobs, tmp_path):
    folder = jobs[0]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               *line(folder, str(tmp_path / "run"), "--max-steps", "2", "--lora-rank", "4", "--json")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": places(0, 1, 0)["PYTHONPATH"]}, capture_output=True,
                          text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)     # process 0's alone
    assert facts["step"] == 2 and done.stderr.count("Finished after step 2") == 1
    with open(folder / "one" / "metrics.jsonl") as file:
        assert facts["last"]["loss_tokens"] > 0 and json.loads(file.readline())["loss_tokens"] > 0


def differ(folder: Path) -> dict:
    """Each of these would lead the processes apart, and one then waits for the other."""
    from anytune.errors import UserError
    said = []
    for changes in ({"lr": 6e-3}, {"checkpoint_save_steps": 2}, {"shard": True}):
        try:
            train(folder, "never", **(changes if os.environ["RANK"] == "1" else {}))
        except UserError as error:
            said.append(str(error))
    return {"said": said}


def test_processes_that_were_given_different_things_are_refused(jobs, tmp_path):
    folder = jobs[0]
    zero, one = (found["said"] for found in together("differ", folder))
    names = "--learning-rate (0.005 there, 0.006 here)", "--checkpoint-save-steps (5 there, 2 here)", "--shard (false"
    for said, what in zip(one, names, strict=True):
        assert what in said and "process 1" in said
    assert len(zero) == 3 and all("another process" in said for said in zero)
    assert not (folder / "never").exists()


@pytest.mark.parametrize(("recorded", "asked", "size", "want"), [
    ({}, None, 1, 6), ({"threads": 3}, None, 1, 3), ({"threads": 3}, 6, 1, 6), ({"threads": 3}, None, 2, 4),
    ({"threads": 3, "processes": 2}, None, 2, 3), ({"threads": 3, "processes": 2}, None, 1, 6), ({}, None, 9, 1)])
def test_processes_of_one_machine_share_its_cores(monkeypatch, recorded, asked, size, want):
    from anytune.train import finetune

    class Engine:
        threads = 6     # what a probe found

        def identity(self):
            return {"threads": self.threads}

        def use_threads(self, count):
            self.threads = count

    engine, team = Engine(), teams.Solo()
    team.size = team.local_size = size
    monkeypatch.setattr(finetune, "cores", lambda: 8)
    finetune._same_threads(engine, asked, recorded, team)
    assert engine.threads == want


@pytest.mark.parametrize(("more", "words"), [
    (["--device", "cpu-torch", "--gpus", "1000"], "1000 is more than there is: this machine has"),
    (["--device", "cuda:1", "--gpus", "2"], "--device cuda"),
    (["--shard"], "--gpus N or torchrun"),
    (["--device", "numpy", "--shard"], "--gpus N or torchrun"),
])
def test_mistakes_are_one_sentence(jobs, more, words, capsys, tmp_path, monkeypatch):
    from anytune.cli.main import run
    monkeypatch.chdir(tmp_path)
    assert run([*line(jobs[0], "run")[1:], *more]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_more_gpus_than_there_are(jobs, capsys, tmp_path, monkeypatch):
    import torch

    from anytune.cli.main import run
    monkeypatch.chdir(tmp_path)
    count = torch.cuda.device_count() + 1
    assert run([*line(jobs[0], "run")[1:], "--device", "cuda", "--gpus", str(count)]) == 2
    assert f"--gpus {count} is more than there is" in capsys.readouterr().err


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))), flush=True)
