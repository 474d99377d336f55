"""Declarations that other packages import: see `section`."""
