"""`kelpie cluster certs`: an authority, and a certificate for each node."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

if TYPE_CHECKING:
    from tests.e2e.support.node import Node

INPUT, CONFLICT = 2, 5


@pytest.mark.covers("kelpie cluster certs")
@pytest.mark.requirement("CLUSTER-CERTS")
def test_nodes_get_certificates_of_one_authority_and_keys_of_their_own(node: Node) -> None:
    folder = node.directory / "certs"
    made = node.ok("cluster", "certs", "--out", "certs", "node1", "node2")
    assert made["authority"] == str(folder / "ca.pem")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("ca.key", "ca.pem", "node1.key", "node1.pem", "node2.key", "node2.pem")
    ]
    for key in folder.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    authority = (folder / "ca.pem").read_bytes()
    node.ok("cluster", "certs", "--out", "certs", "node3")
    assert (folder / "ca.pem").read_bytes() == authority
    issuer = x509.load_pem_x509_certificate(authority)
    for name in ("node1", "node3"):
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        certificate.verify_directly_issued_by(issuer)


@pytest.mark.covers("kelpie cluster certs")
def test_nothing_is_overwritten_and_a_wrong_name_makes_nothing(node: Node) -> None:
    folder = node.directory / "certs"
    wrong = node.cli("cluster", "certs", "--out", "certs", "../evil", "--json")
    assert (wrong.status, wrong.error["code"]) == (INPUT, "invalid_field")
    assert not folder.exists()
    node.ok("cluster", "certs", "--out", "certs", "node1")
    kept = (folder / "node1.key").read_bytes()
    again = node.cli("cluster", "certs", "--out", "certs", "node2", "node1", "--json")
    assert (again.status, again.error["code"]) == (CONFLICT, "conflict")
    assert (folder / "node1.key").read_bytes() == kept
    assert not (folder / "node2.key").exists()
    (folder / "ca.key").unlink()
    torn = node.cli("cluster", "certs", "--out", "certs", "node2", "--json")
    assert (torn.status, torn.error["code"]) == (CONFLICT, "conflict")
