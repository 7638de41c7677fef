"""How clients of AWS connect: what botocore gives each client is shared, and made for many Regions.

One TLS context for each CA bundle instead of one for each client: 20 ms and 0.8 MB each. As many connections
as there are calls, which budgets limit. And NO_PROXY asked for each host, for a client has more than one.
"""

import functools
import ssl
from typing import Any

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from botocore.httpsession import ProxyConfiguration, create_urllib3_context, get_cert_path
from botocore.utils import get_environ_proxies
from yarl import URL


class HttpSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore is untyped
    """Aiobotocore's HTTP session, with a shared TLS context, also through a proxy."""

    async def connect(self, url: str) -> None:
        """Have one more connection ready for the next requests to a URL's host.

        Raises:
            Exception: What aiohttp raises.
        """
        proxy = self._proxy_config.proxy_url_for(url)
        session = await self._get_session(proxy)
        request = aiohttp.ClientRequest("POST", URL(url), proxy=URL(proxy) if proxy else None)
        (await session.connector.connect(request, [], session.timeout)).release()

    def _create_connector(self, proxy_url: str | None) -> Any:
        settings = self._proxy_config.settings
        if not self._verify or self._cert_file or "proxy_ca_bundle" in settings:
            return super()._create_connector(proxy_url)
        # Through a proxy aiobotocore would not check AWS's certificate at all.
        return aiohttp.TCPConnector(limit=0, ssl=tls_context(self._verify), **self._connector_args)


class AmbientHttpSession(HttpSession):
    """An HTTP session with the proxies that the environment names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "proxies": None})
        self._proxy_config = _AmbientProxies()


class _AmbientProxies(ProxyConfiguration):  # type: ignore[misc]  # botocore is untyped
    """HTTPS_PROXY and NO_PROXY for each URL. Botocore asks once, of the host that a client is built for."""

    def __init__(self) -> None:
        super().__init__()
        # Looks through the environment; AWS's hosts are few.
        self._asked = functools.lru_cache(lambda url: ProxyConfiguration(get_environ_proxies(url)))

    def proxy_url_for(self, url: str) -> str | None:
        """The proxy on the way to a URL, if there is one."""
        return self._asked(url).proxy_url_for(url)  # type: ignore[no-any-return]


class HttpConfig(AioConfig):  # type: ignore[misc]  # aiobotocore is untyped
    """A client configuration with these sessions, which survive being merged with another."""

    def __init__(self, **options: Any) -> None:
        super().__init__(http_session_cls=_session_of(options.get("proxies")), **options)

    def merge(self, other_config: Any) -> Any:
        """The options of both, the other's first."""
        merged = super().merge(other_config)
        merged.http_session_cls = _session_of(merged.proxies)
        return merged


def _session_of(proxies: object) -> type[HttpSession]:
    return HttpSession if proxies else AmbientHttpSession


def tls_context(verify: bool | str) -> ssl.SSLContext:  # noqa: FBT001  # botocore's own word for both
    """The context that checks certificates against a bundle; True: botocore's own. Loaded once."""
    return _tls_context(get_cert_path(verify))


@functools.cache
def _tls_context(bundle: str) -> ssl.SSLContext:
    context: ssl.SSLContext = create_urllib3_context()
    context.load_verify_locations(bundle)
    return context
