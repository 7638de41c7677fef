"""Plays every scenario to every language and prints the matrix; fails if one does not do as it says.

    python tests/conformance/run.py [--languages python,go] [--scenarios watch] [--built]

Each language's runner is started as `languages.yaml` says. What a language lacks by its nature stands there
too, with the reason; a scenario that needs it shows "-". Anything else that does not pass is a hole.
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import grpc
import trustme
from runner_process import ROOT, Runner, RunnerError, running
from scenario_data import LANGUAGES, Scenario, load
from scenario_messages import METHODS, build, encode, request_type
from scripted_conversation import Encode, as_contracted, conversation
from verdict import asked, observed

# Seconds until the gateway has noticed that a caller left.
NOTICES = 5.0
# Processes at once, over all languages: most scenarios wait most of their time, but their budgets are short,
# and too many runners on a small machine would spend them on each other.
RUNNERS = 4
# Of one language, so that none keeps the others out until it is through.
RUNNERS_OF_ONE = 2
# What a runner is given first, and nobody judges: a cold runtime takes seconds over its first call.
WARM_UP = "describe-nothing"


class Authority:
    """Certificates for the scripted gateway: one that clients are to trust, one that they are not."""

    def __init__(self, place: Path) -> None:
        self.bundle = place / "ca.pem"
        # A client's own certificate, for a gateway that wants one, and its key.
        self.certificate, self.key = place / "client.pem", place / "client.key"
        trusted, stranger = trustme.CA(), trustme.CA()
        trusted.cert_pem.write_to_path(self.bundle)
        client = trusted.issue_cert("client.example")
        client.private_key_pem.write_to_path(self.key)
        self.certificate.write_bytes(_chain(client))
        pair, strange = trusted.issue_cert("127.0.0.1"), stranger.issue_cert("127.0.0.1")
        identity = [(pair.private_key_pem.bytes(), _chain(pair))]
        self._of: dict[bool | str, grpc.ServerCredentials] = {
            True: grpc.ssl_server_credentials(identity),
            "untrusted": grpc.ssl_server_credentials([(strange.private_key_pem.bytes(), _chain(strange))]),
            "mutual": grpc.ssl_server_credentials(
                identity, root_certificates=trusted.cert_pem.bytes(), require_client_auth=True
            ),
        }

    def credentials(self, scenario: Scenario) -> grpc.ServerCredentials | None:
        """What the gateway of a scenario serves with; None: plaintext."""
        return self._of.get(scenario.tls)


def _chain(leaf: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)


async def play(
    scenario: Scenario,
    runner: Runner,
    authority: Authority,
    speaks: Encode = as_contracted,
) -> list[str]:
    """Plays a scenario to a runner; returns what is wrong."""
    async with conversation(scenario, authority.credentials(scenario), speaks) as served:
        command = {
            "scenario": scenario.name,
            "endpoint": served.endpoint,
            "ca": str(authority.bundle) if scenario.tls else None,
            "certificate": str(authority.certificate) if scenario.tls == "mutual" else None,
            "key": str(authority.key) if scenario.tls == "mutual" else None,
            **scenario.do,
            "request": encode(
                build(request_type(METHODS[scenario.do["call"]]), scenario.do.get("request", {}))
            ),
        }
        try:
            told = await runner.run(command)
        except RunnerError as error:
            return [str(error), *served.faults]
        for call in served.arrived:
            try:
                async with asyncio.timeout(NOTICES):
                    await call.over.wait()
            except TimeoutError:
                break  # told below: it still runs
        return [*served.faults, *observed(scenario, told), *asked(scenario, served.arrived)]


def lacks(language: str, scenario: Scenario) -> str:
    """Why a scenario is not for a language, or nothing."""
    missing = LANGUAGES[language].get("lacks", {})
    return next((missing[need] for need in scenario.needs if need in missing), "")


def command_of(language: str) -> list[str]:
    """How to start a language's runner."""
    return [part.replace("{python}", sys.executable) for part in shlex.split(LANGUAGES[language]["run"])]


