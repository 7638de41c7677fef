"""What may be typed after `imagetasks-server`, and what `--check-config` says."""

import argparse
import importlib.metadata

from imagetasks_server.account_settings import Access
from imagetasks_server.caller_settings import Granted
from imagetasks_server.config import Settings
from imagetasks_server.contract import SERVICE


def parser() -> argparse.ArgumentParser:
    """Of the whole command line. `command` is None for serving."""
    parser = argparse.ArgumentParser(
        prog="imagetasks-server",
        description="The gateway: gRPC in front, Amazon EC2's DescribeStoreImageTasks behind.",
        epilog="Without configuration: the ambient AWS credentials, all enabled Regions, 127.0.0.1:50051. "
        "To try it without AWS: imagetasks-server --sandbox",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (else $IMAGETASKS_CONFIG)")
    parser.add_argument("--listen", metavar="ADDRESS", help="address:port or unix:/path (127.0.0.1:50051)")
    parser.add_argument(
        "--insecure", action="store_true", help="allow plaintext on an address that others can reach"
    )
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="least level logged (info)"
    )
    parser.add_argument("--sandbox", action="store_true", help="start the sandbox and use it instead of AWS")
    parser.add_argument(
        "--sandbox-speed", metavar="FACTOR", type=float, default=1.0, help="how fast its tasks progress (1)"
    )
    parser.add_argument(
        "--exit-with-stdin", action="store_true", help="end when stdin ends, so also when the parent dies"
    )
    parser.add_argument(
        "--check-config", action="store_true", help="check the settings, say what they are, and end"
    )
    parser.add_argument(
        "--version", action="version", version=f"imagetasks-server {importlib.metadata.version('imagetasks')}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="instead of serving")
    _add_doctor(commands)
    _add_health(commands)
    commands.add_parser(
        "hash-token",
        help="make a bearer token, or read one from stdin, and print what the configuration needs of it",
        description="Prints the token_sha256 of a bearer token: of one read from stdin, or of a new one, "
        "which is printed on stderr.",
        epilog="Exit status: 0, or 2 if what was read is no token, or too short.",
    )
    return parser


def described(settings: Settings) -> str:
    """What the settings mean, a line each."""
    lines = [f"listens on {settings.listen}, {_protection(settings)}"]
    if settings.health_listen is not None:
        lines.append(f"answers for its health on {settings.health_listen}")
    lines += [
        f"account {each.name}: {each.role_arn or _credentials(each)}; {_regions(each)}"
        for each in settings.accounts
    ]
    lines += [
        f"organization {each.name}: role {each.role_name} in {', '.join(each.units) or 'all accounts'}, "
        f"listed with {each.role_arn or _credentials(each)}; {_regions(each)}"
        for each in settings.organizations
    ]
    lines += [f"caller {each.name}: {_sees(each)}" for each in settings.callers]
    if settings.anonymous is not None:
        lines.append(f"without a credential: {_sees(settings.anonymous)}")
    if settings.is_open:
        lines.append("no callers: whoever reaches it may ask everything")
    return "".join(f"  {line}\n" for line in lines)


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    doctor = commands.add_parser(
        "doctor",
        help="ask AWS a dozen questions and tell what works, what does not, and what mends it",
        description="Asks AWS a dozen questions and tells, target by target, what works, what does not, and "
        "what mends it. Spends at most 5 calls of a target's own small allowance.",
        epilog="Exit status: 0 nothing fails, 1 something fails, 2 the configuration cannot be used.",
        # What is not given here may have been given before the command.
        argument_default=argparse.SUPPRESS,
    )
    doctor.add_argument("--config", metavar="FILE", help="as without the command")
    doctor.add_argument("--sandbox", action="store_true", help="look at a sandbox instead of AWS")
    doctor.add_argument(
        "--account", metavar="NAME", action="append", default=[], help="only this account (repeatable)"
    )
    doctor.add_argument(
        "--region", metavar="REGION", action="append", default=[], help="only this Region (repeatable)"
    )
    doctor.add_argument(
        "--output", choices=["text", "json"], default="text", help="for people or programs (text)"
    )


def _add_health(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    health = commands.add_parser(
        "health",
        help="ask the gateway that runs with this configuration whether it serves",
        description="Asks the gateway that runs with this configuration on this machine.",
        epilog="Exit status: 0 it serves, 1 it does not, 2 the configuration cannot be used.",
        argument_default=argparse.SUPPRESS,
    )
    health.add_argument("--config", metavar="FILE", help="as without the command")
    health.add_argument("--listen", metavar="ADDRESS", help="where the gateway was told to listen")
    health.add_argument(
        "--service",
        metavar="NAME",
        default=SERVICE.full_name,
        help='a service; "": the whole process; "alive": whether it answers at all (%(default)s)',
    )
    health.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=3.0, help="for all of it (%(default)g)"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _protection(settings: Settings) -> str:
    if settings.tls_certificate is None:
        return "in plaintext"
    return "with TLS" if settings.tls_client_ca is None else "with TLS, for clients with a certificate"


def _credentials(access: Access) -> str:
    return f"profile {access.profile}" if access.profile else "ambient credentials"


def _sees(granted: Granted) -> str:
    return (
        f"accounts {', '.join(granted.accounts)}; Regions {', '.join(granted.regions)}; "
        f"methods {', '.join(granted.methods)}"
    )


def _regions(access: Access) -> str:
    excluded = f" except {', '.join(access.exclude_regions)}" if access.exclude_regions else ""
    return (", ".join(access.regions) or "all enabled Regions") + excluded
