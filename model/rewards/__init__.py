"""Checks: what can be said of one sample by rule, one file each; their parts lie in the folders below.

`check.py` says what a check is, `registry.py` which there are, `workers/pool.py` runs them, `reward.py` makes a
reward of their verdicts. The same checks serve rejection, GRPO and evaluation. Importing this package imports
neither torch nor sympy.
"""
