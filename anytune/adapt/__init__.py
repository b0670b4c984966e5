"""Adapters without gradients: closed forms from activations.

statistics.py sums over tokens, closed.py solves, fit.py walks teacher and student through the layers side by side;
distill.py, compress.py, repair.py and merge.py are one command's work each, report.py says what came of it.
"""
