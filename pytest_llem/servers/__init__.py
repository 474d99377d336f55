"""Servers that the runner starts for the engine `openai`, keeps while they are needed, and stops.

A server is a command of this machine (`server`, below `worker.lifeline`) or a container (`container`, with `reaper`).
`session.measuring` puts `runner` before cycles; `options` and `reporting` use `plan`. No worker may import from here.
"""
