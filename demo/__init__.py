"""What `make demo` runs, and what the tests build on: a corpus, a tokenizer and a teacher, all made on the spot."""
