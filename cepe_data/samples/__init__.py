"""Training and test sets and the retrieval corpus: splits, windows, sampling, and their check."""
