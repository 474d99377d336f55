"""The client that measures any OpenAI-compatible server."""
