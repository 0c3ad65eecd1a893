"""Disks of a few kilobytes, to be filled."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run_with_small_disks(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a Python script where it may mount disks on /mnt, which nobody else sees; skip the test where none can."""
    for inside in (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        try:
            mount = [*inside, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
            probe = subprocess.run(mount, check=False, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no unshare here to mount a small disk with")
        if probe.returncode == 0:
            command = [*inside, sys.executable, "-c", script, *map(str, arguments)]
            return subprocess.run(command, check=False, capture_output=True, text=True)
    pytest.skip(f"a small disk cannot be mounted here: {probe.stderr.strip()}")
