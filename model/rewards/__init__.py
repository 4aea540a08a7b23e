"""Checks: what can be said of one sample by rule, one file each, and the processes in which they run safely.

`check.py` says what a check is, `registry.py` which there are, `pool.py` runs them, `reward.py` makes a
reward of their verdicts. The same checks serve rejection, GRPO and evaluation. Importing this package imports
neither torch nor sympy.
"""
