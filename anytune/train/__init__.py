"""Training: from a data set and a trainee to an adapter, a run folder and exact checkpoints.

`finetune.py` is the whole job: prepare.py, planning.py, execute.py and deliver.py, one after the other. `trainer.py`
is the loop; every other file is one piece (schedule, metrics, checkpoints, …). Nothing here knows an engine: the
trainee computes, this folder keeps order.
"""
