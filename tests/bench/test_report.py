"""doctor --report: one file with devices, checks, speed and versions, that names nobody."""

import getpass
import importlib.metadata
import json
import os
import re
import socket

import anytune
from anytune.benchmark import report
from anytune.benchmark.machine import versions
from tests.cli.conftest import cli  # noqa: F401


def test_the_sources_know_their_version_without_an_installation(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert versions() == {"anytune": anytune.__version__}


def test_the_file_has_all_of_it_and_no_names(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anytune.doctor._engine_names", lambda: ["numpy", "fpga-sim"])
    monkeypatch.setattr(
        "anytune.doctor._engine",
        lambda name, threads: {
            **{"engine": name, "ok": name == "numpy", "operations": [], "seconds": 0.0},
            "problem": f"OSError: {tmp_path}/secret/lib.so is missing",
        },
    )
    cli("doctor", "--report", "r.json", "-t", 1, code=1)
    text = (tmp_path / "r.json").read_text("utf-8")
    made = json.loads(text)
    assert made["format"] == report.FORMAT and made["versions"]["numpy"] and made["machine"]["cpu"]
    assert {row["test"] for row in made["bench"]} == {"train 1x128", "pp128", "tg32"}
    assert all(row["tokens_per_s"] > 0 and row["problem"] is None for row in made["bench"])
    assert {engine["engine"] for engine in made["doctor"]["engines"]} == {"numpy", "fpga-sim"}
    for name in (str(tmp_path), os.path.expanduser("~") + "/", f"/{getpass.getuser()}/"):
        assert name not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
