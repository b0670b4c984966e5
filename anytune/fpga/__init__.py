"""Hardware cores for QLoRA: an open engine that computes forward and backward from one stored copy of the weights.

formats (what enters the array) → schedule (the list of squares) → twin (its arithmetic on a CPU, to the bit) or rtl
(Amaranth, Verilog), driven by simulate. See docs/hardware.md.
"""
