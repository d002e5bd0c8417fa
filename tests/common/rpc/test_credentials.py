"""Authorities, their certificates, devices' keys, and the folder of them."""

import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import NameOID

from common.errors import UserError
from common.rpc.certificates import new_authority, new_node_key, signed_by
from common.rpc.credentials import device_files, make_credentials, public_keys, server_files


def handshake(server: Path, trusted: Path, name: str) -> str:
    """Return the TLS version that both sides agree on; raises what the client's check raises."""
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(server / "server.pem", server / "server.key")
    outside = ssl.create_default_context(cafile=trusted)
    outside.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    here, there = socket.socketpair()

    def answer() -> None:
        try:
            inside.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with outside.wrap_socket(here, server_hostname=name) as secured:
            return str(secured.version())
    finally:
        here.close()
        thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    made = make_credentials(folder, ["ml.example.org", "10.0.0.7"], ["device-0", "cam"])
    assert [line.partition(":")[0] for line in made] == [
        str(folder / name) for name in ("ca.pem", "server.pem", "devices/device-0", "devices/cam")
    ]
    return folder


@pytest.mark.parametrize("name", ["ml.example.org", "10.0.0.7", "localhost", "127.0.0.1"])
def test_device_trusts_its_server_by_every_name(folder, name):
    assert handshake(folder, folder / "devices" / "cam" / "ca.pem", name) == "TLSv1.3"


def test_another_name_or_authority_is_refused(folder, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(folder, folder / "ca.pem", "ml.example.com")
    (tmp_path / "other.pem").write_bytes(new_authority().certificate)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        handshake(folder, tmp_path / "other.pem", "localhost")


def test_server_certificate_cannot_sign_others(folder):
    server = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_keys_are_private_and_devices_lack_the_authority_key(folder):
    keys = [*folder.glob("**/*.key")]
    assert len(keys) == 4
    assert {file.stat().st_mode & 0o777 for file in keys} == {0o600}
    assert sorted(file.name for file in (folder / "devices" / "cam").iterdir()) == ["ca.pem", "node.key", "node.pub"]


def test_node_keys_have_the_form_that_flower_reads():
    pair = new_node_key()
    private, public = load_ssh_private_key(pair.private, None), load_ssh_public_key(pair.public)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert private.curve.name == "secp384r1"
    assert private.public_key() == public


def test_only_the_server_pair_is_made_anew(tmp_path):
    make_credentials(tmp_path, ["a"], ["one"])
    before = {file: file.read_bytes() for file in tmp_path.glob("**/*") if file.is_file()}
    assert make_credentials(tmp_path, [], ["one"]) == []
    assert len(make_credentials(tmp_path, ["b"], ["one", "two"])) == 2
    changed = {file.name for file, content in before.items() if file.read_bytes() != content}
    assert changed == {"server.key", "server.pem"}
    assert handshake(tmp_path, tmp_path / "devices" / "one" / "ca.pem", "b")
    assert public_keys(tmp_path) == {name: tmp_path / "devices" / name / "node.pub" for name in ("one", "two")}


def test_mistakes_are_reported(tmp_path):
    with pytest.raises(UserError, match="--host is missing"):
        make_credentials(tmp_path, [], ["one"])
    with pytest.raises(UserError, match=r"device name '\.\./x'"):
        make_credentials(tmp_path, ["a"], ["../x"])
    with pytest.raises(UserError, match=r"ca\.pem is missing: make it with `python -m server certificates`"):
        server_files(tmp_path)
    make_credentials(tmp_path, ["a"], ["one"])
    (tmp_path / "server.key").chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        server_files(tmp_path)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(UserError, match="restore it"):
        make_credentials(tmp_path, ["b"], [])
    with pytest.raises(ValueError, match="at least one host"):
        signed_by(new_authority(), [])


def test_incomplete_device_folder_is_completed_from_its_key(tmp_path):
    make_credentials(tmp_path, ["a"], ["one"])
    device = tmp_path / "devices" / "one"
    before = {file: file.read_bytes() for file in device.iterdir()}
    for names in (["node.pub"], ["ca.pem"], ["node.pub", "ca.pem"]):
        for name in names:
            (device / name).unlink()
        assert make_credentials(tmp_path, [], ["one"]) == [f"{device}: its missing files"]
        assert {file: file.read_bytes() for file in device.iterdir()} == before
    (device / "node.key").write_text("oops")
    with pytest.raises(UserError, match="not a device's key"):
        make_credentials(tmp_path, [], ["one"])


@pytest.mark.parametrize("left", ["ca.key", "server.pem", "devices"])
def test_missing_authority_is_reported_and_not_replaced(tmp_path, left):
    make_credentials(tmp_path, ["a"], ["one"])
    for name in {"ca.pem", "ca.key", "server.pem", "devices"} - {left}:
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    with pytest.raises(UserError, match=f"ca.pem is missing beside {left}: restore it"):
        make_credentials(tmp_path, ["a"], ["two"])
    assert (tmp_path / left).exists()
    assert not (tmp_path / "ca.pem").exists()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (new_authority().key, "key and certificate are not a pair: restore the two"),
        (b"-----BEGIN PRIVATE KEY-----\noops\n-----END PRIVATE KEY-----\n", "the key cannot be read"),
    ],
    ids=["another's", "damaged"],
)
def test_wrong_authority_key_signs_nothing_and_keeps_the_old_pair(tmp_path, key, reason):
    make_credentials(tmp_path, ["a"], ["one"])
    (tmp_path / "ca.key").write_bytes(key)
    before = {file: file.read_bytes() for file in tmp_path.glob("**/*") if file.is_file()}
    with pytest.raises(UserError, match=f"ca.key and ca.pem: {reason}"):
        make_credentials(tmp_path, ["h2"], ["two"])
    assert {file: file.read_bytes() for file in tmp_path.glob("**/*") if file.is_file()} == before


def test_authority_with_another_kind_of_key_is_refused(tmp_path):
    make_credentials(tmp_path, ["a"], [])
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ours")])
    start = datetime.datetime(2026, 1, 1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=9))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "ca.key").write_bytes(private)
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    with pytest.raises(UserError, match="not an elliptic-curve key"):
        make_credentials(tmp_path, ["h2"], [])


@pytest.mark.parametrize("host", ["münchen.local", "", "a b", "https://a", "[::1]"])
def test_invalid_host_is_refused_before_files_are_made(tmp_path, host):
    with pytest.raises(UserError, match=r"--host .*: give a name or address alone"):
        make_credentials(tmp_path / "new", ["a", host], ["one"])
    assert not (tmp_path / "new").exists()


def test_device_may_have_no_key(tmp_path):
    make_credentials(tmp_path, ["a"], ["one"])
    assert device_files(tmp_path / "devices" / "one").key == tmp_path / "devices" / "one" / "node.key"
    assert device_files(tmp_path).key is None
    (tmp_path / "devices" / "one" / "node.key").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        device_files(tmp_path / "devices" / "one")
