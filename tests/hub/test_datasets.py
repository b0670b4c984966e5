"""-f hf:owner/dataset: through huggingface_hub against a small server, JSON as it is and Parquet as JSON lines."""

import io
import json
import os
import subprocess
import sys
import threading

import pytest

from anytune.errors import UserError
from anytune.hub.datasets import choose
from tests.hub.test_huggingface import Hub
from tests.support import tiny
from tests.support.require import need

ROWS = [{"prompt": f"why {n}", "completion": "the wind"} for n in range(4)]


def parquet(rows):
    need("pyarrow")
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.fixture
def hub():
    need("huggingface_hub")
    server = Hub({"README.md": b"#"})
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def train(data, hub, home, *more):
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG"))}
    env |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home / "hf"),
        "HOME": str(home),
        "ANYTUNE_HOME": str(home / "own"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    model = tiny.write(home / "m.gguf", "llama")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "anytune",
            "train",
            "-m",
            str(model),
            "-f",
            data,
            "--max-steps",
            "1",
            "-t",
            "1",
            "-o",
            "a.gguf",
            *more,
        ],
        capture_output=True,
        text=True,
        env=env,
        cwd=home,
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_data_set_trains_by_its_name(hub, tmp_path, kind):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    hub.files |= (
        {"data/train.jsonl": lines} if kind == "jsonl" else {"data/train-00000-of-00001.parquet": parquet(ROWS)}
    )
    hub.files["data/test.jsonl"] = b"{}"
    done = train("hf:owner/repo", hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.gguf").is_file() and "4 examples" in done.stderr
    assert any(path.startswith("/datasets/owner/repo/resolve/main/data/train") for _, path, *_ in hub.seen)
    assert not any("test.jsonl" in path for _, path, *_ in hub.seen if "resolve" in path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("hf:owner/repo:none.jsonl", "no such file"),
        ("hf:other/repo", "check the spelling"),
        ("hf:owner/repo:validation", "has no split validation"),
        ("hf:owner", "not of the form"),
        ("hf:owner/repo:bad.parquet", "not give a readable Parquet"),
        ("hf:../repo", "not of the form"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(hub, tmp_path, data, says):
    hub.files |= {"train.jsonl": b"{}", "bad.parquet": b"PAR1 no"}
    done = train(data, hub, tmp_path)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("files", "split", "wanted"),
    [
        (["a.jsonl", "README.md"], None, ["a.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (
            ["data/train-0.parquet", "data/train-1.parquet", "x.jsonl"],
            None,
            ["data/train-0.parquet", "data/train-1.parquet"],
        ),
        (["train.json", "train.parquet"], None, ["train.json"]),
        (["restrained.jsonl", "train.jsonl.gz"], None, ["train.jsonl.gz"]),
    ],
)
def test_which_files_make_a_split(files, split, wanted):
    if wanted[0] == "data/train-0.parquet":
        files = [file for file in files if file != "x.jsonl"]
    assert choose(files, split, "o/r") == wanted


@pytest.mark.parametrize("files", [[], ["README.md"], ["a.jsonl", "b.jsonl"], ["en/train.jsonl", "de/train.jsonl"]])
def test_what_is_not_clear_is_asked_for(files):
    with pytest.raises(UserError, match="hf:o/r has"):
        choose(files, None, "o/r")


def test_a_network_that_is_not_there_is_one_sentence():
    """Whichever HTTP library huggingface_hub has."""
    need("huggingface_hub")
    from anytune.hub.huggingface import sentences

    for library in ("httpx", "httpx2", "requests.exceptions"):
        error = type("ConnectError", (Exception,), {"__module__": library})
        with pytest.raises(UserError, match="cannot be reached"), sentences("o/r", "datasets/"):
            raise error("no name")
