"""The blocking client: the same names and meanings as `imagetasks.aio`, for programs without asyncio.

A client may be used from several threads.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Protocol, Self, TypeVar

import grpc

from imagetasks import channel as channels
from imagetasks import errors, outcomes, requests, waiting
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks.watch import BlockingWatch

Request = TypeVar("Request")
Response = TypeVar("Response")


def connect(
    endpoint: str | None = None,
    *,
    token: channels.Token | None = None,
    ca_bundle: channels.Pem | None = None,
    client_certificate: channels.Pem | None = None,
    client_key: channels.Pem | None = None,
    timeout: requests.Seconds | None = requests.DEFAULT_TIMEOUT,
    max_message_bytes: int = channels.DEFAULT_MAX_MESSAGE_BYTES,
    keepalive: float = channels.DEFAULT_KEEPALIVE,
    options: Sequence[channels.ChannelOption] = (),
) -> "Client":
    """A client of the gateway at an endpoint, to be used in `with`.

    Arguments and errors are those of `imagetasks.connect`. Nothing is dialled before the first call.
    """
    route = channels.route(
        endpoint,
        token=token,
        ca_bundle=ca_bundle,
        client_certificate=client_certificate,
        client_key=client_key,
        max_message_bytes=max_message_bytes,
        keepalive=keepalive,
        options=options,
    )
    if route.credentials is None:
        opened = grpc.insecure_channel(route.target, route.options)
    else:
        opened = grpc.secure_channel(route.target, route.credentials, route.options)
    return Client(opened, token=token, timeout=timeout)


class Client:
    """Asks one gateway; see `imagetasks.aio.Client` for the arguments of each method.

    Every method raises `imagetasks.Error`. `connect` makes one; the constructor takes a channel of your own.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        token: channels.Token | None = None,
        timeout: requests.Seconds | None = requests.DEFAULT_TIMEOUT,
    ) -> None:
        self._channel = channel
        self._stub = StoreImageTaskServiceStub(channel)
        self._token = token
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; calls that still run are cancelled."""
        self._channel.close()

    def describe(
        self,
        *,
        image_ids: Iterable[str] = (),
        filters: requests.Filters = (),
        accounts: Iterable[str] = (),
        regions: Iterable[str] = (),
        max_age: requests.Seconds | None = None,
        forbid_stale: bool = False,
        page_size: int | None = None,
        timeout: requests.Timeout = requests.Default.TIMEOUT,
    ) -> "Listing":
        """The tasks of all targets, newest first: EC2's operation, page by page."""
        request = requests.describe(
            image_ids=image_ids,
            filters=filters,
            accounts=accounts,
            regions=regions,
            max_age=max_age,
            forbid_stale=forbid_stale,
            page_size=page_size,
        )
        return Listing(self, request, timeout)

    def dry_run(
        self,
        *,
        accounts: Iterable[str] = (),
        regions: Iterable[str] = (),
        timeout: requests.Timeout = requests.Default.TIMEOUT,
    ) -> tuple[pb.TargetOutcome, ...]:
        """Whether the gateway's AWS identity may describe: one outcome per target, without status if it may.

        Raises:
            PermissionDeniedError: It may in none of the targets.
            Error: No target could tell.
        """
        request = requests.describe(accounts=accounts, regions=regions, dry_run=True)
        try:
            response = self._describe(request, timeout)
        except errors.FailedPreconditionError as error:
            return outcomes.of_dry_run(error)
        return tuple(response.target_outcomes)

    def stream(
        self,
        *,
        image_ids: Iterable[str] = (),
        filters: requests.Filters = (),
        accounts: Iterable[str] = (),
        regions: Iterable[str] = (),
        max_age: requests.Seconds | None = None,
        forbid_stale: bool = False,
        timeout: requests.Timeout = requests.Default.TIMEOUT,
    ) -> "Stream":
        """The tasks of all targets, each page as its Region answers, then outcomes and a summary."""
        request = requests.stream(
            image_ids=image_ids,
            filters=filters,
            accounts=accounts,
            regions=regions,
            max_age=max_age,
            forbid_stale=forbid_stale,
        )
        call = self._stub.StreamStoreImageTasks(
            request,
            timeout=requests.deadline(timeout, self._timeout),
            metadata=channels.metadata(self._token),
        )
        return Stream(call)

    def watch(
        self,
        *,
        image_ids: Iterable[str] = (),
        filters: requests.Filters = (),
        accounts: Iterable[str] = (),
        regions: Iterable[str] = (),
    ) -> BlockingWatch:
        """A snapshot of the tasks, then every change, while it is iterated; it keeps itself alive."""
        selector = requests.selector(image_ids=image_ids, filters=filters, accounts=accounts, regions=regions)
        return BlockingWatch(
            lambda request: self._stub.WatchStoreImageTasks(request, metadata=channels.metadata(self._token)),
            selector,
        )

    def wait(
        self,
        *,
        image_ids: Iterable[str] = (),
        filters: requests.Filters = (),
        accounts: Iterable[str] = (),
        regions: Iterable[str] = (),
        wait_for_appearance: bool = False,
        timeout: requests.Seconds | None = None,
    ) -> pb.WaitStoreImageTasksResponse:
        """Returns when every selected task has ended, or with the reason why it returns earlier."""
        wait = waiting.Wait(
            requests.selector(image_ids=image_ids, filters=filters, accounts=accounts, regions=regions),
            wait_for_appearance=wait_for_appearance,
            seconds=requests.patience(timeout),
            now=time.monotonic(),
        )
        while True:
            request, seconds = wait.request(time.monotonic())
            try:
                response = self._stub.WaitStoreImageTasks(
                    request, timeout=seconds, metadata=channels.metadata(self._token)
                )
            except grpc.RpcError as failure:
                pause: float | None = wait.failed(errors.from_call(failure), time.monotonic())
            else:
                pause = wait.answered(response, time.monotonic())
            if pause is None:
                return response
            time.sleep(pause)

    def targets(
        self,
        *,
        accounts: Iterable[str] = (),
        regions: Iterable[str] = (),
        timeout: requests.Timeout = requests.Default.TIMEOUT,
    ) -> pb.ListTargetsResponse:
        """The targets this caller may ask, and how the gateway stands with each. Asks EC2 for no tasks."""
        request = requests.targets(accounts=accounts, regions=regions)
        return self._answer(self._stub.ListTargets, request, timeout)

    def _describe(
        self,
        request: pb.DescribeStoreImageTasksRequest,
        timeout: requests.Timeout,
    ) -> pb.DescribeStoreImageTasksResponse:
        return self._answer(self._stub.DescribeStoreImageTasks, request, timeout)

    def _answer(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout: requests.Timeout,
    ) -> Response:
        try:
            return method(
                request,
                timeout=requests.deadline(timeout, self._timeout),
                metadata=channels.metadata(self._token),
            )
        except grpc.RpcError as failure:
            raise errors.from_call(failure) from failure


