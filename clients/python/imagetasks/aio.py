"""The asyncio client."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Self, TypeVar

import grpc
import grpc.aio

from imagetasks import channel as channels
from imagetasks import errors, outcomes, requests, waiting
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from imagetasks.watch import Watch

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
    """A client of the gateway at an endpoint, to be used in `async with`. Call it inside a running loop.

    Nothing is dialled before the first call.

    Args:
        endpoint: "host:port" or "http://host:port" (plaintext), "https://host:port" (TLS), "unix:path",
            or "ipv4:address:port,address:port" (plaintext): several gateways that take turns.
            None: the environment's IMAGETASKS_ENDPOINT, else 127.0.0.1:50051.
        token: A bearer token sent with each call, or a function that gives the one to send now. Over the
            network only with TLS.
        ca_bundle: The certificates to trust, as a PEM file's path or as bytes. None: gRPC's own.
        client_certificate: The client's certificate chain for mutual TLS, path or bytes.
        client_key: The private key of it, path or bytes.
        timeout: The deadline of each call that does not bring its own: seconds or a timedelta; None or 0 is
            no deadline. A listing has it for each of its pages, a stream for the whole of it.
        max_message_bytes: The largest message accepted.
        keepalive: Seconds of silence in a running call before the connection is probed; 0 never probes.
        options: Further gRPC channel options; they override those chosen here.

    Raises:
        ValueError: The endpoint is malformed, or does not go with the other arguments.
        OSError: A certificate or key cannot be read.
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
        opened = grpc.aio.insecure_channel(route.target, route.options)
    else:
        opened = grpc.aio.secure_channel(route.target, route.credentials, route.options)
    return Client(opened, token=token, timeout=timeout)


