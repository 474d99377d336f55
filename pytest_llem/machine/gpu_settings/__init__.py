"""Settings of GPUs for the length of a cycle: ways to make them, what was there before, a guard that puts it back."""
