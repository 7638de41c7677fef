"""Whatever is configured: a gateway that can count with it, or one message that names the key."""

import asyncio
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from imagetasks_server.account_settings import AccountSettings, OrganizationSettings
from imagetasks_server.assembly import Gateway, assemble
from imagetasks_server.caller_settings import AnonymousSettings, CallerSettings, JwtSettings
from imagetasks_server.config import BudgetSettings, ConfigError, Settings, load
from imagetasks_server.errors import Exhausted
from imagetasks_server.limit_settings import LimitSettings
from imagetasks_server.limits import Quota
from imagetasks_server.listening import listen
from imagetasks_server.targets import Resolution, Target

# A credential that somebody put where none belongs. It stands in no message.
SECRET = "swordfish-8dK2mQ5tW9xB4nZ7cR1vF6hJ3pL0sYg"
TLS = ("tls_certificate", "tls_key", "tls_client_ca")
PORTS = ("listen", "health_listen", "metrics_listen")
TABLES = {
    "limits": LimitSettings,
    "jwt": JwtSettings,
    "anonymous": AnonymousSettings,
    "budget": BudgetSettings,
}
LISTS = {"callers": CallerSettings, "accounts": AccountSettings, "organizations": OrganizationSettings}
SCALARS = sorted(set(Settings.model_fields) - {*TLS, *PORTS, *TABLES, *LISTS})

texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            SECRET,
            f"https://user:{SECRET}@issuer.example/keys",
            f"https://issuer.example:{SECRET}/",
            f"spiffe://example.org/{SECRET}\0",
            f"{SECRET}.Example.Org",
            "https://[",
            "https://issuer.example/keys",
            "/dev/null",
            "/",
            "a" * 5000,
            "/" + "a/" * 5000,
            "\0",
            "*",
            "a",
            "unix:",
            ":",
            "0.0.0.0:1",
            "[::1]:99999999",
            "RS256",
        ]
    ),
)
# Where counting goes wrong.
numbers = st.one_of(
    st.sampled_from(
        [0, 1, -1, 0.5, 5e-324, 1e-300, 1e-9, 0.001, 1e6, 1e12, 1e300, 2**31 - 1, 2**31, 2**40, 2**63 - 1]
    ),
    st.floats(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(0.001, 1e4),
    st.integers(1, 10_000),
)
# All that TOML can say of one key.
values = st.recursive(
    st.one_of(
        texts,
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.datetimes().map(lambda when: when.isoformat()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        # The names of keys are told.
        st.dictionaries(st.sampled_from(["sub", "a b", "", "\0", "x" * 300]), inner, max_size=2),
    ),
    max_leaves=4,
)


def table(model: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """What may be written of a table: some of its keys, now and then one that it does not have."""
    return st.dictionaries(st.sampled_from([*model.model_fields, "unknown"]), values, max_size=6)


def numeric(model: type[Any]) -> dict[str, st.SearchStrategy[Any]]:
    """A number for each key of a table that takes one."""
    return {name: numbers for name, field in model.model_fields.items() if is_number(field.annotation)}


def is_number(kind: object) -> bool:
    if get_origin(kind) in {Annotated, UnionType, Union}:
        return any(map(is_number, get_args(kind)))
    return kind is int or kind is float


configurations = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((*TLS, *PORTS, *SCALARS), values),
        **{key: table(model) for key, model in TABLES.items()},
        **{key: st.lists(table(model), max_size=2) for key, model in LISTS.items()},
    },
)
some_numbers = st.fixed_dictionaries(
    {},
    optional={
        **numeric(Settings),
        "limits": st.fixed_dictionaries({}, optional=numeric(LimitSettings)),
        "budget": st.fixed_dictionaries({}, optional=numeric(BudgetSettings)),
        "anonymous": st.fixed_dictionaries({"accounts": st.just("*")}, optional=numeric(AnonymousSettings)),
    },
)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(each)}" for key, each in value.items()) + "}"
    return str(value)


def check(file: Path, written: dict[str, Any]) -> Settings | None:
    """The settings, if they are any; else that what is said is right."""
    file.write_text(
        "".join(f"{key} = {toml(each)}\n" for key, each in written.items()),
        encoding="utf-8",
        errors="surrogatepass",
    )
    try:
        settings = load(str(file))
    except ConfigError as error:
        said = str(error)  # either is right
    else:
        assert isinstance(settings, Settings)
        return settings
    if "surrogates" in said or said.startswith(f"{file}: "):
        # What is no TOML has no keys.
        with pytest.raises((tomllib.TOMLDecodeError, UnicodeDecodeError)):
            tomllib.loads(file.read_bytes().decode())
        return None
    for line in said.splitlines():
        key = re.match(r"[a-z_0-9]+", line)
        assert key, line
        # Where it listens is no secret.
        assert SECRET not in line or key[0] in PORTS, line
        # What was written, or what should have been beside it.
        assert key[0] in {*written, "callers", "accounts", *TLS, *PORTS}, line
    return None


