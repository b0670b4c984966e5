"""Every core that can be exported and routed, by name."""

from __future__ import annotations

from anytune.fpga.rtl.axi import Axi

CORES = {"engine": lambda inner=False: Axi(inner)}
