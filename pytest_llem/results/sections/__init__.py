"""Derives the sections of a result from a measurement."""
