"""History: what earlier runs of a study measured, kept in a folder, and what it says of noise and change points."""
