"""Several pytest processes on one machine (pytest-xdist): how many, which scheduling, and what a crashed one leaves."""
