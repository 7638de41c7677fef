"""Settings: a TOML file, overridden by environment variables, in one model.

The file is named by `--config` or `IMAGETASKS_CONFIG`. A variable is `IMAGETASKS_` and the key in
upper case; below a table, two underscores: `IMAGETASKS_BUDGET__SHARE=0.5`. Without either the
gateway uses the ambient AWS credentials, all enabled Regions, and listens on 127.0.0.1:50051.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from imagetasks_server.account_settings import (
    AccountSettings,
    FilePath,
    OrganizationSettings,
    Table,
)
from imagetasks_server.addresses import Address, TcpAddress, is_local
from imagetasks_server.amounts import Bytes, Count, Seconds, SecondsOrNone
from imagetasks_server.caller_settings import (
    AnonymousSettings,
    CallerSettings,
    JwtSettings,
    check_callers,
)
from imagetasks_server.limit_settings import LimitSettings


class ConfigError(Exception):
    """The configuration cannot be used; the text names the key."""


class BudgetSettings(Table):
    """What the gateway may ask of EC2, per account and Region."""

    capacity: Annotated[float, Field(ge=1, le=1e6)] = 50.0
    """EC2's bucket, in calls. AWS's default for this action; a quota may be higher."""
    refill: Annotated[float, Field(ge=1e-5, le=1e6)] = 0.5
    """Calls per second that EC2 adds to it. As `capacity`."""
    reserve: Annotated[float, Field(ge=0, le=0.99)] = 0.2
    """The part left to people and programs beside the gateway. More: safer for them, older answers."""
    share: Annotated[float, Field(ge=0.001, le=1)] = 1.0
    """This process's part of the rest: 1 / replicas, counting those that a rollout adds."""
    initial: Annotated[float, Field(ge=0, le=1e6)] = 5.0
    """Calls that may be made at once after a start, by all replicas together; each has its `share`, and one
    at least. More: a faster first answer of long lists; less: a crash loop spends less."""


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix="IMAGETASKS_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    listen: Address = "127.0.0.1:50051"
    """Address and port, "[::1]:50051", or "unix:/run/imagetasks.sock". Port 0: any free one."""
    tls_certificate: FilePath | None = None
    """PEM file: the gateway's certificate, then those between it and its authority. Calls are encrypted then,
    with TLS 1.2 or 1.3. A new one is in force with the next connection. Absent: plaintext."""
    tls_key: FilePath | None = None
    """PEM file: its private key, unencrypted. RSA of 2048 bits or more, P-256 or P-384."""
    tls_client_ca: FilePath | None = None
    """PEM file: the authorities of clients. Every client needs a certificate of one of them then. Absent:
    none needs one."""
    health_listen: Address | None = None
    """As `listen`, one more address, in plaintext, where the health service alone answers: for those who ask
    without TLS or without a certificate, as Kubernetes does. Absent: it answers on `listen` only."""
    check_credentials_every: Seconds = 30.0
    """Seconds between two looks whether any account has credentials, one call to STS; without any, health
    says NOT_SERVING. More: fewer calls; less: it says so sooner."""
    insecure: bool = False
    """Listen in plaintext on an address others can reach. Whoever reaches it may ask everything."""
    reflection: bool | None = None
    """Serve gRPC reflection. Absent: on loopback and Unix sockets only."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    log_json: bool | None = None
    """Log JSON lines. Absent: unless stderr is a terminal."""

    metrics_listen: TcpAddress = ""
    """Address and port for Prometheus, "127.0.0.1:9464", which finds `/metrics` there. Absent: none."""
    metrics_insecure: bool = False
    """Let others reach `metrics_listen`. It is plaintext, and whoever reaches it sees the names of accounts
    and callers, and all numbers; no tasks, and it changes nothing."""
    tracing: bool = False
    """Send traces by OTLP over HTTP, to where the standard OTEL_* variables say; needs the extra `otel`. Each
    call then costs about 0.1 ms more."""

    accounts: tuple[AccountSettings, ...] = (AccountSettings(name="default"),)
    """The accounts. Absent: one, "default", with the ambient credentials, unless there are organizations."""
    organizations: tuple[OrganizationSettings, ...] = ()
    """AWS organizations whose accounts are found out. Their accounts come beside `accounts`."""
    budget: BudgetSettings = BudgetSettings()
    """What may be asked of EC2."""
    callers: tuple[CallerSettings, ...] = ()
    """Who may ask, and what each may see. Neither these nor `anonymous` nor `jwt`: anybody who reaches the
    gateway may ask everything."""
    anonymous: AnonymousSettings | None = None
    """What may be seen without a credential. Absent, and there are callers: nothing."""
    jwt: JwtSettings | None = None
    """Which JSON Web Tokens are believed. Absent: none."""
    limits: LimitSettings = LimitSettings()
    """How much is let in."""

    default_max_age: SecondsOrNone = 5.0
    """Seconds an answer may be old where a caller does not say. More: fewer calls to EC2."""
    poll_interval: Seconds = 5.0
    """Seconds between reads of a followed target while something is in progress there. More: fewer calls to
    EC2; less: changes are seen sooner. Never more often than half of what the budget sustains."""
    idle_poll_interval: Seconds = 30.0
    """The same while nothing is in progress. More: fewer calls; less: a new task is seen sooner."""
    poll_linger: SecondsOrNone = 10.0
    """Seconds for which a target is still read after its last follower left: a watch that is opened again
    at once finds everything fresh."""
    heartbeat_interval: Seconds = 25.0
    """Seconds after which a watcher who is caught up hears so again, and after which a new account or Region
    is found. More: less processor, 4 % of a core for 10,000 watchers at the default; less: sooner. That a
    connection is dead is noticed by keepalive; behind a proxy that answers keepalive itself, after three of
    these."""
    stalled_after: Seconds = 1800.0
    """Seconds without progress after which a task counts as stalled."""
    default_deadline: Seconds = 60.0
    """Seconds a call may take where the caller set no deadline."""
    page_timeout: Seconds = 20.0
    """Seconds one call to EC2 may take. Less: a hanging Region fails sooner; more: a slow one succeeds."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Times that one call to AWS is tried, within `page_timeout`, when AWS fails; a throttle is not tried
    again. Each try is paid. More: passing faults are seen less; less: they cost fewer calls."""
    connect_timeout: Seconds = 5.0
    """Seconds to connect to an AWS endpoint, within `page_timeout`."""
    discovery_timeout: Seconds = 10.0
    """Seconds to find out an account's id and Regions."""
    region_expiry: Seconds = 3600.0
    """Seconds for which a discovered list of Regions is good. Less: a Region enabled today is seen sooner."""
    confirm_removal_after: Seconds = 5.0
    """Seconds between two full reads that must both lack a task before it is taken as gone."""
    full_read_every: Seconds = 600.0
    """Seconds between full reads of a target; between them only what can have changed is read. More: fewer
    calls to EC2; less: a task that EC2 dropped is noticed sooner."""
    distrust_for: Seconds = 1800.0
    """Seconds of full reads only, after EC2 changed a task that had ended or listed one late."""
    read_timeout: Seconds = 300.0
    """Seconds one read of a target may take in all, waiting for its budget included. Less: a target
    with a very long list may never be read to its end."""
    stale_for: Seconds = 3600.0
    """Seconds for which the last good state stands in while EC2 cannot be asked. More: an answer in a longer
    outage; less: never a very old one."""
    keep_unused_for: Seconds = 3600.0
    """Seconds for which the state of a target that nobody asks for is kept. More: memory; less: the next
    answer needs a full read."""
    keep_tasks: Count = 1_000_000
    """Tasks kept in all, about 350 bytes each; above, the targets unused for longest are forgotten."""
    remember_refusals_for: Seconds = 30.0
    """Seconds for which EC2 is not asked again after it refused for want of permission, credentials or an
    enabled Region. More: fewer calls in vain; less: a mended permission works sooner."""
    remember_lookups_for: Seconds = 60.0
    """Seconds for which an unknown image id or a dry run's answer is remembered."""
    answer_cache_bytes: Bytes = 32 * 1024 * 1024
    """Memory for serialised answers. 0: none is kept, each answer is built anew."""
    drain_seconds: Seconds = 10.0
    """Seconds that calls under way get to finish after the first signal to stop."""

    @model_validator(mode="before")
    @classmethod
    def _ambient_unless_told(cls, values: Any) -> Any:
        # The gateway's own account is rarely one of those it serves an organization from.
        if isinstance(values, dict) and values.get("organizations") and "accounts" not in values:
            return {**values, "accounts": ()}
        return values

    @field_validator("organizations")
    @classmethod
    def _names_are_unique(
        cls, organizations: tuple[OrganizationSettings, ...], info: ValidationInfo
    ) -> tuple[OrganizationSettings, ...]:
        accounts = info.data.get("accounts", ())
        names = [each.name for each in (*accounts, *organizations)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the name {min(twice)!r} stands twice")
        return organizations

    @model_validator(mode="after")
    def _something_to_serve(self) -> "Settings":
        if not self.accounts and not self.organizations:
            raise ValueError("accounts: at least one account or organization")
        return self

    @field_validator("tls_certificate", "tls_key", "tls_client_ca")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.absolute() if path else None

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "Settings":
        if self.tls_key is not None and self.tls_certificate is None:
            raise ValueError("tls_key: there is no tls_certificate that it is the key of")
        if self.tls_certificate is not None and self.tls_key is None:
            raise ValueError("tls_certificate: it needs its tls_key")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca: clients show a certificate only where tls_certificate is")
        return self

    @model_validator(mode="after")
    def _callers_are_told_apart(self) -> "Settings":
        try:
            check_callers(self.callers, self.jwt)
        except ValueError as error:
            raise ValueError(f"callers: {error}") from None
        return self

    @model_validator(mode="after")
    def _plaintext_stays_at_home(self) -> "Settings":
        if not self.insecure and not self.is_local and self.tls_certificate is None:
            raise ValueError(
                f"listen: {self.listen!r} can be reached from other machines, in plaintext and by anybody; "
                "set tls_certificate and tls_key, or say insecure = true (--insecure) if that is meant"
            )
        return self

    @model_validator(mode="after")
    def _metrics_stay_at_home(self) -> "Settings":
        if self.metrics_listen and not self.metrics_insecure and not is_local(self.metrics_listen):
            raise ValueError(
                f"metrics_listen: {self.metrics_listen!r} can be reached from other machines, in plaintext "
                "and by anybody; say metrics_insecure = true if that is meant"
            )
        return self

    @model_validator(mode="after")
    def _somebody_may_ask(self) -> "Settings":
        if self.names_nobody and not self.is_open:
            raise ValueError(
                f"callers: {self.listen!r} can be reached from other machines, and nobody may ask anything; "
                "name callers, or say insecure = true (--insecure) if everybody may"
            )
        return self

    @property
    def names_nobody(self) -> bool:
        """Whether nothing is said of who may ask."""
        return not self.callers and self.anonymous is None and self.jwt is None

    @property
    def is_open(self) -> bool:
        """Whether anybody who reaches the gateway may ask everything."""
        return self.names_nobody and (self.is_local or self.insecure)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach `listen`."""
        return is_local(self.listen)


def load(path: str | None, **overrides: object) -> Settings:
    """Read the settings.

    Args:
        path: The TOML file; None: `IMAGETASKS_CONFIG`, else none.
        overrides: Keys that the command line sets; None means that it does not.

    Raises:
        ConfigError: The file cannot be read, or a key is wrong; the text names it.
    """
    path = path or os.environ.get("IMAGETASKS_CONFIG") or None

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(  # pydantic's signature
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = [init_settings, env_settings]
            return (*sources, TomlConfigSettingsSource(settings_cls, Path(path))) if path else tuple(sources)

    try:
        if path and not Path(path).is_file():
            raise ConfigError(f"{path}: no such file")
        values = Sources(**{key: value for key, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8") from None
    except SettingsError as error:
        raise ConfigError(_of_a_variable(error)) from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(dict(each)) for each in error.errors())) from None
    return values


def _of_a_variable(error: SettingsError) -> str:
    """A variable that stands for a whole table or list; the text of the error is all that names it."""
    named = re.search(r'field "(\w+)"', str(error))
    key = named[1] if named else "environment"
    return f"{key}: IMAGETASKS_{key.upper()} is not JSON"


def _sentence(fault: dict[str, object]) -> str:
    location = fault["loc"]
    assert isinstance(location, tuple)
    key = ".".join(str(part) for part in location)
    text = str(fault["msg"]).removeprefix("Value error, ")
    return f"{key}: {text}" if key else text
