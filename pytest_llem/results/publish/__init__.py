"""What a paper needs of runs: tables, paragraphs, figures and a data package. `llem publish` writes them."""
