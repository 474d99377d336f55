"""This machine: its devices, the leases on them, and what of it a result depends on."""
