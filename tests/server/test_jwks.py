"""Where an issuer's keys come from: a file or a server that may change, hang, fail or lie."""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from callers_stage import AUDIENCE, ISSUER, Issuer
from gateway_stage import eventually
from virtual import VirtualClock, run

from imagetasks_server import jwks
from imagetasks_server.caller_settings import JwtSettings
from imagetasks_server.errors import Unauthenticated, Unavailable
from imagetasks_server.jwks import Jwks
from imagetasks_server.jwt_tokens import Header

ONE, TWO = Issuer("one"), Issuer("two")
FIRST, SECOND = Header("ES256", "one"), Header("ES256", "two")


class Publisher:
    """What is published, and how often it was asked for."""

    def __init__(self) -> None:
        self.text = ONE.jwks()
        self.error: Exception | None = None
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> bytes:
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.text.encode()


def settings(**more: Any) -> JwtSettings:
    fields = {"jwks_url": "https://issuer.example/keys", **more}
    return JwtSettings(issuer=ISSUER, audience=(AUDIENCE,), **fields)


def published(scenario: Callable[[Jwks, Publisher], Awaitable[None]], **more: Any) -> None:
    async def with_keys(clock: VirtualClock) -> None:
        publisher = Publisher()
        keys = Jwks(settings(**more), clock)
        keys._fetch = publisher
        try:
            await scenario(keys, publisher)
        finally:
            await keys.close()

    run(with_keys)


async def misses(keys: Jwks, header: Header = SECOND) -> None:
    with pytest.raises(Unauthenticated):
        await keys.key(header)


def test_keys_are_fetched_once_for_all_who_wait() -> None:
    async def scenario(keys: Jwks, publisher: Publisher) -> None:
        found = await asyncio.gather(*(keys.key(FIRST) for _ in range(50)))
        assert len(found) == 50
        assert publisher.asked == 1

    published(scenario)


def test_a_key_that_came_is_found_and_made_up_ones_cause_few_fetches() -> None:
    async def scenario(keys: Jwks, publisher: Publisher) -> None:
        await keys.key(FIRST)
        await asyncio.sleep(25)
        for number in range(1000):
            await misses(keys, Header("ES256", f"made-up-{number}"))
        assert publisher.asked == 2
        publisher.text = ONE.jwks(TWO)
        await misses(keys)
        await asyncio.sleep(25)
        assert (await keys.key(SECOND)).get("kid") == "two"
        assert publisher.asked == 3

    published(scenario, retry=25)


def test_calls_whose_key_is_known_wait_for_nothing() -> None:
    async def scenario(keys: Jwks, publisher: Publisher) -> None:
        await keys.key(FIRST)
        publisher.gate.clear()
        await asyncio.sleep(301)
        async with asyncio.timeout(0.001):
            for _ in range(100):
                await keys.key(FIRST)
        await asyncio.sleep(0)
        assert publisher.asked == 2

    published(scenario)


def test_a_key_that_was_withdrawn_is_refused_after_the_next_fetch() -> None:
    async def scenario(keys: Jwks, publisher: Publisher) -> None:
        await keys.key(FIRST)
        publisher.text = TWO.jwks()
        await asyncio.sleep(49)
        await keys.key(FIRST)
        await asyncio.sleep(2)
        await keys.key(FIRST)
        await asyncio.sleep(0.1)
        await misses(keys, FIRST)
        await keys.key(SECOND)

    published(scenario, refresh=50)


def test_the_last_good_keys_stay_whatever_is_published() -> None:
    async def scenario(keys: Jwks, publisher: Publisher) -> None:
        assert keys.is_up is None
        await keys.key(FIRST)
        assert keys.is_up is True
        for text in ("", "{}", "[]", '{"keys": 1}', '{"keys": []}', "null", "[" * 100_000, '{"keys": [{}]}'):
            publisher.text = text
            await asyncio.sleep(400)
            await keys.key(FIRST)
            await asyncio.sleep(0.1)
            assert keys.is_up is False
        publisher.error = OSError("gone")
        await asyncio.sleep(1_000_000)
        await keys.key(FIRST)
        await asyncio.sleep(0)
        assert publisher.asked == 10
        assert keys.is_up is False

    published(scenario)


