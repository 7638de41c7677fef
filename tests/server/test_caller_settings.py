"""How callers are configured: what is refused, by its key; the command that makes tokens."""

import io
import re
import sys
from pathlib import Path

import pytest
from callers_stage import TOKEN, sha256
from hypothesis import given
from hypothesis import strategies as st

from imagetasks_server import main
from imagetasks_server.auth import Policy
from imagetasks_server.caller_settings import OWN_NAMES, AnonymousSettings
from imagetasks_server.config import ConfigError, load
from imagetasks_server.identity import ANONYMOUS
from imagetasks_server.metrics import OTHER
from imagetasks_server.tally import GATEWAY, Tally

ONE = f'[[callers]]\nname = "a"\naccounts = "*"\ntoken_sha256 = "{sha256(TOKEN)}"\n'
TWO = ONE.replace('"a"', '"b"')
JWT = '[jwt]\nissuer = "https://i.example"\naudience = "imagetasks"\n'
URL = JWT + 'jwks_url = "https://i.example/keys"\n'


def caller(*lines: str) -> str:
    return "\n".join(['[[callers]]\nname = "a"\naccounts = "*"', *lines])


FILES = {
    "no name": (ONE.replace('name = "a"\n', ""), "callers.0.name: "),
    "the name of those without a credential": (ONE.replace('"a"', '"anonymous"'), "callers.0.name: "),
    "the gateway's own name": (ONE.replace('"a"', '"Gateway"'), "callers.0.name: "),
    "the name of all others": (ONE.replace('"a"', '"other"'), "callers.0.name: "),
    "no accounts": (ONE.replace('accounts = "*"\n', ""), "callers.0.accounts: "),
    "an empty list of accounts": (ONE.replace('"*"', "[]"), "callers.0.accounts: "),
    "no credential": (caller(), "callers.0: none of token_sha256"),
    "a token in place of its hash": (caller(f'token_sha256 = "{TOKEN}"'), "callers.0.token_sha256.0: "),
    "an unknown key": (caller('token = "x"'), "callers.0.token: "),
    "no SPIFFE id": (caller('spiffe = "https://x.example"'), "callers.0.spiffe: "),
    "any trust domain": (caller('spiffe = "spiffe://*/x"'), "callers.0.spiffe: "),
    "no DNS name": (caller('dns = "X y"'), "callers.0.dns: "),
    "a star in the middle": (caller('dns = "a.*.example"'), "callers.0.dns: "),
    "claims without issuer": (caller('claims = { sub = "*" }'), "callers: a: claims: there is no [jwt]"),
    "a claim without values": (URL + caller("claims = { sub = [] }"), "callers.0.claims.sub: "),
    "a method that does not exist": (ONE + 'methods = "Delete*"', "callers.0.methods: 'Delete*' is none of"),
    "no calls": (ONE + "calls_per_second = 0", "callers.0.calls_per_second: "),
    "no streams": (ONE + "open_streams = 0", "callers.0.open_streams: "),
    "a burst of nothing": (ONE + "burst = 5", "callers.0: burst: "),
    "a name twice": (ONE + caller('dns = "x.example"'), "callers: a: name: stands twice"),
    "a token twice": (ONE + TWO, "callers: b: token_sha256: stands twice, also at a"),
    "a SPIFFE id twice": (
        caller('spiffe = "spiffe://x/y"')
        + caller('spiffe = "spiffe://x/y"').replace('"a"', '"b"').join("\n\n"),
        "callers: b: spiffe: stands twice",
    ),
    "no issuer": (URL.replace('issuer = "https://i.example"\n', ""), "jwt.issuer: "),
    "no keys": (JWT, "jwt: either jwks_url or jwks_file"),
    "keys twice": (URL + 'jwks_file = "/dev/null"', "jwt.jwks_file: "),
    "keys by http": (JWT + 'jwks_url = "http://i.example/keys"', "jwt.jwks_url: must be https"),
    "keys with a user": (JWT + 'jwks_url = "https://u:p@i.example/"', "jwt.jwks_url: "),
    "keys of a file": (JWT + 'jwks_url = "file:///etc/passwd"', "jwt.jwks_url: "),
    "no signature": (URL + 'algorithms = ["none"]', "jwt.algorithms.0: "),
    "a shared key": (URL + 'algorithms = ["HS256"]', "jwt.algorithms.0: "),
    "no algorithm": (URL + "algorithms = []", "jwt.algorithms: "),
    "much patience": (URL + "leeway = 3600", "jwt.leeway: "),
    "a name for anonymous": ('[anonymous]\naccounts = "*"\nname = "x"', "anonymous.name: "),
    "anonymous without accounts": ("[anonymous]", "anonymous.accounts: "),
}


