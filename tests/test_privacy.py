"""What does not ask for the network does not touch it: training, generating and exporting with sockets forbidden."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support import tiny

ROOT = Path(__file__).parents[1]
FORBID = """
import sys

def watch(event, args):
    if event.startswith(("socket.", "urllib.", "http.client")):
        print("NETWORK", event, args, file=sys.stderr, flush=True)
        raise PermissionError(f"the network is forbidden here: {event}")

sys.addaudithook(watch)
from anytune.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def quiet(folder, *args):
    done = subprocess.run(
        [sys.executable, "-c", FORBID, *map(str, args)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder)},
    )
    assert "NETWORK" not in done.stderr, done.stderr
    return done


def test_the_whole_way_from_data_to_a_merged_file_needs_no_network(tmp_path):
    model = tiny.write(tmp_path / "m.gguf", "llama")
    (tmp_path / "chats.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}) + "\n"
    )
    for args in (
        ("data", "preview", "-m", model, "-f", "chats.jsonl"),
        ("train", "-m", model, "-f", "chats.jsonl", "--max-steps", "2", "-t", "1", "-o", "a.gguf"),
        ("generate", "-m", model, "--lora", "a.gguf", "-p", "hi", "-n", "3", "-t", "1"),
        ("export", "merge", "-m", model, "--lora", "a.gguf", "-o", "b.gguf", "-t", "1", "--no-verify"),
        ("quantize", "b.gguf", "c.gguf", "Q8_0"),
        ("info", "c.gguf"),
        ("models",),
    ):
        done = quiet(tmp_path, *args)
        assert done.returncode == 0, (args, done.stderr)


def test_the_watch_sees_what_it_is_to_see(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORBID, "pull", "http://127.0.0.1:9/x.gguf"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )
    assert "NETWORK" in done.stderr and done.returncode != 0
