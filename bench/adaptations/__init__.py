"""The parts of bench/adapt.py, one file each, and the session that they share."""
