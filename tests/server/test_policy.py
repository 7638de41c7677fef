"""The pure decisions: patterns, grants, tokens, keys. Thousands of policies; no gateway."""

import contextlib
import fnmatch
import hmac
import json
import re
import ssl
from datetime import UTC, datetime
from typing import Any

import pytest
from callers_stage import AUDIENCE, ISSUER, TOKEN, UNKNOWN, Authority, Issuer, sha256
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import assume, given
from hypothesis import strategies as st
from joserfc.jwk import OctKey, OKPKey, RSAKey
from virtual import EPOCH

from imagetasks_server.auth import Policy
from imagetasks_server.caller_settings import AnonymousSettings, CallerSettings, JwtSettings
from imagetasks_server.errors import Error, PermissionDenied, Unauthenticated
from imagetasks_server.identity import ANONYMOUS, Certificate, Identity, digest_of, invalid, presented
from imagetasks_server.jwt_tokens import Header, Keys, header_of, verified
from imagetasks_server.limits import Quota
from imagetasks_server.permission import matches

ACCOUNTS = ["a", "ab", "b", "prod-1", "prod-2"]
REGIONS = ["eu-central-1", "eu-west-1", "us-east-1"]
METHODS = ["ListTargets", "WatchStoreImageTasks"]
CERTIFICATE = ssl.PEM_cert_to_DER_cert(
    Authority()
    .leaf(x509.DNSName("one.example"), x509.UniformResourceIdentifier("spiffe://x.example/a"))[1]
    .decode()
)
TOKENS = [f"{number}-{'x' * 32}" for number in range(4)]
IDS = ["spiffe://x.example/a", "spiffe://x.example/b", "spiffe://y.example/a"]
RULES = JwtSettings(issuer=ISSUER, audience=(AUDIENCE,), jwks_url="https://issuer.example/keys")

patterns = st.text("ab*", max_size=6)
account_patterns = st.lists(
    st.sampled_from(["*", "a", "a*", "b", "*b", "prod-*", "*-1"]), min_size=1, max_size=3
)
region_patterns = st.lists(st.sampled_from(["*", "eu-*", "us-east-1", "*-1"]), min_size=1, max_size=2)
method_patterns = st.lists(st.sampled_from(["*", "List*", "Watch*"]), min_size=1, max_size=2)


@st.composite
def entries(draw: Any) -> list[CallerSettings]:
    return [
        CallerSettings(
            name=f"caller-{number}",
            accounts=tuple(draw(account_patterns)),
            regions=tuple(draw(region_patterns)),
            methods=tuple(draw(method_patterns)),
            spiffe=tuple(draw(st.lists(st.sampled_from([*IDS, "spiffe://x.example/*"]), min_size=1))),
            token_sha256=tuple(sha256(each) for each in draw(st.lists(st.sampled_from(TOKENS)))),
        )
        for number in range(draw(st.integers(0, 4)))
    ]


identities = st.one_of(
    st.just(ANONYMOUS),
    st.sampled_from(IDS).map(lambda each: Identity(certificate=Certificate(each, (), EPOCH))),
    st.sampled_from(TOKENS).map(lambda each: Identity(digest=digest_of(each))),
)


