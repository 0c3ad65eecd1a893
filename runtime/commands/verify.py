"""``reelquant verify``: is the bundle what its manifest says?"""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.commands.options import BUNDLE, JSON, print_json


@click.command()
@BUNDLE
@JSON
def verify(bundle: Path, as_json: bool) -> None:
    """Check every file of BUNDLE against its hash; anything extra, missing or changed fails."""
    opened = Bundle.open(bundle)
    count = opened.verify()
    if as_json:
        print_json({"path": str(bundle), "ok": True, "files": count, "digest": opened.digest})
    else:
        click.echo(f"{bundle}: {count} files as they were written")
