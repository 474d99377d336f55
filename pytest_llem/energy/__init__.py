"""Meters, the sampler process, and integration with uncertainty."""