def pem_of(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


def visible(policy: Policy, identity: Identity, method: str) -> set[tuple[str, str]]:
    try:
        permission = policy.permission(identity, method)
    except Error:
        return set()
    return {(a, r) for a in ACCOUNTS for r in REGIONS if permission.allows(a, r)}


@given(patterns, st.text("ab", max_size=8))
def test_a_pattern_fits_what_shells_say(pattern: str, text: str) -> None:
    assert matches(pattern, text) == fnmatch.fnmatchcase(text, pattern)


@given(st.text(max_size=8), st.text(max_size=8))
def test_whatever_is_no_star_stands_for_itself(pattern: str, text: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None
    assert matches(pattern, text) == expected


@given(entries(), entries(), identities, st.sampled_from(METHODS))
def test_one_more_entry_takes_nothing_away(
    some: list[CallerSettings], more: list[CallerSettings], identity: Identity, method: str
) -> None:
    before = visible(Policy(some, None, None), identity, method)
    assert before <= visible(Policy([*some, *more], None, None), identity, method)
    assert before <= visible(Policy([*more, *some], None, None), identity, method)


@given(entries(), identities, st.sampled_from(METHODS))
def test_a_caller_sees_what_one_of_its_entries_gives_and_no_more(
    callers: list[CallerSettings], identity: Identity, method: str
) -> None:
    def fits(entry: CallerSettings) -> bool:
        if identity.digest is not None:
            return identity.digest.hex() in entry.token_sha256
        if identity.certificate is None:
            return False
        return any(fnmatch.fnmatchcase(identity.certificate.spiffe, each) for each in entry.spiffe)

    def gives(entry: CallerSettings, account: str, region: str) -> bool:
        pairs = ((entry.accounts, account), (entry.regions, region), (entry.methods, method))
        return all(any(fnmatch.fnmatchcase(text, each) for each in listed) for listed, text in pairs)

    expected = {
        (a, r) for a in ACCOUNTS for r in REGIONS for entry in callers if fits(entry) and gives(entry, a, r)
    }
    assert visible(Policy(callers, None, None), identity, method) == expected


@given(entries(), identities, st.sampled_from(METHODS))
def test_asking_twice_gives_the_same(callers: list[CallerSettings], identity: Identity, method: str) -> None:
    policy = Policy(callers, None, None)
    assert visible(policy, identity, method) == visible(policy, identity, method)


@given(entries(), st.sampled_from(TOKENS))
def test_a_token_is_known_exactly_if_its_hash_is_configured(
    callers: list[CallerSettings], token: str
) -> None:
    known = {each for entry in callers for each in entry.token_sha256}
    found = Policy(callers, None, None).static(token)
    assert (found is not None) == (sha256(token) in known)


def test_each_configured_hash_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    callers = [
        CallerSettings(name=f"c{number}", accounts=("*",), token_sha256=(sha256(token),))
        for number, token in enumerate(TOKENS)
    ]
    policy = Policy(callers, None, None)
    for token in (TOKENS[0], TOKENS[-1], UNKNOWN):
        compared.clear()
        policy.static(token)
        assert [one for one, _ in compared] == [digest_of(each) for each in TOKENS]
        assert {len(other) for _, other in compared} == {32}


def test_a_quota_is_that_of_the_first_entry_that_fits() -> None:
    entry = {"spiffe": ("spiffe://x.example/*",), "accounts": ("*",)}
    callers = [
        CallerSettings(name="one", calls_per_second=2.5, concurrent_calls=3, open_streams=4, **entry),
        CallerSettings(name="two", calls_per_second=50, burst=7, **{**entry, "spiffe": (IDS[0],)}),
    ]
    identity = Identity(certificate=Certificate(IDS[0], (), EPOCH))
    permission = Policy(callers, None, None).permission(identity, METHODS[0])
    quota = permission.quota
    assert permission.caller == "one"
    assert (quota.calls_per_second, quota.burst, quota.concurrent_calls, quota.open_streams) == (
        2.5,
        None,
        3,
        4,
    )
    (second,) = callers[1:]
    assert Policy([second], None, None).permission(identity, METHODS[0]).quota.burst == 7
    default = Quota(calls_per_second=9, burst=8, open_streams=7, concurrent_calls=6)
    second = Policy([second], None, None, default_quota=default).permission(identity, METHODS[0])
    assert second.quota == Quota(calls_per_second=50, burst=7, open_streams=7, concurrent_calls=6)


def test_anonymous_has_a_name_and_limits_too() -> None:
    anonymous = AnonymousSettings(accounts=("a",), open_streams=1)
    permission = Policy([], anonymous, None).permission(ANONYMOUS, METHODS[0])
    assert (permission.caller, permission.quota.open_streams) == ("anonymous", 1)


def believed(issuer: Issuer, token: str, *, rules: JwtSettings = RULES, keys: Keys | None = None) -> Identity:
    keys = keys or Keys(issuer.jwks().encode())
    header = header_of(token)
    assert header is not None
    key = keys.find(header)
    if key is None:
        raise invalid()
    return verified(token, header, key, rules, EPOCH)


def test_a_jwt_that_clocks_may_differ_about_is_believed() -> None:
    issuer = Issuer()
    assert believed(issuer, issuer.token(lifetime=-29)).expires == EPOCH + 1
    strict = RULES.model_copy(update={"leeway": 0.0})
    with pytest.raises(Unauthenticated, match="expired"):
        believed(issuer, issuer.token(lifetime=-29), rules=strict)


def test_only_signatures_that_were_allowed_are_believed() -> None:
    issuer = Issuer()
    only = RULES.model_copy(update={"algorithms": ("RS256",)})
    with pytest.raises(Unauthenticated):
        believed(issuer, issuer.token(), rules=only)


@pytest.mark.parametrize("end", ["1e400", "-1", "NaN", "Infinity", "true", '"1"', "null", "1" + "0" * 400])
def test_an_end_that_is_no_time_is_never_believed_for_ever(end: str) -> None:
    issuer = Issuer()
    body = f'{{"iss": "{ISSUER}", "aud": "{AUDIENCE}", "sub": "alice", "exp": {end}}}'
    from joserfc import jws  # noqa: PLC0415

    token = jws.serialize_compact({"alg": "ES256", "kid": "one"}, body, issuer.key)
    try:
        assert believed(issuer, token).expires < float("inf")
    except Unauthenticated:
        return


def test_whom_a_jwt_names_is_in_the_name_and_cannot_forge_log_lines() -> None:
    callers = [CallerSettings(name="people", accounts=("*",), claims={"sub": ("*",)})]
    policy = Policy(callers, None, RULES)
    for subject, name in (("alice@x.example", "people:alice@x.example"), ("a\nb", None), ("x" * 500, None)):
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject}
        identity = Identity(claims=claims, algorithm="ES256")
        given_name = policy.name(identity, policy.permission(identity, METHODS[0]))
        assert given_name.isprintable()
        assert len(given_name) < 200
        assert name in {None, given_name}


def test_all_claims_of_an_entry_must_fit() -> None:
    entry = CallerSettings(
        name="images", accounts=("*",), claims={"groups": ("image-*", "admins"), "kind": ("human",)}
    )
    policy = Policy([entry], None, RULES)
    base = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice"}
    for claims, good in (
        ({"groups": ["x", "image-makers"], "kind": "human"}, True),
        ({"groups": "admins", "kind": "human"}, True),
        ({"groups": "admins"}, False),
        ({"groups": ["x"], "kind": "human"}, False),
        ({"groups": [1, {"image-": 1}], "kind": "human"}, False),
        ({"groups": {"admins": 1}, "kind": "human"}, False),
    ):
        identity = Identity(claims={**base, **claims}, algorithm="ES256")
        if good:
            policy.permission(identity, METHODS[0])
        else:
            with pytest.raises(PermissionDenied):
                policy.permission(identity, METHODS[0])


def test_keys_that_must_not_be_used_are_left_out() -> None:
    good = Issuer()
    public = good.key.as_dict(private=False)
    others = [
        OctKey.generate_key(256, {"kid": "oct"}).as_dict(private=True),
        {"kty": "RSA", "kid": "weak", "e": "AQAB", "n": "_" * 170 + "8"},
        {**Issuer("enc").key.as_dict(private=False), "use": "enc"},
        {**Issuer("sign").key.as_dict(private=False), "key_ops": ["sign"]},
        {"kty": "EC", "crv": "P-256", "x": "!", "y": "!"},
        {"kty": "AKP"},
        7,
    ]
    keys = Keys(json.dumps({"keys": [*others, public]}).encode())
    assert len(keys._keys) == 1
    for each in others:
        with pytest.raises(ValueError, match="no public key"):
            Keys(json.dumps({"keys": [each]}).encode())


def test_a_token_without_key_id_needs_a_set_without_choice() -> None:
    one, two = Issuer("one"), Issuer("two")
    header = Header("ES256", None)
    assert Keys(one.jwks().encode()).find(header) is not None
    assert Keys(one.jwks(two).encode()).find(header) is None
    # A key of another kind is no choice.
    other = OKPKey.generate_key("Ed25519", {"kid": "three"}).as_dict(private=False)
    both = json.dumps({"keys": [one.key.as_dict(private=False), other]})
    assert Keys(both.encode()).find(header) is not None


@pytest.mark.parametrize("algorithm", ["RS256", "PS384", "ES512", "Ed25519"])
def test_every_kind_of_key_signs_for_its_own_algorithms_only(algorithm: str) -> None:
    made: Any = {
        "RS256": lambda: RSAKey.generate_key(2048, {"kid": "k"}),
        "PS384": lambda: RSAKey.generate_key(2048, {"kid": "k"}),
        "ES512": lambda: Issuer().key.generate_key("P-521", {"kid": "k"}),
        "Ed25519": lambda: OKPKey.generate_key("Ed25519", {"kid": "k"}),
    }[algorithm]()
    from joserfc import jwt  # noqa: PLC0415

    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": int(EPOCH) + 60}
    token = jwt.encode({"alg": algorithm, "kid": "k"}, claims, made, algorithms=[algorithm])
    keys = Keys(json.dumps({"keys": [made.as_dict(private=False)]}).encode())
    rules = RULES.model_copy(update={"algorithms": (algorithm,)})
    assert believed(Issuer(), token, rules=rules, keys=keys).algorithm == algorithm
    wrong = {"RS256": "ES256", "PS384": "Ed25519", "ES512": "ES256", "Ed25519": "RS256"}[algorithm]
    assert keys.find(Header(wrong, "k")) is None


@given(st.binary(max_size=200))
def test_any_certificate_is_read_or_refused(pem: bytes) -> None:
    with pytest.raises(Unauthenticated):
        presented((), {"x509_pem_cert": [pem]})


@st.composite
def damaged_certificates(draw: Any) -> bytes:
    """A caller's certificate of which bytes were exchanged, left out or put in; PEM."""
    der = bytearray(CERTIFICATE)
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(der) - 1)), draw(st.integers(0, 3))
        der[place : place + length] = draw(st.binary(min_size=1 if length == 0 else 0, max_size=3))
    return pem_of(bytes(der))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(damaged_certificates())
