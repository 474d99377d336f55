"""The measured process: its entry points, the cycle, and the fork server that starts it quickly."""
