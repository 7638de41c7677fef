"""One question to both command lines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import meaning
from command_lines import Ending
from hypothesis import reject

from canned.launch import Canned

# Both are told so: the AWS CLI would otherwise wait seconds between its tries.
_PATIENCE = {"AWS_MAX_ATTEMPTS": "1"}


class CommandLine(Protocol):
    def run(
        self, words: Sequence[str], environment: Mapping[str, str], columns: int | None = None
    ) -> Ending: ...


@dataclass(frozen=True)
class Pair:
    """The AWS CLI on an EC2, and ours on a gateway in front of the same.

    Attributes:
        profile: The account that the AWS CLI's credentials are of, as the gateway calls it.
        region: Where both ask if the words do not say; the AWS CLI has no default.
    """

    aws: CommandLine
    ours: CommandLine
    environment: Mapping[str, str]
    address: str
    profile: str = ""
    region: str = "us-east-1"

    def both(self, words: Sequence[str], columns: int | None = None) -> tuple[Ending, Ending]:
        """How each ends."""
        command = ["ec2", "describe-store-image-tasks", *words]
        environment = dict(self.environment) | _PATIENCE | {"AWS_DEFAULT_REGION": self.region}
        environment.pop("AWS_REGION", None)
        gateway = environment | {"IMAGETASKS_ENDPOINT": self.address}
        own = ["--profile", self.profile] if self.profile else []
        return self.aws.run(command, environment, columns), self.ours.run([*command, *own], gateway, columns)

    def compare(self, words: Sequence[str], columns: int | None = None) -> tuple[Ending, Ending]:
        """Asserts that both end alike, by meaning where they cannot; returns how."""
        theirs, ours = self.both(words, columns)
        meant, is_meant = meaning.of(theirs), meaning.of(ours)
        assert (is_meant.stdout, ours.code) == (meant.stdout, theirs.code), (words, ours, theirs)
        if " - DEBUG - " in theirs.stderr:
            # A log is each program's own; the error that it ends with is not.
            assert theirs.code == 0 or is_meant.last_line == meant.last_line, words
        elif theirs.stderr.startswith("usage:"):
            assert ours.stderr.startswith("usage:"), words
            assert is_meant.last_line == meant.last_line, words
        else:
            assert is_meant.stderr == meant.stderr, (words, ours.stderr, theirs.stderr)
        return theirs, ours

    def walk(self, words: Sequence[str], columns: int | None = None, *, steps: int = 6) -> int:
        """Compares a command, and then again and again from where each was cut off; how many steps."""
        tokens: tuple[str | None, str | None] = (None, None)
        for step in range(steps):
            theirs, ours = self._from(words, tokens, columns)
            tokens = meaning.resume_token(theirs.stdout), meaning.resume_token(ours.stdout)
            assert (tokens[0] is None) == (tokens[1] is None), words
            if tokens[0] is None:
                return step + 1
        return steps

    def _from(
        self, words: Sequence[str], tokens: tuple[str | None, str | None], columns: int | None
    ) -> tuple[Ending, Ending]:
        if tokens[0] is None or tokens[1] is None:
            return self.compare(words, columns)
        of = {id(self.aws): tokens[0], id(self.ours): tokens[1]}
        resumed = replace(
            self, aws=_Resumed(self.aws, of[id(self.aws)]), ours=_Resumed(self.ours, of[id(self.ours)])
        )
        return resumed.compare(words, columns)


@dataclass(frozen=True)
class _Resumed:
    """A command line that goes on from a token of its own."""

    line: CommandLine
    token: str

    def run(self, words: Sequence[str], environment: Mapping[str, str], columns: int | None = None) -> Ending:
        return self.line.run([*words, "--starting-token", self.token], environment, columns)


class Stage:
    """Worlds, each in a Region that nobody has asked before: a gateway never forgets what it has seen."""

    def __init__(
        self,
        canned: Canned,
        account: str,
        regions: Sequence[str],
        address: str,
        drivers: tuple[CommandLine, CommandLine],
    ) -> None:
        self._canned = canned
        self._account = account
        self._unused = list(regions)
        self._regions_of: dict[str, str] = {}
        self._pair = Pair(*drivers, canned.environment(account), address)

    def pair(self, **world: Any) -> Pair:
        """Both command lines on a world; see `canned.world` for what it is made of."""
        made_of = json.dumps(world, sort_keys=True)
        if made_of not in self._regions_of:
            if not self._unused:
                reject()  # a failing example has used them up: it is as small as it gets
            self._regions_of[made_of] = region = self._unused.pop()
            self._canned.post({"account": self._account, "region": region, **world})
        return replace(self._pair, region=self._regions_of[made_of])
