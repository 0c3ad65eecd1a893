"""The fastest way to run a bundle on this machine: measured once, and remembered."""
