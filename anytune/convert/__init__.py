"""A Hugging Face folder becomes a GGUF file: weights as they are, metadata, tokenizer and chat template as llama.cpp's
own converter writes them.

`convert` is the whole; checkpoint.py reads safetensors, names.py, metadata.py and vocabulary.py translate.
"""

from anytune.convert.convert import convert

__all__ = ["convert"]
