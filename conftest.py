"""Fixtures and settings for every test of the project."""

from __future__ import annotations

import signal

pytest_plugins = ["pytester"]

# A shell starts background jobs with SIGINT ignored, and processes hand that on: tests of Ctrl-C would test nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
