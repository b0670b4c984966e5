"""The NumPy engine: float32 on CPU threads, with Numba kernels where Numba is installed.

engine.py ties it together; linear, attention, loss and decode hold the operations with products in them;
plain.py is the meaning of the elementwise kernels, fast.py and compiled.py their compiled twins.
"""
