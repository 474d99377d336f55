"""The measured process: entry point, phases, and the fork server's preload."""
