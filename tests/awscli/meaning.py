"""What of two outputs cannot be equal, made equal by its meaning. Nothing else is exempt.

The value of a token is EC2's in the AWS CLI and the gateway's in ours: resume tokens become the number of
items they skip, raw ones a word. In a table a token's length is in the widths, so there cells are compared.
botocore tells how often it tried; a policy's refusal has a blob of EC2's; argparse names the program.
"""

import base64
import binascii
import json
import re
import zlib
from dataclasses import replace

from command_lines import Ending

_TOKEN = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_TABLE_RULE = re.compile(r"[-+|]*\n?")


def of(ending: Ending) -> Ending:
    """The ending with tokens, and what else is exempt, by meaning."""
    # A query for an expression itself prints where it lies in memory: in each run of either elsewhere.
    stdout = re.sub(r"(?<= object at )0x[0-9a-f]+", "anywhere", ending.stdout)
    unmeant, stdout = stdout, _TOKEN.sub(lambda found: _meaning(found[0]), stdout)
    if stdout != unmeant and "-----" in stdout and "|" in stdout:
        stdout = _cells(stdout)
    return replace(ending, stdout=stdout, stderr=_error(ending.stderr))


def _error(text: str) -> str:
    text = re.sub(r" \(reached max retries: \d+\)", "", text)
    text = re.sub(r"\s*Encoded authorization failure message: [^\s\x1b]+", "", text)
    return re.sub(r"^aws: error: ", "imagetasks: error: ", text, flags=re.MULTILINE)


def resume_token(stdout: str) -> str | None:
    """The resume token that a command printed, if any."""
    for found in _TOKEN.findall(stdout):
        if _is_resume_token(found):
            return str(found)
    return None


def _decoded(text: str) -> object:
    try:
        return json.loads(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        return None


def _is_resume_token(text: str) -> bool:
    token = _decoded(text)
    return isinstance(token, dict) and "NextToken" in token


def _meaning(text: str) -> str:
    token = _decoded(text)
    if isinstance(token, dict) and "NextToken" in token:
        if token["NextToken"] is None:
            return text  # nothing of EC2's or the gateway's is in it
        return f"<resume after {token.get('boto_truncate_amount')}>"
    if isinstance(token, list) and len(token) == 2:
        return "<raw>"  # the canned EC2's
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[8:]
        json.loads(zlib.decompress(raw[1:]) if raw[:1] == b"z" else raw[1:])
    except (ValueError, zlib.error):
        return text
    return "<raw>"  # the gateway's


def _cells(table: str) -> str:
    """What stands in the cells, in any order: a long token may turn rows that a short one does not."""
    lines = (re.sub(r"\x1b\[\d*m", "", line) for line in table.splitlines())
    cells = (cell.strip() for line in lines if not _TABLE_RULE.fullmatch(line) for cell in line.split("|"))
    return "\n".join(sorted(filter(None, cells)))
