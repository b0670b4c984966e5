"""The engine and the cores as Amaranth designs: engine.py, behind AXI in axi.py; verilog.py writes them out."""
