"""Hugging Face transformers in the worker's process."""
