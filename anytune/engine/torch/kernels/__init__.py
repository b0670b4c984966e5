"""Triton kernels of the torch engine: the fused operations, and the reading of GGUF blocks.

Imported only where Triton exists; each has a plain torch twin outside this folder.
"""
