"""The teacher: a language model whose top-k probabilities annotate training rows."""
