"""Token files: tokenizers, the format, the encoding of a corpus, and its check."""
