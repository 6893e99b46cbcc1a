"""One script per claim; each prints its ratio to a reference measured in the same run."""
