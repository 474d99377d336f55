"""Where a cycle runs: resolution, and one file per runner."""
