"""Measuring speed and memory of training, prompts and generation: every measurement in a process of its own.

cases.py what is measured; child.py one measurement; run.py all of them; document.py the file that is shared; table.py
and compare.py what a person reads; machine.py what it ran on.
"""
