"""The port that is scraped: open to whoever reaches it, and yet bounded."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import aiohttp
import pytest
from gateway_stage import PATIENCE, Gateway
from scrapes import watched_by_prometheus

from imagetasks_server import scraping

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n"


@pytest.fixture
def peers() -> Iterator[list[socket.socket]]:
    """Connections that nobody closes before the end."""
    opened: list[socket.socket] = []
    yield opened
    for each in opened:
        each.close()


async def connect(peers: list[socket.socket], url: str, said: bytes) -> None:
    host, _, port = url.removeprefix("http://").removesuffix("/metrics").rpartition(":")
    peer = socket.socket()
    peers.append(peer)
    peer.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(peer, (host, int(port)))
    await loop.sock_sendall(peer, said)


async def is_closed(peer: socket.socket) -> bool:
    """Whether its end comes soon, whatever is sent before."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while await loop.sock_recv(peer, 65536):
                pass
    return True


async def is_scraped(url: str) -> bool:
    with contextlib.suppress(aiohttp.ClientError):
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return b"imagetasks_build_info" in await response.read()
    return False


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\nX-Slow: ", REQUEST])
async def test_who_asks_slowly_or_does_not_read_is_cut_off(
    gateway: Gateway, peers: list[socket.socket], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(scraping, "SECONDS", 0.2)
    async with watched_by_prometheus(gateway) as prometheus:
        for _ in range(4):
            await connect(peers, prometheus.url, said)
        assert all([await is_closed(each) for each in peers])
        monkeypatch.undo()
        assert (await prometheus.scrape()).samples


async def test_there_are_few_connections_at_once(gateway: Gateway, peers: list[socket.socket]) -> None:
    async with watched_by_prometheus(gateway) as prometheus:
        for _ in range(scraping.CONNECTIONS):
            await connect(peers, prometheus.url, b"")
        assert not await is_scraped(prometheus.url)
        peers.pop().close()
        async with asyncio.timeout(PATIENCE):
            while not await is_scraped(prometheus.url):
                pass
        # Calls never notice.
        await gateway.describe()


async def test_each_connection_is_for_one_scrape(gateway: Gateway, peers: list[socket.socket]) -> None:
    async with watched_by_prometheus(gateway) as prometheus:
        await connect(peers, prometheus.url, REQUEST * 2)
        answer = b""
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(peers[0], 65536):
            answer += piece
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in answer