def test_while_there_are_no_keys_callers_are_told_when_to_come_back() -> None:
    async def scenario(keys: Jwks, publisher: Publisher) -> None:
        publisher.error = OSError("gone")
        for _ in range(3):
            with pytest.raises(Unavailable) as caught:
                await keys.key(FIRST)
            assert caught.value.reason == "KEYS_UNAVAILABLE"
            assert caught.value.retry_after is not None
            assert 0 < caught.value.retry_after <= 10
        assert publisher.asked == 1
        publisher.error = None
        await asyncio.sleep(10)
        await keys.key(FIRST)

    published(scenario)


def test_a_publisher_that_hangs_is_given_up() -> None:
    async def scenario(keys: Jwks, publisher: Publisher) -> None:
        publisher.gate.clear()
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await keys.key(FIRST)
        assert asyncio.get_running_loop().time() - began == pytest.approx(7)

    published(scenario, timeout=7)


def test_who_leaves_does_not_end_the_fetch_of_others() -> None:
    async def scenario(keys: Jwks, publisher: Publisher) -> None:
        publisher.gate.clear()
        first, second = (asyncio.create_task(keys.key(FIRST)) for _ in range(2))
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.wait([first])
        publisher.gate.set()
        assert (await second).get("kid") == "one"

    published(scenario)


async def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path, clock: VirtualClock) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(ONE.jwks())
    keys = Jwks(settings(jwks_url=None, jwks_file=str(file)), clock)
    await keys.key(FIRST)
    file.write_text(TWO.jwks())
    clock.advance(jwks.FILE_EVERY)
    assert (await keys.key(SECOND)).get("kid") == "two"
    clock.advance(jwks.FILE_EVERY)
    file.unlink()
    await keys.key(SECOND)
    await eventually(lambda: keys._task is None)
    await keys.key(SECOND)
    file.write_bytes(b" " * (jwks.MAX_BYTES + 1))
    clock.advance(jwks.FILE_EVERY)
    await keys.key(SECOND)
    await eventually(lambda: keys._task is None)
    await keys.close()


class Server:
    """An issuer on this machine."""

    def __init__(self) -> None:
        self.answer = web.Response(text=ONE.jwks())
        self.asked: list[str] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        return self.answer


async def _serving(server: Server, context: ssl.SSLContext | None) -> AsyncIterator[Server]:
    runner = web.ServerRunner(web.Server(server.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


@pytest.fixture
async def plain() -> AsyncIterator[Server]:
    async for each in _serving(Server(), None):
        yield each


@pytest.fixture
async def encrypted(tmp_path: Path) -> AsyncIterator[Server]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async for each in _serving(Server(), context):
        yield each


async def fetched(url: str, clock: VirtualClock) -> bool:
    keys = Jwks(settings(jwks_url=url), clock)
    try:
        await keys.key(FIRST)
    except Unavailable:
        return False
    finally:
        await keys.close()
    return True


async def test_keys_come_by_http_of_this_machine(plain: Server, clock: VirtualClock) -> None:
    assert await fetched(f"http://127.0.0.1:{plain.port}/keys", clock)
    assert plain.asked == ["/keys"]


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(status=302, headers={"location": "/elsewhere"}),
        web.Response(status=500, text=ONE.jwks()),
        web.Response(text="<html>"),
        web.Response(text=ONE.jwks() + " " * jwks.MAX_BYTES),
        web.Response(body=b"\xff"),
    ],
    ids=["elsewhere", "an error", "no keys", "too much", "no text"],
)
async def test_other_answers_are_no_keys(plain: Server, clock: VirtualClock, answer: web.Response) -> None:
    plain.answer = answer
    assert not await fetched(f"http://127.0.0.1:{plain.port}/keys", clock)
    assert plain.asked == ["/keys"]


async def test_an_issuer_is_believed_only_with_a_certificate_of_an_authority_we_know(
    encrypted: Server, clock: VirtualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://localhost:{encrypted.port}/keys"
    assert not await fetched(url, clock)
    assert encrypted.asked == []
    monkeypatch.setitem(os.environ, "SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert await fetched(url, clock)
    assert not await fetched(url.replace("localhost", "127.0.0.1"), clock)
    assert encrypted.asked == ["/keys"]


def test_what_is_published_is_public() -> None:
    assert "d" not in json.loads(ONE.jwks())["keys"][0]
