"""Who may call what: every method of the contract with every kind of credential, through real channels."""

import base64
from pathlib import Path
from typing import Any

import grpc
import pytest
from callers_stage import (
    METHODS,
    REVOKED,
    TOKEN,
    UNKNOWN,
    Authority,
    Issuer,
    call,
    entry,
    known,
    over_tls,
    refused,
    sha256,
)
from cryptography import x509
from fake_ec2 import FakeWorld, aws_error
from gateway_stage import Gateway, Serve, failure
from google.protobuf import descriptor_pb2, descriptor_pool
from virtual import EPOCH, VirtualClock

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import boundary
from imagetasks_server.config import Settings

ALL = pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))
BASIC = base64.b64encode(b"alice:open-sesame").decode()
ISSUER_OF_OURS, STRANGER, IMPOSTOR = Issuer(), Issuer("two"), Issuer()

MISSING = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")
INVALID = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_INVALID")
EXPIRED = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_EXPIRED")
UNKNOWN_CALLER = (grpc.StatusCode.PERMISSION_DENIED, "CALLER_UNKNOWN")


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


BAD: dict[str, tuple[list[tuple[str, str]], tuple[grpc.StatusCode, str]]] = {
    "no credential": ([], MISSING),
    "an unknown token": (bearer(UNKNOWN), INVALID),
    "a revoked token": (bearer(REVOKED), INVALID),
    "an empty token": (bearer(""), INVALID),
    "a token twice": (bearer(TOKEN) * 2, INVALID),
    "a good token and more": (bearer(f"{TOKEN} {TOKEN}"), INVALID),
    "the beginning of a token": (bearer(TOKEN[:-1]), INVALID),
    "the hash in place of the token": (bearer(sha256(TOKEN)), INVALID),
    "another scheme": ([("authorization", f"Basic {BASIC}")], INVALID),
    "no scheme": ([("authorization", TOKEN)], INVALID),
    "a JWT that has expired": (bearer(ISSUER_OF_OURS.token(lifetime=-31)), EXPIRED),
    "a JWT without end": (bearer(ISSUER_OF_OURS.token(exp=None)), INVALID),
    "a JWT whose end is no number": (bearer(ISSUER_OF_OURS.token(exp="never")), INVALID),
    "a JWT that is not good yet": (bearer(ISSUER_OF_OURS.token(nbf=int(EPOCH) + 600)), INVALID),
    "a JWT for others": (bearer(ISSUER_OF_OURS.token(aud="other")), INVALID),
    "a JWT for nobody": (bearer(ISSUER_OF_OURS.token(aud=None)), INVALID),
    "a JWT of another issuer": (bearer(ISSUER_OF_OURS.token(iss="https://other.example")), INVALID),
    "a JWT that names nobody": (bearer(ISSUER_OF_OURS.token(sub=None)), INVALID),
    "a JWT of an unknown key": (bearer(STRANGER.token()), INVALID),
    "a JWT of another key by the same id": (bearer(IMPOSTOR.token()), INVALID),
    "a JWT without signature": (bearer(ISSUER_OF_OURS.unsigned()), INVALID),
    "a JWT signed with the public key": (bearer(ISSUER_OF_OURS.signed_with_public_key()), INVALID),
    "a JWT whose claims were changed": (
        bearer(
            ".".join([*ISSUER_OF_OURS.token().split(".")[:1], *IMPOSTOR.token(sub="root").split(".")[1:]])
        ),
        INVALID,
    ),
    "an expired JWT of another key": (bearer(IMPOSTOR.token(lifetime=-31)), INVALID),
    "a JWT of somebody else": (bearer(ISSUER_OF_OURS.token(sub="mallory")), UNKNOWN_CALLER),
}
SECRETS = {TOKEN, REVOKED, UNKNOWN, BASIC} | {
    value.partition(" ")[2] for metadata, _ in BAD.values() for _, value in metadata
} - {""}


@pytest.fixture
def world(clock: VirtualClock) -> FakeWorld:
    """Main has an alias; nobody may see the account hidden."""
    world = FakeWorld(
        clock,
        {
            "main": ("eu-central-1", "us-east-1"),
            "other": ("eu-central-1",),
            "hidden": ("ap-east-1", "eu-central-1"),
        },
    )
    for ec2 in world.all():
        ec2.add_ended(2)
    return world