def test_a_damaged_certificate_is_read_or_refused(pem: bytes) -> None:
    with contextlib.suppress(Unauthenticated):
        assert presented((), {"x509_pem_cert": [pem]}).certificate is not None


ALTERNATIVE_NAMES, SOMETHING, SOMETHING_ELSE = "2.5.29.17", "2.5.29.98", "2.5.29.99"


@pytest.mark.parametrize(
    "extensions",
    [
        [(ALTERNATIVE_NAMES, bytes.fromhex("3004a3023000"))],
        [(ALTERNATIVE_NAMES, bytes.fromhex("3008a506a1040c026162"))],
        [(ALTERNATIVE_NAMES, bytes.fromhex("30048202ffff"))],
        [(ALTERNATIVE_NAMES, bytes.fromhex("30048602ffff"))],
        [(ALTERNATIVE_NAMES, b"\x04\x00")],
        [(SOMETHING, b"\x05\x00"), (SOMETHING_ELSE, b"\x05\x00")],
    ],
    ids=["x400Address", "ediPartyName", "no text", "no URI", "no names", "the same twice"],
)
def test_a_certificate_with_extensions_that_cannot_be_read_is_refused(
    extensions: list[tuple[str, bytes]],
) -> None:
    key = Authority().key
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2030, 1, 1, tzinfo=UTC))
    )
    for oid, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), False)
    der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    # The library itself makes none with the same extension twice.
    der = der.replace(b"\x55\x1d\x63", b"\x55\x1d\x62")
    with pytest.raises(Unauthenticated, match="not valid here"):
        presented((), {"x509_pem_cert": [pem_of(der)]})


