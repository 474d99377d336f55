"""Hostile input and faults, made from a seed: wrong studies, options, files, servers, and processes that are killed.

Each module has its cases and a long form, `python -m tests.hostile.NAME --tries N --write-docs`; the tests beside them
run a small number of the same cases in CI. What the long form finds goes into docs/reliability.md.
"""
