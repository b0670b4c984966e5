"""WGSL as Python templates, a file for each kind of operation. Every function returns a Kernel, the same one for the
same arguments; base.py says what the operations mean, and the NumPy engine's plain.py is the twin to read beside
them."""
