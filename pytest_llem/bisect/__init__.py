"""Bisect: which commit changed what a study measures, by a noisy binary search over the commits of a branch."""
