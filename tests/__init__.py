"""The tests: one file per module, one per script, one for the whole pipeline, one for the consumers' contract."""
