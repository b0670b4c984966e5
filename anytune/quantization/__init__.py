"""Quantizing a GGUF file: types and mixes by llama.cpp's names, importance matrices, a stream of tensors.

run.py writes the file; mix.py says which tensor becomes what; imatrix.py and collect.py are about importance.
"""

from anytune.quantization.run import quantize

__all__ = ["quantize"]
