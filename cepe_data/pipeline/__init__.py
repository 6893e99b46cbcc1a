"""A whole run from one settings file: its jobs, what is there of them, what they will take, the lines that run them."""
