"""Certificates of an authority made for a test, as files."""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    """A certificate and its key.

    Attributes:
        certificate: PEM, with its chain.
        key: PEM.
    """

    certificate: Path
    key: Path

    def put(self, certificate: bytes, key: bytes) -> None:
        """Replaces both at once, as far as whoever reads them can tell."""
        for path, content in ((self.key, key), (self.certificate, certificate)):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.chmod(0o600)
            new.replace(path)

    def issue(self, authority: trustme.CA, *names: str, **options: object) -> trustme.LeafCert:
        """Replaces both by a new certificate for these names."""
        leaf = authority.issue_cert(*(names or ("localhost", "127.0.0.1")), **options)  # type: ignore[arg-type]
        self.put(chain(leaf.cert_chain_pems), leaf.private_key_pem.bytes())
        return leaf


def chain(blobs: Iterable[trustme.Blob]) -> bytes:
    """They, one after the other."""
    return b"".join(each.bytes() for each in blobs)


def files(directory: Path, authority: trustme.CA, name: str = "gateway", **options: object) -> Files:
    """A new certificate for this machine, in the directory."""
    made = Files(directory / f"{name}.pem", directory / f"{name}.key")
    made.issue(authority, **options)
    return made


def days(count: float) -> dt.datetime:
    """So many days from now, or before."""
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=count)
