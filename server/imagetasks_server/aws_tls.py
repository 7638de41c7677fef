"""One TLS context for each CA bundle, instead of one for each client: 20 ms and 0.8 MB each."""

import functools
import ssl
from typing import Any

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from botocore.httpsession import create_urllib3_context, get_cert_path


class SharedTlsSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore is untyped
    """Aiobotocore's HTTP session, with a shared TLS context, also through a proxy."""

    def _create_connector(self, proxy_url: str | None) -> Any:
        settings = self._proxy_config.settings
        if not self._verify or self._cert_file or "proxy_ca_bundle" in settings:
            return super()._create_connector(proxy_url)
        # Through a proxy aiobotocore would not check AWS's certificate at all.
        return aiohttp.TCPConnector(
            limit=self._max_pool_connections, ssl=tls_context(self._verify), **self._connector_args
        )


class SharedTlsConfig(AioConfig):  # type: ignore[misc]  # aiobotocore is untyped
    """A client configuration with `SharedTlsSession`, which survives being merged with another."""

    def __init__(self, **options: Any) -> None:
        super().__init__(http_session_cls=SharedTlsSession, **options)

    def merge(self, other_config: Any) -> Any:
        """The options of both, the other's first."""
        merged = super().merge(other_config)
        merged.http_session_cls = SharedTlsSession
        return merged


def tls_context(verify: bool | str) -> ssl.SSLContext:  # noqa: FBT001  # botocore's own word for both
    """The context that checks certificates against a bundle; True: botocore's own. Loaded once."""
    return _tls_context(get_cert_path(verify))


@functools.cache
def _tls_context(bundle: str) -> ssl.SSLContext:
    context: ssl.SSLContext = create_urllib3_context()
    context.load_verify_locations(bundle)
    return context
