"""Callers with credentials of every kind, and a gateway that knows some of them."""

import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gateway_stage import PATIENCE, Failure, Gateway, failure
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from joserfc import jwt
from joserfc.jwk import ECKey
from virtual import EPOCH

from imagetasks_server.contract import SERVICE

METHODS: Final = tuple(SERVICE.methods)
TOKEN: Final = "dashboard-3jJ8Zq2Yc0Xr6Tn9Vb5Lm1Kp7Hs4Gf"
REVOKED: Final = "revoked-8dK2mQ5tW9xB4nZ7cR1vF6hJ3pL0sYg"
UNKNOWN: Final = "unknown-1aS4dF7gH0jK3lP6oI9uY2tR5eW8qZx"
ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "imagetasks"


def sha256(token: str) -> str:
    """What the configuration has of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


_NONE: Final = b'{"alg":"none"}'


def _base64(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


class Issuer:
    """Who makes JWTs, and publishes the keys they are checked with."""

    def __init__(self, key_id: str = "one") -> None:
        self.key = ECKey.generate_key("P-256", {"kid": key_id, "use": "sig"})
        self.key_id = key_id

    def jwks(self, *others: "Issuer") -> str:
        """The keys as published."""
        keys = [each.key.as_dict(private=False) for each in (self, *others)]
        return json.dumps({"keys": keys})

    def token(self, *, lifetime: float = 3600.0, now: float = EPOCH, **claims: Any) -> str:
        """A token for Alice, good unless something else is said. A claim of None is left out."""
        body = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": int(now + lifetime), **claims}
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode({"alg": "ES256", "kid": self.key_id}, body, self.key)

    def unsigned(self) -> str:
        """A token that says it needs no signature."""
        _, body, _ = self.token().split(".")
        return f"{_base64(_NONE)}.{body}."

    def signed_with_public_key(self) -> str:
        """A token signed with the public key, as if that were a shared secret."""
        _, body, _ = self.token().split(".")
        header = _base64(json.dumps({"alg": "HS256", "kid": self.key_id}).encode())
        secret = self.key.as_pem(private=False)
        signature = hmac.digest(secret, f"{header}.{body}".encode(), "sha256")
        return f"{header}.{body}.{_base64(signature)}"


@dataclass
class Authority:
    """Who makes certificates."""

    name: str = "authority.example"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def certificate(
        self,
        *names: x509.GeneralName,
        key: ec.EllipticCurvePrivateKey | None = None,
        expires: float = EPOCH + 86400,
    ) -> bytes:
        """A certificate, PEM; without a key its own."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "caller" if key else self.name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key((key or self.key).public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime.fromtimestamp(0, UTC) + timedelta(seconds=expires))
            .add_extension(x509.BasicConstraints(ca=key is None, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def leaf(self, *names: x509.GeneralName, expires: float = EPOCH + 86400) -> tuple[bytes, bytes]:
        """Key and certificate, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem, self.certificate(*names, key=key, expires=expires)


def entry(name: str, **fields: Any) -> dict[str, Any]:
    """A caller that may see the account main in Europe, unless something else is said."""
    return {"name": name, "accounts": ["main"], "regions": ["eu-*"], **fields}


def known(path: Path, issuer: Issuer, **more: Any) -> dict[str, Any]:
    """Settings that know a token, Alice's JWTs, and some certificates."""
    path.write_text(issuer.jwks())
    return {
        "callers": [
            entry("dashboard", token_sha256=sha256(TOKEN)),
            entry("people", claims={"sub": "alice"}),
            entry("builders", spiffe="spiffe://example.org/build/*"),
            entry("batch", dns="*.batch.example.org"),
        ],
        "jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(path)},
        **more,
    }


def request_of(method: MethodDescriptor, **names: Sequence[str]) -> Any:
    """A method's request for these accounts and Regions, wherever the method has them."""
    request = GetMessageClass(method.input_type)()
    where: Any = (
        request if "accounts" in method.input_type.fields_by_name else getattr(request, "selector", None)
    )
    assert where is not None, f"{method.name}: where does it say which accounts?"
    for name, values in names.items():
        getattr(where, name).extend(values)
    return request


async def call(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    token: str | None = None,
    *,
    metadata: Sequence[tuple[str, str | bytes]] = (),
    raw: bytes | None = None,
    **names: Sequence[str],
) -> Any:
    """The answer, or a stream's first message."""
    sent = (*metadata, *((("authorization", f"Bearer {token}"),) if token is not None else ()))
    path = f"/{SERVICE.full_name}/{method.name}"
    message = request_of(method, **names).SerializeToString() if raw is None else raw
    parse = GetMessageClass(method.output_type).FromString
    if method.server_streaming:
        opened = channel.unary_stream(path, response_deserializer=parse)(
            message, metadata=sent, timeout=PATIENCE
        )
        try:
            return await anext(aiter(opened))
        finally:
            opened.cancel()
    return await channel.unary_unary(path, response_deserializer=parse)(
        message, metadata=sent, timeout=PATIENCE
    )


async def refused(
    channel: grpc.aio.Channel, method: MethodDescriptor, *arguments: Any, **more: Any
) -> Failure:
    """The error of a call that must fail."""
    return await failure(call(channel, method, *arguments, **more))


@contextlib.asynccontextmanager
async def over_tls(
    gateway: Gateway, authority: Authority, client: tuple[bytes, bytes]
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the gateway's methods with a client certificate that gRPC verifies."""
    server = grpc.aio.server()
    handlers = gateway.boundary.handlers(gateway.gateway.service)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
    own = authority.leaf(x509.DNSName("localhost"))
    root = authority.certificate()
    # As `tls_client_ca` would.
    gateway.gateway.gate.asks_for_certificates = True
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([own], root, require_client_auth=True)
    )
    await server.start()
    options = [
        ("grpc.ssl_target_name_override", "localhost"),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    credentials = grpc.ssl_channel_credentials(root, *client)
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
            yield channel
    finally:
        await server.stop(None)
        await gateway.boundary.idle()
