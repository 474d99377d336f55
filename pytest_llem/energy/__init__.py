"""Energy meters: what a cycle drew, with its uncertainty, and whether the figure may be used.

The worker, `containers` and `session` open meters with `registry.open_meter`; other rooms use single modules. It must
import nothing itself, because the sampler process imports it before its first reading.
"""
