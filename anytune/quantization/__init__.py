"""Quantizing a GGUF file: types and mixes by llama.cpp's names, importance matrices, a stream of tensors.

run.py is the command's; rewrite.py writes the file, with new values too; tensor_types.py and mix.py say which tensor
becomes what; imatrix.py and collect.py are about importance.
"""

from anytune.quantization.run import quantize

__all__ = ["quantize"]
