"""What to feed an engine: data sets and synthetic prompts."""
