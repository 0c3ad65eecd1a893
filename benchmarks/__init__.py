"""Measurements that docs/benchmarks.md quotes, one file each; every one is run as ``python -m benchmarks.NAME``."""
