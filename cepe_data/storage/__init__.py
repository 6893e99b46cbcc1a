"""How anything gets onto the disk: complete or absent, with its provenance, in parts that many processes make."""
