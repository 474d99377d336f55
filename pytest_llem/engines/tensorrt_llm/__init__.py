"""An offline engine in processes of its own."""
