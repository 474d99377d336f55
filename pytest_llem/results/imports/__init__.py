"""`llem import`: other benchmarks' results as those of this project, with the energy that was measured beside them."""
