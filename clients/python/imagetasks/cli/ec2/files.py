"""Values that are kept elsewhere: file://, fileb://, and as in version 1 of the AWS CLI http:// and https://."""

import locale
import os

LOCAL = ("file://", "fileb://")
REMOTE = ("http://", "https://")

_FETCH_SECONDS = 60.0
_OK = 200


class Unreadable(Exception):
    """What was named cannot be read; the text says why."""


def load(value: object, *, remote: bool = True) -> str | bytes | None:
    """What a value names, or None if it names nothing but is itself the value.

    Args:
        value: An option's value.
        remote: Also fetch what is named by an http or https address.

    Raises:
        Unreadable: It cannot be read.
    """
    if not isinstance(value, str):
        return None
    if value.startswith(LOCAL):
        return _read(value)
    if remote and value.startswith(REMOTE):
        return _fetch(value)
    return None


def _read(address: str) -> str | bytes:
    prefix = next(prefix for prefix in LOCAL if address.startswith(prefix))
    # As the shell would: "~" and "$HOME" are the user's.
    path = os.path.expandvars(os.path.expanduser(address.removeprefix(prefix)))  # noqa: PTH111 - "" stays ""
    try:
        # open() and not Path: an empty path is an error, not the current directory.
        if prefix == "fileb://":
            with open(path, "rb") as binary:  # noqa: PTH123
                return binary.read()
        with open(path, encoding=locale.getpreferredencoding()) as text:  # noqa: PTH123
            return text.read()
    except UnicodeDecodeError:
        raise Unreadable(
            f"Unable to load paramfile ({path}), text contents could not be decoded.  If this is a binary "
            "file, please use the fileb:// prefix instead of the file:// prefix."
        ) from None
    except OSError as error:
        raise Unreadable(f"Unable to load paramfile {address}: {error}") from None


def _fetch(address: str) -> str:
    from urllib.error import HTTPError  # noqa: PLC0415 - hardly ever used, and slow to import
    from urllib.request import urlopen  # noqa: PLC0415

    try:
        with urlopen(address, timeout=_FETCH_SECONDS) as answer:  # noqa: S310 - http and https only
            status, content = answer.status, answer.read()
            encoding = answer.headers.get_content_charset() or "utf-8"
    except HTTPError as error:
        error.close()
        status, content, encoding = error.code, b"", "utf-8"
    except OSError as error:
        raise Unreadable(f"Unable to retrieve {address}: {error}") from None
    if status != _OK:
        raise Unreadable(f"Unable to retrieve {address}: received non 200 status code of {status}")
    return str(content, encoding)
