"""Whatever is configured of callers, keys, limits and TLS: settings, or one message that names the key."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagetasks_server.caller_settings import AnonymousSettings, CallerSettings, JwtSettings
from imagetasks_server.config import ConfigError, Settings, load
from imagetasks_server.limit_settings import LimitSettings

# A credential that somebody put where none belongs. It stands in no message.
SECRET = "swordfish-8dK2mQ5tW9xB4nZ7cR1vF6hJ3pL0sYg"
TLS = ("tls_certificate", "tls_key", "tls_client_ca")
PORTS = ("listen", "health_listen", "metrics_listen")
TABLES = {
    "limits": LimitSettings,
    "jwt": JwtSettings,
    "callers": CallerSettings,
    "anonymous": AnonymousSettings,
}

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


configurations = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((*TLS, *PORTS), values),
        "limits": table(LimitSettings),
        "jwt": table(JwtSettings),
        "callers": st.lists(table(CallerSettings), max_size=2),
        "anonymous": table(AnonymousSettings),
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


def check(file: Path, written: dict[str, Any]) -> None:
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
        return
    if "surrogates" in said or said.startswith(f"{file}: "):
        # What is no TOML has no keys.
        with pytest.raises((tomllib.TOMLDecodeError, UnicodeDecodeError)):
            tomllib.loads(file.read_bytes().decode())
        return
    for line in said.splitlines():
        key = re.match(r"[a-z_0-9]+", line)
        assert key, line
        # Where it listens is no secret.
        assert SECRET not in line or key[0] in PORTS, line
        # What was written, or what should have been beside it.
        assert key[0] in {*written, "callers", "accounts", *TLS, *PORTS}, line


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


@pytest.mark.parametrize("key", [*TLS, *PORTS, "limits", "jwt", "callers", "anonymous"])
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
