"""Whatever is sent, by whomever: never a crash, never INTERNAL, never what another may see."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from callers_stage import METHODS, REVOKED, TOKEN, Issuer, call, entry, known, request_of, sha256
from fake_ec2 import FakeWorld
from gateway_stage import Gateway, Serve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_callers import seen
from virtual import VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import service, tokens
from imagetasks_server.tokens import PageToken, ResumeToken, digest_of

ISSUER = Issuer()
ALLOWED = {("main", "eu-central-1")}
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED}
NAMES = ["main", "hidden", "nowhere", "MAIN", "main ", "*", "ma*", "", "é", "\0", "x" * 100]
PLACES = ["eu-central-1", "us-east-1", "sa-east-1", "*", "eu-*", "", "EU"]
EXAMPLES = 25

ascii_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)
headers = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5u", "zip", "enc"]),
    st.one_of(
        st.sampled_from(["ES256", "none", "HS256", "RS256", "one", "", "https://evil.example"]),
        st.none(),
        st.integers(),
        st.lists(st.sampled_from(["b64", "exp"])),
        st.just({"kty": "oct", "k": "AA"}),
    ),
)
bodies = st.dictionaries(
    st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "jti"]),
    st.one_of(
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.none(),
        st.lists(st.just("imagetasks")),
        st.just({}),
    ),
)


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


jwts = st.builds(
    lambda header, body, tail: f"{segment(header)}.{segment(body)}.{tail}",
    headers,
    bodies,
    st.sampled_from(["", "AA", ISSUER.token().split(".")[2], "!"]),
)
signed = bodies.map(lambda body: ISSUER.token(**{key: value for key, value in body.items() if key != "exp"}))
bearers = st.one_of(
    ascii_text,
    jwts,
    signed.map(lambda token: f"Bearer {token}"),
    jwts.map(lambda token: f"Bearer {token}"),
    st.sampled_from([TOKEN, TOKEN[:-1], TOKEN + "x", TOKEN.upper()]).map(lambda token: f"Bearer {token}"),
)


@pytest.fixture
async def gateway(serve: Serve, clock: VirtualClock, tmp_path: Path) -> Gateway:
    world = FakeWorld(clock, {"main": ("eu-central-1", "us-east-1"), "hidden": ("eu-central-1", "ap-east-1")})
    for ec2 in world.all():
        ec2.add_ended(2)
    configured = known(tmp_path / "jwks.json", ISSUER)
    configured["callers"].append(entry("all", accounts="*", regions="*", token_sha256=sha256(REVOKED)))
    running = await serve(world, **configured)
    # All is known, and kept as answers.
    for method in METHODS:
        await call(running.channel, method, REVOKED)
    return running


async def each(
    gateway: Gateway, strategy: st.SearchStrategy[Any], act: Callable[[Any], Awaitable[Any]]
) -> None:
    """Do this with many examples. What is answered may tell of what is allowed alone."""
    loop = asyncio.get_running_loop()
    refusals: list[grpc.aio.AioRpcError] = []

    async def one(example: Any) -> None:
        try:
            answer = await act(example)
        except grpc.aio.AioRpcError as error:
            refusals.append(error)
        else:
            assert seen(answer) <= ALLOWED

    @settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def examples(example: Any) -> None:
        asyncio.run_coroutine_threadsafe(one(example), loop).result(60)

    await asyncio.to_thread(examples)
    assert not [error for error in refusals if error.code() in NEVER]
    # What was named is told back, and nothing else.
    assert not [e for e in refusals if "hidden" in (e.details() or "").replace("'hidden'", "")]
    assert seen(await call(gateway.channel, METHODS[0], TOKEN)) == ALLOWED


@pytest.fixture(autouse=True)
def _no_fault_inside(log: list[Any]) -> Any:
    yield
    assert not [line for line in log if line["log_level"] == "error"]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))
async def test_any_bytes_as_a_message(gateway: Gateway, method: Any) -> None:
    valid = request_of(method, accounts=["main"]).SerializeToString()
    messages = st.one_of(st.binary(max_size=100), st.binary(max_size=20).map(lambda more: valid + more))
    await each(gateway, messages, lambda raw: call(gateway.channel, method, TOKEN, raw=raw))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))
async def test_any_names(gateway: Gateway, method: Any) -> None:
    names = st.tuples(
        st.lists(st.sampled_from(NAMES), max_size=3), st.lists(st.sampled_from(PLACES), max_size=3)
    )
    await each(
        gateway, names, lambda pair: call(gateway.channel, method, TOKEN, accounts=pair[0], regions=pair[1])
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))
async def test_any_authorization(gateway: Gateway, method: Any) -> None:
    await each(
        gateway,
        st.lists(bearers, max_size=2),
        lambda values: call(
            gateway.channel, method, metadata=[("authorization", value.strip()) for value in values]
        ),
    )


async def test_any_other_metadata(gateway: Gateway) -> None:
    keys = st.sampled_from(
        ["x-forwarded-client-cert", "x-spiffe-id", "x-account", "x-caller", "cookie", "a-bin"]
    )
    pairs = st.lists(st.tuples(keys, ascii_text), max_size=3)
    await each(
        gateway,
        pairs,
        lambda given: call(
            gateway.channel,
            METHODS[0],
            TOKEN,
            metadata=[(k, v.encode() if k.endswith("-bin") else v.strip()) for k, v in given],
        ),
    )


async def test_any_page_token(gateway: Gateway) -> None:
    page = await gateway.stub.DescribeStoreImageTasks(
        pb.DescribeStoreImageTasksRequest(max_results=1), metadata=[("authorization", f"Bearer {REVOKED}")]
    )
    print_ = tokens._unpack(page.next_token)[0]
    forged = st.builds(
        lambda place, floor, targets: PageToken(print_, place, floor, targets).encode(),
        st.tuples(st.integers(-5, 5), st.integers(), st.text(max_size=5)),
        st.floats(allow_nan=False, allow_infinity=False),
        st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(PLACES))),
    )
    await each(
        gateway,
        st.one_of(ascii_text, forged),
        lambda token: gateway.stub.DescribeStoreImageTasks(
            pb.DescribeStoreImageTasksRequest(next_token=token),
            metadata=[("authorization", f"Bearer {TOKEN}")],
        ),
    )


async def test_a_page_token_of_another_caller_shows_nothing_more(gateway: Gateway) -> None:
    request = pb.DescribeStoreImageTasksRequest(max_results=1)
    metadata = {name: [("authorization", f"Bearer {name}")] for name in (TOKEN, REVOKED)}
    page = await gateway.stub.DescribeStoreImageTasks(request, metadata=metadata[REVOKED])
    assert page.next_token
    while page.next_token:
        request.next_token = page.next_token
        page = await gateway.stub.DescribeStoreImageTasks(request, metadata=metadata[TOKEN])
        assert seen(page) <= ALLOWED


async def test_any_resume_token(gateway: Gateway) -> None:
    watch = next(method for method in METHODS if method.name == "WatchStoreImageTasks")
    print_ = service._asked(pb.TaskSelector()).fingerprint
    all_known = digest_of(gateway.gateway.targets.known())
    epoch = gateway.gateway.service._watching._epoch
    forged = st.builds(
        lambda revision, digest, uncovered: ResumeToken(print_, epoch, revision, digest, uncovered).encode(),
        st.integers(-(2**70), 2**70),
        st.sampled_from([all_known, "", "x"]),
        st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(PLACES)), max_size=3).map(tuple),
    )
    await each(
        gateway,
        st.one_of(ascii_text, forged),
        lambda token: call(
            gateway.channel,
            watch,
            TOKEN,
            raw=pb.WatchStoreImageTasksRequest(resume_token=token).SerializeToString(),
        ),
    )


async def test_any_filter(gateway: Gateway) -> None:
    filters = st.lists(
        st.builds(
            lambda name, values: pb.Filter(name=name, values=values),
            st.sampled_from(["task-state", "bucket", "", "account"]),
            st.lists(st.text(st.sampled_from("*?\\[]()|^$.a"), max_size=30), max_size=4),
        ),
        max_size=4,
    )
    await each(
        gateway,
        filters,
        lambda given: gateway.stub.DescribeStoreImageTasks(
            pb.DescribeStoreImageTasksRequest(filters=given),
            metadata=[("authorization", f"Bearer {TOKEN}")],
        ),
    )