class Client:
    """Asks one gateway; any number of calls may run at once.

    Every method raises `imagetasks.Error`. `connect` makes one; the constructor takes a channel of your own.

    Args:
        channel: Closed with the client.
        token: As in `connect`.
        timeout: As in `connect`.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        token: channels.Token | None = None,
        timeout: requests.Seconds | None = requests.DEFAULT_TIMEOUT,
    ) -> None:
        self._channel = channel
        self._stub = StoreImageTaskServiceStub(channel)
        self._token = token
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; calls that still run are cancelled."""
        await self._channel.close()

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
        """The tasks of all targets, newest first: EC2's operation, page by page.

        EC2's own rules hold: with image ids (at most 20) the filters are ignored and only the newest task of
        each AMI is listed; image ids and a page size exclude each other.

        Args:
            image_ids: Only tasks of these AMIs.
            filters: {"task-state": ["InProgress"], "bucket": ["b*"]}, or `Filter` messages.
            accounts: The gateway's names of accounts; empty is all.
            regions: Regions; empty is all.
            max_age: How old the answer may be, seconds or a timedelta; None leaves it to the gateway, 0 asks
                for a read that starts after the request.
            forbid_stale: An error in place of the last known tasks of a target that cannot be read now.
            page_size: At most so many tasks in a page, 1 to 200.
            timeout: Each page's deadline.
        """
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

    async def dry_run(
        self,
        *,
        accounts: Iterable[str] = (),
        regions: Iterable[str] = (),
        timeout: requests.Timeout = requests.Default.TIMEOUT,  # noqa: ASYNC109 - gRPC keeps it, on both sides
    ) -> tuple[pb.TargetOutcome, ...]:
        """Whether the gateway's AWS identity may describe: one outcome per target, without status if it may.

        Raises:
            PermissionDeniedError: It may in none of the targets.
            Error: No target could tell.
        """
        request = requests.describe(accounts=accounts, regions=regions, dry_run=True)
        try:
            response = await self._describe(request, timeout)
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
        """The tasks of all targets, each page as its Region answers, an outcome per target, a summary last.

        Image ids (at most 200) and filters hold together, and every task of an AMI counts. A failed target is
        an outcome, not an error. The other arguments are those of `describe`; the timeout is the whole
        stream's.
        """
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
    ) -> Watch:
        """A snapshot of the tasks, then every change, for as long as it is iterated.

        It keeps itself alive: when the connection is lost, the gateway restarts or falls silent, it goes on
        where it was, and tells only what has changed meanwhile. There is no deadline. The arguments are those
        of `stream`. Errors that trying again cannot mend are raised while iterating: a malformed argument, an
        unknown account, no permission, a gateway without this method.
        """
        selector = requests.selector(image_ids=image_ids, filters=filters, accounts=accounts, regions=regions)
        return Watch(
            lambda request: self._stub.WatchStoreImageTasks(request, metadata=channels.metadata(self._token)),
            selector,
        )

    async def wait(
        self,
        *,
        image_ids: Iterable[str] = (),
        filters: requests.Filters = (),
        accounts: Iterable[str] = (),
        regions: Iterable[str] = (),
        wait_for_appearance: bool = False,
        timeout: requests.Seconds | None = None,  # noqa: ASYNC109 - the gateway keeps it too
    ) -> pb.WaitStoreImageTasksResponse:
        """Returns when every selected task has ended, or with the reason why it returns earlier.

        It asks again when the connection is lost or the gateway stops. A task created just before is seen.
        Look at `done` and at each task's state: a failed task has ended too.

        Args:
            image_ids: As in `stream`, like the three that follow.
            filters: As in `stream`.
            accounts: As in `stream`.
            regions: As in `stream`.
            wait_for_appearance: While nothing matches, wait for a task to appear, in place of returning the
                reason NOTHING_MATCHES at once.
            timeout: Seconds or a timedelta, after which the answer is the reason TIMEOUT; None is no limit.
                The client's own timeout does not apply.

        Raises:
            UnavailableError: The gateway could not be reached until the time was over.
        """
        wait = waiting.Wait(
            requests.selector(image_ids=image_ids, filters=filters, accounts=accounts, regions=regions),
            wait_for_appearance=wait_for_appearance,
            seconds=requests.patience(timeout),
            now=time.monotonic(),
        )
        while True:
            request, seconds = wait.request(time.monotonic())
            try:
                response = await self._stub.WaitStoreImageTasks(
                    request, timeout=seconds, metadata=channels.metadata(self._token)
                )
            except grpc.RpcError as failure:
                pause: float | None = wait.failed(errors.from_call(failure), time.monotonic())
            else:
                pause = wait.answered(response, time.monotonic())
            if pause is None:
                return response
            await asyncio.sleep(pause)

    async def targets(
        self,
        *,
        accounts: Iterable[str] = (),
        regions: Iterable[str] = (),
        timeout: requests.Timeout = requests.Default.TIMEOUT,  # noqa: ASYNC109 - as above
    ) -> pb.ListTargetsResponse:
        """The targets this caller may ask, and how the gateway stands with each. Asks EC2 for no tasks."""
        request = requests.targets(accounts=accounts, regions=regions)
        return await self._answer(self._stub.ListTargets, request, timeout)

    async def _describe(
        self,
        request: pb.DescribeStoreImageTasksRequest,
        timeout: requests.Timeout,  # noqa: ASYNC109 - as above
    ) -> pb.DescribeStoreImageTasksResponse:
        return await self._answer(self._stub.DescribeStoreImageTasks, request, timeout)

    async def _answer(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: requests.Timeout,  # noqa: ASYNC109 - as above
    ) -> Response:
        try:
            return await method(
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

    def __aiter__(self) -> AsyncIterator[pb.StoreImageTaskResult]:
        return self._tasks()

    async def pages(self) -> AsyncGenerator[pb.DescribeStoreImageTasksResponse, None]:
        """The pages, each asked for when the one before has been used."""
        request = pb.DescribeStoreImageTasksRequest()
        request.CopyFrom(self._request)
        self._outcomes = outcomes.Outcomes()
        while True:
            page = await self._client._describe(request, self._timeout)  # noqa: SLF001 - one module's two halves
            self._outcomes.add(page.target_outcomes)
            yield page
            if not page.next_token:
                return
            request.next_token = page.next_token

    async def _tasks(self) -> AsyncGenerator[pb.StoreImageTaskResult, None]:
        # Between pages nothing is open, so the inner generator needs no closing of its own.
        async for page in self.pages():
            for task in page.store_image_task_results:
                yield task


class Stream:
    """The answer to `stream`: an asynchronous iterator over its messages.

    Leaving `async with` or `aclose()` cancels the call at the gateway; so does cancelling the task that
    iterates. After the end, and after closing, it yields nothing more.
    """

    def __init__(
        self,
        call: grpc.aio.UnaryStreamCall[pb.StreamStoreImageTasksRequest, pb.StreamStoreImageTasksResponse],
    ) -> None:
        self._call = call
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.StreamStoreImageTasksResponse:
        if self._closed:
            raise StopAsyncIteration
        try:
            event = await self._call.read()
        except grpc.RpcError as failure:
            self._closed = True
            raise errors.from_call(failure) from failure
        if not isinstance(event, pb.StreamStoreImageTasksResponse):  # grpc.aio.EOF
            self._closed = True
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the stream; the gateway stops working on it. May be called again."""
        self._closed = True
        self._call.cancel()