@pytest.fixture
async def gateway(serve: Serve, tmp_path: Path) -> Gateway:
    """It knew one caller more."""
    settings = known(tmp_path / "jwks.json", ISSUER_OF_OURS)
    running = await serve(
        **settings | {"callers": [*settings["callers"], entry("gone", token_sha256=sha256(REVOKED))]}
    )
    assert await call(running.channel, METHODS[0], REVOKED)
    running.gateway.gate.replace(Settings(**settings))
    return running


def seen(answer: Any) -> set[tuple[str, str]]:
    """The accounts and Regions that a message tells of, wherever in it."""
    found = set()
    for descriptor, value in answer.ListFields():
        values = value if descriptor.is_repeated else [value]
        if descriptor.message_type is not None:
            found |= {pair for each in values for pair in seen(each)}
    names = {descriptor.name for descriptor in answer.DESCRIPTOR.fields}
    if {"account", "region"} <= names and answer.account:
        found.add((answer.account, answer.region))
    return found


@ALL
@pytest.mark.parametrize("case", BAD)
async def test_a_credential_that_is_not_good_is_refused_and_never_told(
    gateway: Gateway, method: Any, case: str, log: list[Any]
) -> None:
    metadata, expected = BAD[case]
    refusal = await refused(gateway.channel, method, metadata=metadata)
    assert (refusal.code, refusal.reason) == expected
    told = f"{refusal.text}{refusal.status}{log}"
    pieces = {piece for secret in SECRETS for piece in secret.split(".") if len(piece) > 20}
    assert not [piece for piece in SECRETS | pieces if piece in told]
    assert not [each for each in log if each["log_level"] == "error"]


@ALL
async def test_the_same_credentials_asked_for_what_does_not_exist_learn_nothing_more(
    gateway: Gateway, method: Any
) -> None:
    for metadata, expected in BAD.values():
        refusal = await refused(gateway.channel, method, metadata=metadata, accounts=["nowhere"])
        assert (refusal.code, refusal.reason) == expected


@ALL
async def test_who_is_not_believed_is_not_told_what_is_wrong_with_a_request(
    gateway: Gateway, method: Any
) -> None:
    refusal = await refused(gateway.channel, method, raw=b"\xff\xff")
    assert (refusal.code, refusal.reason) == MISSING


@ALL
@pytest.mark.parametrize(
    "token", [TOKEN, ISSUER_OF_OURS.token(), ISSUER_OF_OURS.token(aud=["x", "imagetasks"])]
)
async def test_a_good_token_sees_what_is_permitted(
    gateway: Gateway, method: Any, token: str, log: list[Any]
) -> None:
    answer = await call(gateway.channel, method, token)
    assert seen(answer) == {("main", "eu-central-1")}
    assert token not in str(log)


CERTIFICATES = {
    "spiffe": ("builders", x509.UniformResourceIdentifier("spiffe://example.org/build/ami/7")),
    "dns": ("batch", x509.DNSName("one.batch.example.org")),
}
STRANGERS = {
    "another SPIFFE id": [x509.UniformResourceIdentifier("spiffe://example.org/run/7")],
    "another trust domain": [x509.UniformResourceIdentifier("spiffe://example.com/build/7")],
    "two SPIFFE ids": [
        x509.UniformResourceIdentifier("spiffe://example.org/build/7"),
        x509.UniformResourceIdentifier("spiffe://example.org/run/7"),
    ],
    "a SPIFFE id as a DNS name": [x509.DNSName("spiffe.example.org")],
    "a host further down": [x509.DNSName("a.b.batch.example.org")],
    "a certificate for all hosts": [x509.DNSName("*.batch.example.org")],
    "no name": [],
}


@ALL
@pytest.mark.parametrize("kind", CERTIFICATES)
async def test_a_certificate_sees_what_is_permitted(
    gateway: Gateway, method: Any, kind: str, log: list[Any]
) -> None:
    authority, (caller, name) = Authority(), CERTIFICATES[kind]
    async with over_tls(gateway, authority, authority.leaf(name)) as channel:
        assert seen(await call(channel, method)) == {("main", "eu-central-1")}
        # A token decides alone, whatever the certificate.
        assert (await refused(channel, method, UNKNOWN)).reason == "CREDENTIAL_INVALID"
    assert caller in {each.get("caller") for each in log}


@ALL
async def test_a_certificate_that_nobody_knows_sees_nothing(gateway: Gateway, method: Any) -> None:
    authority = Authority()
    for names in STRANGERS.values():
        async with over_tls(gateway, authority, authority.leaf(*names)) as channel:
            refusal = await refused(channel, method)
        assert (refusal.code, refusal.reason) == UNKNOWN_CALLER


