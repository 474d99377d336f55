"""Servers that the runner starts for the engine `openai`, keeps while they are needed, and stops.

A server is a command of this machine (`command`, under `worker.lifeline`) or a container (`container`, under
`reaper`). `runner` puts one before every cycle that needs it; nothing here is imported by a worker.
"""
