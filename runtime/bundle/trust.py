"""Engine files are code: which of them may be loaded.

Those that were built here by this user, those of a bundle signed with a key the user trusts, and any others only with
``--trust``. A signature (ed25519, RFC 8032) is over the bytes of ``manifest.json``, which has every file's sha256.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelquant.runtime.bundle import Bundle
from reelquant.runtime.bundle import manifest as manifests
from reelquant.runtime.errors import BadInput, BundleError, MissingExtra
from reelquant.runtime.files.atomic import partial_file
from reelquant.runtime.files.user_cache import user_cache


@dataclass(frozen=True)
class Trust:
    """``keys`` are files with public keys (PEM); ``anyone`` is the user's own word for it (``--trust``)."""

    keys: tuple[Path, ...] = ()
    anyone: bool = False


OWN = Trust()  # what was built here, and nothing else


def check_trust(bundle: Bundle, files: Iterable[str], trust: Trust) -> None:
    """See that the engines ``files`` of ``bundle`` may be loaded; their hashes are checked elsewhere.

    Raises:
        BundleError: they are another's, and no trusted key has signed the bundle.
        BadInput: a key file is not a public ed25519 key.
        MissingExtra: there is a signature to check, and cryptography is not installed.
    """
    if trust.anyone:
        return
    own = built_here()
    foreign = [name for name in files if bundle.manifest.files[name].sha256 not in own]
    if not foreign or any(is_signed(bundle.path, key) for key in trust.keys):
        return
    raise BundleError(
        f"{bundle.path / foreign[0]} was not built on this machine, and an engine is code: load it only if you trust who "
        "made it. Give the maker's public key (--key FILE), say so yourself (--trust), or build it here "
        "(reelquant build)"
    )


def remember_built(sha256s: Iterable[str]) -> None:
    """Write down that engines with these hashes were built here."""
    known = built_here()
    new = [sha256 for sha256 in sha256s if sha256 not in known]
    if new:
        file = _registry()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="ascii") as handle:
            handle.writelines(f"{sha256}\n" for sha256 in new)


def built_here() -> frozenset[str]:
    try:
        return frozenset(_registry().read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError):
        return frozenset()


def sign(bundle: Bundle, private_key: Path) -> Path:
    """Sign ``bundle``, whose files are checked first, and return the signature's file.

    Raises:
        BundleError: a file was changed.
        BadInput: not a private ed25519 key without a password, in PEM.
        MissingExtra: cryptography is not installed.
    """
    serialization, ed25519 = _cryptography()
    bundle.verify()
    try:
        key: Any = serialization.load_pem_private_key(private_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{private_key} is not a private key in PEM without a password: {error}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadInput(f"{private_key} is not an ed25519 key; make one with: openssl genpkey -algorithm ed25519")
    with partial_file(bundle.path / manifests.SIGNATURE) as temporary:
        temporary.write_bytes(key.sign((bundle.path / manifests.FILE).read_bytes()))
    return bundle.path / manifests.SIGNATURE


def is_signed(bundle: Path, public_key: Path) -> bool:
    """Whether the bundle's manifest has a signature of this key.

    Raises:
        BadInput: not a public ed25519 key in PEM.
        MissingExtra: cryptography is not installed.
    """
    serialization, ed25519 = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        key: Any = serialization.load_pem_public_key(public_key.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{public_key} is not a public key in PEM: {error}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise BadInput(f"{public_key} is not an ed25519 key")
    try:
        key.verify((bundle / manifests.SIGNATURE).read_bytes(), (bundle / manifests.FILE).read_bytes())
    except (OSError, InvalidSignature):
        return False
    return True


def _registry() -> Path:
    return user_cache("built-here")


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra("cryptography", "sign") from error
    return serialization, ed25519
