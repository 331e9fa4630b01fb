"""The certificates of a cluster: one authority of its own, and one certificate for each node.

Makes them and writes nothing. The authority signs for this cluster alone: whoever has its key can
become a node. A node's certificate names the node, for both sides of a connection.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kelpie.core.errors import ConfigError, InvalidFieldError
from kelpie.core.quoting import quote_text

AUTHORITY_DAYS: Final = 3_650
NODE_DAYS: Final = 825  # what browsers take at most; long enough, and short enough to be practised
CLOCK_SLACK: Final = timedelta(hours=1)  # a node whose clock is a little behind takes a new one
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")


class Certified(NamedTuple):
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes


def make_authority(cluster: str, *, now_ms: int) -> Certified:
    """Make the authority of a cluster."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Kelpie cluster {cluster}"[:64])])
    usage = _usage(signs_certificates=True)
    builder = _builder(name, name, key.public_key(), now_ms, AUTHORITY_DAYS)
    made = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certified(_pem(made), _key_pem(key))


def make_node(node: str, authority: Certified, *, now_ms: int) -> Certified:
    """Make the certificate of one node.

    Raises:
        InvalidFieldError: The name is no label of 1 to 63 letters, digits and hyphens.
        ConfigError: The authority's files are damaged, or do not belong together.
    """
    if not _NODE_NAME.match(node):
        problem = f"{quote_text(node)} must be 1 to 63 letters, digits and inner hyphens"
        raise InvalidFieldError("node", problem)
    issuer, issuer_key = _read_authority(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    both_sides = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    made = (
        _builder(name, issuer.subject, key.public_key(), now_ms, NODE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_sides), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return Certified(_pem(made), _key_pem(key))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now_ms: int,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(now_ms / 1_000, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _read_authority(
    authority: Certified,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate)
        key = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the cluster's authority cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the cluster's authority has a key that Kelpie did not make")
    if key.public_key() != certificate.public_key():
        raise ConfigError("the cluster's authority and its key do not belong together")
    return certificate, key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
