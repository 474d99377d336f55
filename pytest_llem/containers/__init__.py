"""Docker knowledge: images, preflight, error translation, long-lived containers."""
