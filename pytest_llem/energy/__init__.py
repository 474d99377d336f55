"""Energy meters: what a cycle drew, with its uncertainty, and whether the figure may be used.

`registry.open_meter` is the way in; each meter is one file. Importing this package loads nothing, because the sampler
process imports it before its first reading.
"""
