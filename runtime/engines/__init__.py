"""One file per engine, each with the same two functions: ``build`` and ``open``."""
