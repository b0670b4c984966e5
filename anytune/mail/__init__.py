"""A person's own mailbox as training data: what they wrote, paired with what they answered. Nothing leaves the machine.

boxes.py finds messages in files and folders, parse.py gets headers and text out of one, strip.py takes away what its
author did not write, redact.py hides addresses and numbers, build.py pairs, splits and writes.
"""