async def conform(
    language: str, scenarios: Sequence[Scenario], room: asyncio.Semaphore
) -> dict[str, list[str] | None]:
    """Plays scenarios to one language: by name what is wrong, None where it does not apply.

    Args:
        language: Of `languages.yaml`.
        scenarios: All; those that it lacks the means for are left out here.
        room: For each runner's process.
    """
    results: dict[str, list[str] | None] = {
        scenario.name: None for scenario in scenarios if lacks(language, scenario)
    }
    left = deque(scenario for scenario in scenarios if scenario.name not in results)
    (warm_up,) = (scenario for scenario in load() if scenario.name == WARM_UP)

    async def some(authority: Authority) -> None:
        async with room, running(command_of(language)) as runner:
            while left:
                if not runner.is_running:
                    await play(warm_up, runner, authority)
                if not left:
                    break  # the other has taken the last meanwhile
                scenario = left.popleft()
                results[scenario.name] = await play(scenario, runner, authority)

    with tempfile.TemporaryDirectory() as place:
        authority = Authority(Path(place))
        await asyncio.gather(*(some(authority) for _ in range(RUNNERS_OF_ONE)))
    return results


def is_built(language: str) -> bool:
    """Whether what its runner needs is there."""
    needed = LANGUAGES[language].get("built")
    return needed is None or (ROOT / needed).exists()


def matrix(scenarios: Sequence[Scenario], results: dict[str, dict[str, list[str] | None]]) -> str:
    """The results as a table: a line for each scenario, a column for each language."""
    width = max(len(scenario.name) for scenario in scenarios)
    lines = [" " * width + "".join(f"  {language:10}" for language in results)]
    group = ""
    for scenario in scenarios:
        if scenario.group != group:
            group = scenario.group
            lines.append(group)
        shown = ""
        for of_language in results.values():
            found = of_language[scenario.name]
            shown += f"  {'-' if found is None else 'HOLE' if found else 'ok':10}"
        lines.append(f"{scenario.name:{width}}{shown}".rstrip())
    return "\n".join(lines)


async def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="Plays the conformance scenarios to the clients.")
    parser.add_argument("--languages", default="", help="by comma; else all")
    parser.add_argument("--scenarios", default="", help="only those whose group or name has this in it")
    parser.add_argument("--built", action="store_true", help="leave out languages that are not built")
    chosen = parser.parse_args(arguments)
    languages = [each for each in chosen.languages.replace(",", " ").split() if each] or list(LANGUAGES)
    if strangers := set(languages) - set(LANGUAGES):
        parser.error(f"no such language: {', '.join(sorted(strangers))}")
    scenarios = [each for each in load() if chosen.scenarios in f"{each.group} {each.name}"]
    if not scenarios:
        parser.error(f"no scenario has {chosen.scenarios!r} in its name")
    for language in [each for each in languages if not is_built(each)]:
        sys.stdout.write(f"{language} is not built: make client-{language}\n")
        if not chosen.built:
            return 1
        languages.remove(language)
    room = asyncio.Semaphore(RUNNERS)
    done = await asyncio.gather(*(conform(language, scenarios, room) for language in languages))
    results = dict(zip(languages, done, strict=True))
    sys.stdout.write(f"{matrix(scenarios, results)}\n")
    holes = [
        f"{language}: {name}: {fault}"
        for language, of_language in results.items()
        for name, faults in of_language.items()
        for fault in faults or ()
    ]
    for language in languages:
        for need, why in LANGUAGES[language].get("lacks", {}).items():
            sys.stdout.write(f"- {language} has no {need}: {why}\n")
    sys.stdout.write("".join(f"{hole}\n" for hole in holes))
    played = sum(faults is not None for each in results.values() for faults in each.values())
    sys.stdout.write(f"{len(scenarios)} scenarios, {played} played, {len(holes)} faults\n")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