def until_refused(act: Callable[[], object]) -> Exhausted | None:
    """What a caller is told who asks for more than there is, if there is an end."""
    for _ in range(20):
        try:
            act()
        except Exhausted as refusal:
            return refusal
    return None


async def counts(settings: Settings) -> None:
    """Builds the gateway, has it listen, and asks it for each number that goes out to callers."""
    gateway = assemble(settings, {}, lambda: 1.8e9)
    here = {"listen": "127.0.0.1:0", "health_listen": None, "tls_certificate": None, "tls_key": None}
    listening = await listen(settings.model_copy(update=here), gateway)
    # It lets go of its port only if it has begun.
    await listening.server.start()
    await listening.server.stop(None)
    await gateway.close()
    service: Any = gateway.service
    started = service._watching._started(Resolution(()), resumed=False)
    assert started.started.heartbeat_interval.ToNanoseconds() > 0
    assert gateway.followers.ticks.seconds > 0
    budget = gateway.registry.budget_of(Target("main", "eu-central-1", "1" * 12, "aws"))
    budget.throttled()
    wait = max(budget.wait(), budget.wait(private=True))
    assert wait >= 0
    told = [Exhausted("BUDGET_EXHAUSTED", "no call", retry_after=wait), *refusals(gateway, settings)]
    for each in told:
        assert len(each.status().details) > 1


def refusals(gateway: Gateway, settings: Settings) -> list[Exhausted]:
    quotas = [settings.limits.default_quota, *([settings.anonymous.quota] if settings.anonymous else [])]

    def ask(quota: Quota, number: int) -> None:
        gateway.boundary.limits.admit(f"caller {number}", quota, streaming=False)

    found = [until_refused(lambda q=each, n=n: ask(q, n)) for n, each in enumerate(quotas)]  # type: ignore[misc]
    return [each for each in found if each is not None]


@given(configurations)
@example({"tls_key": "a" * 5000})
@example({"jwt": {"issuer": "i", "audience": "a", "jwks_file": "/" + "a/" * 5000}})
@example({"tls_certificate": "\0", "tls_key": "/dev/null\0"})
@example({"callers": [{"name": "a", "accounts": "*", "spiffe": SECRET}]})
@example({"callers": [{"name": "a", "accounts": "*", "token_sha256": SECRET}]})
@example({"callers": [{"name": "a", "accounts": "*", "dns": SECRET}]})
@example({"callers": [{"name": "a", "accounts": "*", "claims": {"sub": [SECRET, 1]}}]})
@example({"callers": [{"name": "a", "accounts": "*", "methods": SECRET, "dns": "a.example"}]})
@example({"jwt": {"issuer": "i", "audience": "a", "jwks_url": f"https://u:{SECRET}@i.example/"}})
@example({"limits": {"max_open_streams": 10**18, "max_waiting_calls": 2**63 - 1}})
def test_any_file_is_a_configuration_or_is_refused_by_its_key(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, Any]
) -> None:
    check(tmp_path_factory.getbasetemp() / "any-configuration.toml", written)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(some_numbers)
@example({"heartbeat_interval": 1e300})
@example({"heartbeat_interval": 1e-323})
@example({"budget": {"share": 1e-300}})
@example({"budget": {"refill": 1e-300}})
@example({"heartbeat_interval": 0.001, "poll_interval": 0.001, "idle_poll_interval": 365 * 86400})
@example({"limits": {"max_waiting_calls": 2**40}})
@example({"limits": {"max_waiting_calls": 2**31 - 1, "default_calls_per_second": 1.2e-5}})
@example({"budget": {"refill": 0.001, "share": 0.001, "reserve": 0.99, "capacity": 1, "initial": 0}})
@example({"anonymous": {"accounts": "*", "calls_per_second": 1e-300}})
def test_with_any_numbers_a_gateway_can_be_built_or_they_are_refused_by_their_key(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, Any]
) -> None:
    accepted = check(tmp_path_factory.getbasetemp() / "any-numbers.toml", written)
    if accepted is not None:
        asyncio.run(counts(accepted))


@pytest.mark.parametrize("key", [*TLS, *PORTS, *SCALARS, *TABLES, *LISTS])
@settings(max_examples=30)
@given(text=st.one_of(texts, values.map(toml)))
def test_any_variable_is_a_configuration_or_is_refused_by_its_key(key: str, text: str) -> None:
    with pytest.MonkeyPatch.context() as environment:
        # What the system takes for a variable.
        text = text.replace("\0", "").encode(errors="ignore").decode()
        environment.setenv(f"IMAGETASKS_{key.upper()}", text)
        try:
            settings = load(None)
        except ConfigError as error:
            said = str(error)  # either is right
        else:
            assert isinstance(settings, Settings)
            return
    assert SECRET not in said or key in PORTS
    for line in said.splitlines():
        assert line.startswith((key, "callers", "tls_")), line