@ALL
async def test_a_certificate_that_has_expired_meanwhile_is_refused(gateway: Gateway, method: Any) -> None:
    authority = Authority()
    leaf = authority.leaf(CERTIFICATES["spiffe"][1], expires=EPOCH - 60)
    async with over_tls(gateway, authority, leaf) as channel:
        refusal = await refused(channel, method)
    assert (refusal.code, refusal.reason) == EXPIRED


@ALL
async def test_an_account_out_of_sight_is_as_one_that_does_not_exist(
    gateway: Gateway, method: Any, world: FakeWorld, serve: Serve, tmp_path: Path
) -> None:
    del world.accounts["hidden"]
    without = await serve(world, **known(tmp_path / "jwks.json", ISSUER_OF_OURS))
    for names in (["hidden"], ["main", "hidden"]):
        one = await refused(gateway.channel, method, TOKEN, accounts=names)
        other = await refused(without.channel, method, TOKEN, accounts=names)
        assert (one.code, one.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_ACCOUNT")
        assert one.text == other.text
        assert one.status.SerializeToString() == other.status.SerializeToString()


@ALL
async def test_a_region_out_of_sight_is_as_one_that_no_account_has(gateway: Gateway, method: Any) -> None:
    for accounts in ([], ["main"]):
        # Main is there; hidden has the second; nobody has the third.
        told = []
        for region in ("us-east-1", "ap-east-1", "sa-east-1"):
            refusal = await refused(gateway.channel, method, TOKEN, accounts=accounts, regions=[region])
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_REGION")
            told.append((refusal.text + str(refusal.status)).replace(region, ""))
        assert len(set(told)) == 1


@ALL
async def test_a_method_that_is_not_permitted_is_refused(serve: Serve, method: Any) -> None:
    others = [each.name for each in METHODS if each is not method]
    token = {"token_sha256": sha256(TOKEN)}
    gateway = await serve(callers=[entry("narrow", methods=others, **token)])
    refusal = await refused(gateway.channel, method, TOKEN)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "METHOD_NOT_PERMITTED")


@ALL
async def test_who_may_see_nothing_is_told_so_whatever_is_named(serve: Serve, method: Any) -> None:
    nothing = entry("blind", token_sha256=sha256(TOKEN), accounts=["nowhere-*"])
    elsewhere = entry("far", token_sha256=sha256(REVOKED), regions=["sa-*"])
    gateway = await serve(callers=[nothing, elsewhere])
    for names in ({}, {"accounts": ["main"]}, {"accounts": ["absent"]}, {"regions": ["eu-central-1"]}):
        refusal = await refused(gateway.channel, method, TOKEN, **names)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NO_TARGETS")
    for names in ({}, {"accounts": ["main"]}, {"regions": ["eu-central-1"]}):
        refusal = await refused(gateway.channel, method, REVOKED, **names)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NO_TARGETS")


@ALL
async def test_without_callers_everybody_sees_everything(serve: Serve, world: FakeWorld, method: Any) -> None:
    gateway = await serve()
    assert seen(await call(gateway.channel, method)) >= {("hidden", "ap-east-1")} or method.server_streaming
    assert await call(gateway.channel, method, UNKNOWN)
    assert len(world.accounts) == 3


@ALL
async def test_who_sends_no_credential_sees_what_anonymous_may_and_a_bad_one_does_not(
    serve: Serve, method: Any
) -> None:
    gateway = await serve(anonymous={"accounts": "other"})
    assert seen(await call(gateway.channel, method)) == {("other", "eu-central-1")}
    refusal = await refused(gateway.channel, method, UNKNOWN)
    assert (refusal.code, refusal.reason) == INVALID


async def test_two_entries_that_fit_give_what_each_gives_and_nothing_between(serve: Serve) -> None:
    gateway = await serve(
        callers=[
            entry("one", spiffe="spiffe://example.org/*"),
            {
                "name": "two",
                "spiffe": "spiffe://example.org/build/*",
                "accounts": "hidden",
                "regions": "ap-*",
            },
        ]
    )
    authority = Authority()
    leaf = authority.leaf(x509.UniformResourceIdentifier("spiffe://example.org/build/7"))
    async with over_tls(gateway, authority, leaf) as channel:
        method = next(each for each in METHODS if each.name == "ListTargets")
        assert seen(await call(channel, method)) == {("main", "eu-central-1"), ("hidden", "ap-east-1")}


