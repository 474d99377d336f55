"""What to run: schema, sweep, loader and user settings."""