@pytest.mark.parametrize(("text", "begins"), FILES.values(), ids=FILES)
def test_a_file_that_is_wrong_is_refused_by_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, begins: str
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    assert main.main(["--config", str(file), "--check-config"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"imagetasks-server: {begins}")
    assert err.count("\n") == 1
    assert TOKEN not in err


def test_what_is_permitted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(ONE + 'regions = ["eu-*"]\n[anonymous]\naccounts = "x"\nmethods = "ListTargets"\n')
    assert main.main(["--config", str(file), "--check-config"]) == 0
    said = capsys.readouterr().out
    assert "caller a: accounts *; Regions eu-*; methods *" in said
    assert "without a credential: accounts x; Regions *; methods ListTargets" in said
    assert "whoever" not in said
    assert main.main(["--check-config"]) == 0
    assert "whoever reaches it may ask everything" in capsys.readouterr().out


def test_no_caller_may_have_a_name_that_metrics_use_for_somebody_else() -> None:
    used = {Tally().payer, GATEWAY.payer, OTHER}
    anonymous = AnonymousSettings(accounts=("*",))
    used.add(Policy((), anonymous, None).permission(ANONYMOUS, "ListTargets").caller)
    assert used == OWN_NAMES


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    _loads(file)


_values = st.recursive(
    st.one_of(
        st.integers(), st.booleans(), st.sampled_from(['"*"', '"spiffe://x/y"', '"a"', '"\\u0000"', '""'])
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(map(str, items))}]"),
    max_leaves=5,
)
_keys = (
    "name",
    "accounts",
    "regions",
    "methods",
    "token_sha256",
    "spiffe",
    "dns",
    "burst",
    "open_streams",
    "x",
)


@given(
    st.dictionaries(st.sampled_from(_keys), _values, max_size=6),
    st.sampled_from(["[[callers]]", "[anonymous]"]),
)
def test_any_caller_is_a_configuration_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object], table: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "caller.toml"
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else value}" for key, value in fields.items()
    ]
    file.write_text("\n".join([table, *lines]))
    _loads(file)


def _loads(file: Path) -> None:
    try:
        settings = load(str(file))
    except ConfigError as error:
        assert str(error)  # noqa: PT017  # either is right
    else:
        assert settings.accounts


def hashed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    status = main.main(["hash-token"])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_token_is_hashed_and_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = hashed(monkeypatch, capsys, TOKEN + "\n")
    assert told == (0, f'token_sha256 = "{sha256(TOKEN)}"\n', "")


def test_a_token_is_made_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = set()
    for _ in range(2):
        status, out, err = hashed(monkeypatch, capsys, "")
        token = err.split()[-1]
        assert (status, out) == (0, f'token_sha256 = "{sha256(token)}"\n')
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)
        made.add(token)
    assert len(made) == 2


@pytest.mark.parametrize("token", ["short", "x" * 31, "with a space" * 9, "x" * 8193, "ü" * 40])
def test_what_is_no_token_or_could_be_guessed_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    status, out, err = hashed(monkeypatch, capsys, token)
    assert (status, out) == (2, "")
    assert token not in err
