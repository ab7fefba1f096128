"""One certificate authority for all TLS tests, with a server's and a client's certificate."""

from __future__ import annotations

import atexit
import functools
import shutil
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trustme


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files, readable by everybody: they protect nothing."""

    folder: Path
    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    other_authority: Path  # knows none of the certificates: for tests of refusal

    def server_context(self, *, client_required: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.authority))
        context.load_cert_chain(self.server, self.server_key)
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_NONE
        return context

    def client_context(self, *, with_certificate: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority))
        if with_certificate:
            context.load_cert_chain(self.client, self.client_key)
        return context


def _pkcs8(pem: bytes) -> bytes:
    """The same key in the one form that Java reads too."""
    from cryptography.hazmat.primitives import serialization as form

    key = form.load_pem_private_key(pem, None)
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def make_certificates(folder: Path) -> Certificates:
    import trustme

    authority = trustme.CA()
    paths = Certificates(
        folder=folder,
        authority=folder / "ca.pem",
        server=folder / "server.pem",
        server_key=folder / "server.key",
        client=folder / "client.pem",
        client_key=folder / "client.key",
        other_authority=folder / "other-ca.pem",
    )
    authority.cert_pem.write_to_path(str(paths.authority))
    trustme.CA().cert_pem.write_to_path(str(paths.other_authority))
    server = authority.issue_cert("localhost", "127.0.0.1", common_name="localhost")
    client = authority.issue_cert("client.test", common_name="client")
    _write(server, paths.server, paths.server_key)
    _write(client, paths.client, paths.client_key)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    return paths


def _write(certificate: trustme.LeafCert, chain: Path, key: Path) -> None:
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    key.write_bytes(_pkcs8(certificate.private_key_pem.bytes()))


@functools.cache
def certificates() -> Certificates:
    """Those of this run, made at first use and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="certificates-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_certificates(folder)