def test_what_a_certificate_says_is_read() -> None:
    authority = Authority()
    _, pem = authority.leaf(
        x509.DNSName("One.Example"), x509.UniformResourceIdentifier("https://x.example"), expires=EPOCH
    )
    shown = presented((), {"x509_pem_cert": [pem]})
    assert shown.certificate == Certificate("", ("one.example",), EPOCH)


@given(
    st.lists(
        st.tuples(st.sampled_from(["authorization", "other"]), st.one_of(st.text(), st.binary())), max_size=3
    )
)
def test_any_metadata_is_read_or_refused(metadata: list[tuple[str, str | bytes]]) -> None:
    assume(all(value not in {"", b""} for _, value in metadata))
    try:
        shown = presented(metadata, {})
    except Unauthenticated:
        shown = None
    sent = [value for key, value in metadata if key == "authorization"]
    if shown is None:
        assert sent
    else:
        assert (shown.token is None) == (not sent)


def test_a_secret_is_not_in_what_is_printed() -> None:
    shown = presented([("authorization", f"Bearer {TOKEN}")], {})
    assert shown.token == TOKEN
    assert TOKEN not in repr(shown)
    claims = {"sub": "alice", "secret": TOKEN}
    assert TOKEN not in repr(Identity(digest=TOKEN.encode(), claims=claims))
