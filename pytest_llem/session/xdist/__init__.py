"""Support for pytest-xdist: the number of workers, scheduling, crashed workers, and reports that must not be lost."""