async def test_two_names_of_one_account_show_each_caller_his_own(serve: Serve, clock: VirtualClock) -> None:
    world = FakeWorld(clock, {"main": ("eu-central-1",)})
    world.ec2().add_ended(3)
    twin = FakeWorld(clock, {"twin": ("eu-central-1",)}).accounts["twin"]
    twin.account_id = world.accounts["main"].account_id
    twin.by_region = world.accounts["main"].by_region
    world.accounts["twin"] = twin
    gateway = await serve(
        world,
        callers=[
            entry("a", accounts="main", token_sha256=sha256(TOKEN)),
            entry("b", accounts="twin", token_sha256=sha256(REVOKED)),
        ],
    )
    for token, name in ((TOKEN, "main"), (REVOKED, "twin"), (TOKEN, "main")):
        for method in METHODS:
            assert {account for account, _ in seen(await call(gateway.channel, method, token))} == {name}


async def test_a_task_that_went_out_of_sight_between_two_pages_is_not_shown(
    serve: Serve, world: FakeWorld
) -> None:
    both = {"callers": [entry("a", accounts=["main", "other"], token_sha256=sha256(TOKEN))]}
    gateway = await serve(**both)
    metadata = [("authorization", f"Bearer {TOKEN}")]
    request = pb.DescribeStoreImageTasksRequest(max_results=1)
    shown = []
    for _ in range(4):
        page = await gateway.stub.DescribeStoreImageTasks(request, metadata=metadata)
        shown += [task.account for task in page.store_image_task_results]
        if shown:
            gateway.gateway.gate.replace(
                Settings(callers=[entry("a", accounts=["main"], token_sha256=sha256(TOKEN))])
            )
        if not page.next_token:
            break
        request.next_token = page.next_token
    assert shown[1:] == ["main"] * len(shown[1:])
    assert shown.count("main") == 2
    assert len(world.accounts) == 3


async def test_shared_answers_are_shared_by_what_may_be_seen_alone(serve: Serve) -> None:
    gateway = await serve(
        callers=[
            entry("a", token_sha256=sha256(TOKEN)),
            entry("b", accounts="*", token_sha256=sha256(REVOKED)),
            entry("c", token_sha256=sha256(UNKNOWN)),
        ],
        default_max_age=3600,
    )
    kept = gateway.gateway.service._answers._kept
    for _ in range(2):
        for token, accounts in (
            (TOKEN, {"main"}),
            (REVOKED, {"main", "other", "hidden"}),
            (UNKNOWN, {"main"}),
        ):
            answer = await call(gateway.channel, METHODS[0], token)
            assert {account for account, _ in seen(answer)} == accounts
    # Two who may see the same share it.
    assert len(kept) == 2


async def test_what_failed_of_others_is_not_told(serve: Serve, world: FakeWorld) -> None:
    world.accounts["hidden"].discovery_fault = aws_error("AuthFailure")
    gateway = await serve(callers=[entry("a", token_sha256=sha256(TOKEN))])
    for method in METHODS:
        assert seen(await call(gateway.channel, method, TOKEN)) == {("main", "eu-central-1")}


def test_every_method_has_a_declared_policy() -> None:
    assert set(boundary.METHODS) == {method.name for method in METHODS}
    boundary.check_declared(boundary.SERVICE)


def test_a_method_without_a_declared_policy_does_not_start() -> None:
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    file.name = "more.proto"
    (service,) = file.service
    service.method.add().CopyFrom(service.method[0])
    service.method[-1].name = "DeleteEverything"
    pool = descriptor_pool.DescriptorPool()
    for each in pb.DESCRIPTOR.dependencies:
        _add(pool, each)
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    found = pool.FindServiceByName(boundary.SERVICE.full_name)
    with pytest.raises(LookupError, match="DeleteEverything"):
        boundary.check_declared(found)


def _add(pool: Any, file: Any) -> None:
    for each in file.dependencies:
        _add(pool, each)
    pool.AddSerializedFile(file.serialized_pb)


def test_no_request_can_name_an_endpoint_a_role_or_a_credential() -> None:
    words = (
        "url",
        "endpoint",
        "host",
        "role",
        "arn",
        "credential",
        "secret",
        "key",
        "profile",
        "proxy",
        "password",
    )
    fields = [
        name
        for method in METHODS
        for name in _fields(method.input_type)
        if any(word in name.split("_") for word in words)
    ]
    assert fields == []


def _fields(message: Any) -> list[str]:
    return [
        name
        for field in message.fields
        for name in (field.name, *(_fields(field.message_type) if field.message_type else ()))
    ]


async def test_a_failure_of_the_call_is_what_a_client_sees(gateway: Gateway) -> None:
    assert (await failure(gateway.describe())).reason == "CREDENTIAL_MISSING"