class Listing:
    """The answer to `describe`: iterate it for tasks, or its `pages()`. Each iteration asks anew.

    Targets that fail are missing from the tasks: `outcomes` tells, as each page's `target_outcomes` do.
    """

    def __init__(
        self,
        client: Client,
        request: pb.DescribeStoreImageTasksRequest,
        timeout: requests.Timeout,
    ) -> None:
        self._client = client
        self._request = request
        self._timeout = timeout
        self._outcomes = outcomes.Outcomes()

    @property
    def outcomes(self) -> tuple[pb.TargetOutcome, ...]:
        """How each target ended on the pages seen so far: its first failure, else its newest outcome."""
        return self._outcomes.all()

    def __iter__(self) -> Iterator[pb.StoreImageTaskResult]:
        for page in self.pages():
            yield from page.store_image_task_results

    def pages(self) -> Generator[pb.DescribeStoreImageTasksResponse, None, None]:
        """The pages, each asked for when the one before has been used."""
        request = pb.DescribeStoreImageTasksRequest()
        request.CopyFrom(self._request)
        self._outcomes = outcomes.Outcomes()
        while True:
            page = self._client._describe(request, self._timeout)  # noqa: SLF001 - one module's two halves
            self._outcomes.add(page.target_outcomes)
            yield page
            if not page.next_token:
                return
            request.next_token = page.next_token


class _Call(Protocol):
    """A running call, as gRPC returns it."""

    def __next__(self) -> pb.StreamStoreImageTasksResponse: ...
    def cancel(self) -> bool: ...


class Stream:
    """The answer to `stream`: an iterator over its messages.

    Leaving `with` or `close()`, from any thread, cancels the call at the gateway. After the end, and after
    closing, it yields nothing more.
    """

    def __init__(self, call: "_Call") -> None:
        self._call = call
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pb.StreamStoreImageTasksResponse:
        if self._closed:
            raise StopIteration
        try:
            return next(self._call)
        except StopIteration:
            self._closed = True
            raise
        except grpc.RpcError as failure:
            if self._closed:  # by another thread, while this one was waiting
                raise StopIteration from None
            self._closed = True
            raise errors.from_call(failure) from failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream; the gateway stops working on it. May be called again."""
        self._closed = True
        self._call.cancel()
