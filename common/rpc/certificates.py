"""Certificates and keys: self-signed ones of a run, an authority's own and those it signs, and the keys of devices.

All keys are elliptic-curve keys. This module reads and writes no files.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

OWN = "earlybloom"  # the name on servers' certificates that are made here
AUTHORITY_DAYS = 3650  # long, because a new authority's certificate must be copied to every device
SERVER_DAYS = 825  # the most that some TLS libraries accept


@dataclass(frozen=True)
class Certificate:
    """A server's private key and its certificate, both PEM; clients need the certificate only."""

    key: bytes = field(repr=False)
    certificate: bytes


@dataclass(frozen=True)
class NodeKey:
    """A device's key pair, both in OpenSSH's form."""

    private: bytes = field(repr=False)  # by which the device proves that the public key is its own
    public: bytes


def self_signed(hosts: Sequence[str], days: int = 30) -> Certificate:
    """Return a new key (NIST P-256) and a certificate for these host names and addresses, valid for `days`.

    The validity starts a day ago, since devices' clocks differ. Raises `ValueError` without a host.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(OWN)
    return _pair(key, _server(_draft(name, name, key, days), hosts).sign(key, hashes.SHA256()))


def check_pair(pair: Certificate) -> None:
    """Raise `ValueError` unless key and certificate can be read and are a pair."""
    try:
        key = serialization.load_pem_private_key(pair.key, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("the key cannot be read, or needs a password") from error
    try:
        certified = x509.load_pem_x509_certificate(pair.certificate).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("the certificate cannot be read") from error
    if _public(key) != _public(certified):
        raise ValueError("key and certificate are not a pair")


def outdated(certificate: bytes, hosts: Sequence[str]) -> str:
    """Return why a certificate of `self_signed` no longer fits these hosts; empty if it does, or is the user's own."""
    read = x509.load_pem_x509_certificate(certificate)
    if not read.subject == read.issuer == _name(OWN):
        return ""
    if read.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        return f"expired on {read.not_valid_after_utc:%Y-%m-%d}"
    named = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if lacking := [host for host in hosts if _general_name(host) not in named]:
        return f"is for {', '.join(str(name.value) for name in named)} and not for {', '.join(lacking)}"
    return ""


def new_authority(days: int = AUTHORITY_DAYS) -> Certificate:
    """Return a new certificate authority, which may sign servers' certificates and no other authority's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("EarlyBloom certificate authority")
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    draft = (
        _draft(name, name, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _pair(key, draft.sign(key, hashes.SHA256()))


def signed_by(authority: Certificate, hosts: Sequence[str], days: int = SERVER_DAYS) -> Certificate:
    """Return a new key and a server's certificate for these hosts, signed by an authority.

    Raises `ValueError` without a host, or when the authority's PEM cannot be read.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key, password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is not an elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    draft = _draft(_name(OWN), issuer.subject, key, days).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    return _pair(key, _server(draft, hosts).sign(signer, hashes.SHA256()))


def new_node_key() -> NodeKey:
    """Return a new key pair of the curve that Flower requires for SuperNodes (NIST P-384)."""
    key = ec.generate_private_key(ec.SECP384R1())
    openssh, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, openssh, plain)
    return NodeKey(private, public_node_key(private))


def public_node_key(private: bytes) -> bytes:
    """Return the public half of a device's private key; raises `ValueError` if it is not such a key."""
    key = serialization.load_ssh_private_key(private, password=None).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"


def _draft(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _server(draft: x509.CertificateBuilder, hosts: Sequence[str]) -> x509.CertificateBuilder:
    if not hosts:
        raise ValueError("a certificate needs at least one host name or address")
    return (
        draft.add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pair(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Certificate:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(private, certificate.public_bytes(serialization.Encoding.PEM))


def _public(key: PublicKeyTypes) -> bytes:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, spki)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
