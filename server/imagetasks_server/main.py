"""The command `imagetasks-server`: reads its arguments and settings, and does what they say.

What only some of the commands need is imported by them: a health check runs every few seconds.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from imagetasks_server.command import described, parser
from imagetasks_server.config import ConfigError, Settings, load


def main(argv: Sequence[str] | None = None) -> int:
    """The command `imagetasks-server`.

    Returns:
        The exit status: 0; 1 where a command finds fault; 2 for a bad configuration.
    """
    arguments = parser().parse_args(argv)
    if arguments.command == "hash-token":
        from imagetasks_server.token_command import hash_token  # noqa: PLC0415

        return hash_token(sys.stdin)
    try:
        return _command(arguments)
    except ConfigError as error:
        sys.stderr.write(f"imagetasks-server: {error}\n")
        return 2


def _command(arguments: argparse.Namespace) -> int:
    # A command opens no address, so where the gateway may listen in plaintext is none of its business. A
    # container's health check knows nothing of an --insecure that the gateway was started with.
    is_asking = arguments.command is not None
    read = functools.partial(
        load,
        arguments.config,
        listen=arguments.listen,
        insecure=arguments.insecure or is_asking or None,
        log_level=arguments.log_level,
    )
    settings = read()
    if arguments.check_config:
        _check(settings)
        return 0
    if arguments.command == "health":
        from imagetasks_server.probe import ask  # noqa: PLC0415

        return ask(settings, arguments.service, arguments.timeout)
    sandbox_arguments = ["--speed", str(arguments.sandbox_speed)] if arguments.sandbox else None
    if arguments.command == "doctor":
        from imagetasks_server.doctor_command import doctor  # noqa: PLC0415

        return doctor(
            settings,
            arguments.account,
            arguments.region,
            sandbox_arguments,
            as_json=arguments.output == "json",
        )
    from imagetasks_server import serving  # noqa: PLC0415

    serving.run(settings, read, sandbox_arguments, exit_with_stdin=arguments.exit_with_stdin)
    return 0


def _check(settings: Settings) -> None:
    """Say what the settings mean. Raises `ConfigError` if what they name cannot be used."""
    if settings.tls_certificate is not None:
        from imagetasks_server.clock import steady_clock  # noqa: PLC0415
        from imagetasks_server.tls import Files, load_certificate  # noqa: PLC0415

        if files := Files.of(settings):
            load_certificate(files, steady_clock()())
    if settings.jwt is not None:
        from imagetasks_server.jwks import load_keys  # noqa: PLC0415

        load_keys(settings.jwt)
    sys.stdout.write(f"The configuration is good.\n{described(settings)}")
