"""``reelquant sign``: vouch for a bundle's engines."""

from __future__ import annotations

from pathlib import Path

import click

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle.trust import sign as sign_bundle
from reelquant.runtime.commands.options import BUNDLE


@click.command()
@BUNDLE
@click.option("--key", required=True, type=click.Path(path_type=Path), help="Your private ed25519 key (PEM).")
def sign(bundle: Path, key: Path) -> None:
    """Sign BUNDLE with your private key; who trusts your public one can load its engines (--key)."""
    click.echo(f"{sign_bundle(Bundle.open(bundle), key)} written")
