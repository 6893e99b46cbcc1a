"""From the retrieval corpus to retrieved passages for every row of a set: embed, search, write. See README.md here."""
