"""vLLM in the worker's process."""
