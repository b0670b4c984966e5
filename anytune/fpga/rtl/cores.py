"""Every core that can be exported and routed, by name. inner: it is part of another design."""

from __future__ import annotations

from anytune.fpga.rtl.axi import Axi
from anytune.fpga.rtl.dequantizer import Dequantizer
from anytune.fpga.rtl.quantizer import Quantizer
from anytune.fpga.rtl.quantizer_q8_0 import QuantizerQ8

CORES = {"engine": Axi, "dequantizer": Dequantizer, "quantizer": Quantizer, "quantizer_q8_0": QuantizerQ8}
