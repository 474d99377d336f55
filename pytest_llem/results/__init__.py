"""What came out: schema, derivation, store, statistics, gates, export and report."""
