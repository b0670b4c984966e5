"""Engines: one small file set each, which knows the operations of base.py and nothing of models.

base.py and operations.py say what each operation means; numpy/ is the reference and the engine of the smallest devices;
dry.py and flops.py count what an engine takes when it is run on shapes alone: the estimate of memory and time.
"""
