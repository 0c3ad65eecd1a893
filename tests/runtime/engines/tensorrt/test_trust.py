"""Whose engines are loaded: one's own, a trusted key's, and others only on the user's word."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from reelquant.runtime.bundle import Bundle, list_files, write_manifest
from reelquant.runtime.bundle import manifest as manifests
from reelquant.runtime.bundle.trust import OWN, Trust, built_here, check_trust, is_signed, remember_built, sign
from reelquant.runtime.errors import BadInput, BundleError
from tests.command_line import only_message, run
from tests.conftest import TinyBundleMaker

ENGINE = "engines/tensorrt-rtx/transformer.main.abc.engine"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELQUANT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tiny_bundle: TinyBundleMaker, tmp_path: Path) -> Bundle:
    """With one engine, which nobody built."""
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle("t2v").path, path)
    (path / ENGINE).parent.mkdir(parents=True)
    (path / ENGINE).write_bytes(b"code")
    write_manifest(path, replace(tiny_bundle("t2v").manifest, files=list_files(path)))
    return Bundle.open(path)


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key in PEM."""
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_what_was_built_here_is_loaded(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"abc.engine was not built on this machine, .*--key FILE.*--trust"):
        check_trust(bundle, [ENGINE], OWN)
    digest = bundle.manifest.files[ENGINE].sha256
    remember_built([digest, digest])
    remember_built([digest])
    assert built_here() == {digest}
    check_trust(bundle, [ENGINE], OWN)


def test_the_users_word_is_enough(bundle: Bundle) -> None:
    check_trust(bundle, [ENGINE], Trust(anyone=True))


def test_a_signed_bundle_is_loaded_with_its_key_alone(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    private, public = keys(tmp_path, "mine")
    _, other = keys(tmp_path, "other")
    assert not is_signed(bundle.path, public)
    assert run(capfd, "sign", bundle.path, "--key", private).code == 0
    assert bundle.verify() == len(bundle.manifest.files)  # the signature is no stranger
    check_trust(bundle, [ENGINE], Trust((other, public)))
    with pytest.raises(BundleError, match="was not built on this machine"):
        check_trust(bundle, [ENGINE], Trust((other,)))
    # One letter of the manifest, and it is another bundle.
    file = bundle.path / manifests.FILE
    facts = json.loads(file.read_text("utf-8"))
    facts["defaults"]["steps"] += 1
    file.write_text(json.dumps(facts), "utf-8")
    assert not is_signed(bundle.path, public)


def test_a_bundle_that_is_built_again_loses_its_signature(bundle: Bundle, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "mine")
    sign(bundle, private)
    write_manifest(bundle.path, bundle.manifest)
    assert not (bundle.path / "manifest.sig").exists() and not is_signed(bundle.path, public)


def test_a_spoiled_bundle_is_not_signed(bundle: Bundle, tmp_path: Path) -> None:
    private, _ = keys(tmp_path, "mine")
    (bundle.path / ENGINE).write_bytes(b"edoc")
    with pytest.raises(BundleError, match="was changed after export"):
        sign(bundle, private)
    assert not (bundle.path / "manifest.sig").exists()


def test_keys_of_another_kind_are_refused(bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key = rsa.generate_private_key(65537, 2048)
    private, public = tmp_path / "rsa.pem", tmp_path / "rsa.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(BadInput, match="is not an ed25519 key; make one with: openssl genpkey"):
        sign(bundle, private)
    with pytest.raises(BadInput, match="is not an ed25519 key"):
        check_trust(bundle, [ENGINE], Trust((public,)))
    with pytest.raises(BadInput, match="is not a public key in PEM"):
        check_trust(bundle, [ENGINE], Trust((tmp_path / "absent",)))
    ran = run(capfd, "sign", bundle.path, "--key", tmp_path / "absent")
    assert ran.code == 2 and "is not a private key in PEM" in only_message(ran.err)
