"""Numba code for whole registers: one file an idea, shared by the block formats, their encoders and the CPU engines.

registers.py has the types and what all build on; half.py and exponential.py the two functions that every part needs;
blocks.py and integers.py take bytes to floats and back; vectors.py is arithmetic that also runs as NumPy; pointers.py,
elementwise.py and bf16.py are of the engines' kernels, which take addresses.
"""
