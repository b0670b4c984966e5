"""How likely a model finds a text: perplexity, distance to another run's distributions, scores of given answers.

windows.py runs packed windows of a text; perplexity.py sums over them; baseline.py keeps a run's distributions in
llama.cpp's file format; choices.py compares endings.
"""

from anytune.likelihood.perplexity import perplexity

__all__ = ["perplexity"]
