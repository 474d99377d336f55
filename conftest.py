"""Fixtures and settings for every test of the project."""

from __future__ import annotations

pytest_plugins = ["pytester"]
