"""The HTML report: one file that needs no network, for a person to read and for a paper to cite."""
