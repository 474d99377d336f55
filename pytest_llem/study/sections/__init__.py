"""The engines' sections of a study file: one model per engine."""
