"""Servers that the runner starts for the engine `openai`, keeps while they are needed, and stops.

A server is a command of this machine (`server`, below `worker.lifeline`) or a container (`container`, with `reaper`).
`session.measuring` uses `runner`, which puts one before every cycle that needs it; a worker imports nothing from here.
"""
