"""Credentials that renew themselves, and are found anew when AWS says that they have expired.

Botocore refreshes what it knows the end of. What it does not know, a shared file that somebody rewrites or a
session that was ended early, is found anew: the same steps from the start, once for all who use it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from botocore.exceptions import CredentialRetrievalError, NoCredentialsError


class Credentials:
    """What botocore signs with, in place of its own credentials.

    Args:
        find: Finds the credentials, as botocore's own object; None: there are none.
        source: Those that are used to find them, and are doubted with them.

    Attributes:
        method: Where they are from, as botocore's user agent tells it.
        generation: How often they were found to have expired.
    """

    method = "imagetasks"

    def __init__(self, find: Callable[[], Awaitable[Any]], source: "Credentials | None" = None) -> None:
        self.generation = 0
        self._source = source
        self._source_generation = 0
        self._find = find
        self._found: Any = None
        self._lock = asyncio.Lock()

    async def get_frozen_credentials(self) -> Any:
        """Key, secret and token of this moment.

        Raises:
            Exception: What botocore raises, NoCredentialsError for example.
        """
        async with self._lock:
            if self._found is None:
                self._source_generation = self._source.generation if self._source else 0
                self._found = await self._find()
            found = self._found
        if found is None:
            raise NoCredentialsError
        try:
            return await found.get_frozen_credentials()
        except RuntimeError as error:  # botocore's word for a refresh that brought expired ones
            raise CredentialRetrievalError(provider=self.method, error_msg=str(error)) from error

    def get_deferred_property(self, _name: str) -> Callable[[], None]:
        """What endpoints may be made of; those of the services here are the same for all accounts."""
        return lambda: None

    async def get_account_id(self) -> None:
        """As `get_deferred_property`."""

    def forget(self, generation: int) -> None:
        """Find them anew before they are used again, unless that was done since `generation`."""
        if generation == self.generation:
            self.generation += 1
            self._found = None
            if self._source is not None:
                self._source.forget(self._source_generation)
