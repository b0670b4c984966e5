"""The wheel works on its own: installed in an empty environment, far from the tree, it trains and llama.cpp agrees."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import tiny

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="builds from the sources")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(wheel, sdist)"""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True, cwd=out
    )
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_it_holds_the_package_and_nothing_else(made):
    wheel, sdist = made
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "anytune"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    missing = {name for name in tracked if (ROOT / name).is_file()} - names
    assert not missing, f"not in the wheel: {sorted(missing)[:10]}"
    assert not [name for name in names if name.startswith(("tests", "bench"))]
    assert any(name.endswith("LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/pyproject.toml") for name in archive.getnames())


def test_an_empty_environment_comes_to_a_verified_adapter(made, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    wheel = f"{made[0]}[verify]"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel], check=True)
    model = tiny.write(tmp_path / "m.gguf", "llama")
    (tmp_path / "chats.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}) + "\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ANYTUNE"))}
    environment["PATH"] = str(programs)  # no compiler, no tools

    def run(*words):
        done = subprocess.run([python, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    train = ("train", "-m", model, "-f", "chats.jsonl", "--max-steps", "1", "-t", "1", "-o", "a.gguf")
    run("-m", "anytune", *train)
    assert (tmp_path / "a.gguf").is_file()
    assert "PASS" in run("-m", "anytune", "verify", "-m", model, "--lora", "a.gguf", "-t", "1")
    assert str(tmp_path / "venv") in run("-c", "import anytune; print(anytune.__file__)")
