"""One file per command of the lean command line."""
