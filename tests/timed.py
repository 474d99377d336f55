"""The mark of tests that depend on when a thread or process runs."""

from __future__ import annotations

import pytest

on_a_clock = pytest.mark.flaky(reruns=4, reruns_delay=1)
"""Try a test up to five times.

It polls a sensor every few milliseconds, or counts what the system scheduled. A machine that others use wakes it late;
and a k=2 bound misses one time in twenty by definition. How often bounds hold is counted in `tests/benchmarks`.
"""
