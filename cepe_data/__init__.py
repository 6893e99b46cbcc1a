"""What the scripts of the CEPE data pipeline must agree on: one module per format or rule, and nothing else."""
