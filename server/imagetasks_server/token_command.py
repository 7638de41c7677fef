"""The command `imagetasks-server hash-token`: makes a bearer token, and what the configuration has of it."""

import secrets
import sys
from typing import Final, TextIO

from imagetasks_server.identity import MAX_TOKEN_CHARS, digest_of, is_token

# A hash keeps a secret only if nobody can try all that it may be the hash of.
MIN_CHARS: Final = 32
_NEW_BYTES: Final = 32


def hash_token(given: TextIO) -> int:
    """Read a token, or make one, and print its hash. Returns the exit status.

    Args:
        given: Where the token is read from; from a terminal, or if nothing comes, a new one is made, which
            is printed on stderr.
    """
    token = "" if given.isatty() else given.read().strip()
    if token and not (MIN_CHARS <= len(token) <= MAX_TOKEN_CHARS and is_token(token)):
        sys.stderr.write(
            f"imagetasks-server: a token has {MIN_CHARS} to {MAX_TOKEN_CHARS} of A-Z, a-z, 0-9 and -._~+/, "
            "and may end in =\n"
        )
        return 2
    if not token:
        token = secrets.token_urlsafe(_NEW_BYTES)
        sys.stderr.write(f"The token, which is told only once: {token}\n")
    sys.stdout.write(f'token_sha256 = "{digest_of(token).hex()}"\n')
    return 0
