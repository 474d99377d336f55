"""Servers that the runner starts for the engine `openai`, keeps while they are needed, and stops.

A server is a command of this machine (`command`, under the watch of `supervisor`) or a container (`container`, under
that of `reaper`). `runner` puts one before every cycle that needs it; nothing here is imported by a worker.
"""
