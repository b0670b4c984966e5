"""Which type for which tensor: costs measured on a text, a mix chosen within a budget, checked on the whole model.

run.py is the whole way; its text names the steps and their files.
"""

from anytune.quantization.search.run import search

__all__ = ["search"]
