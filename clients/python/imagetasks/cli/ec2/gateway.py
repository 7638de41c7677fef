"""The gateway as the EC2 of these commands: parameters in, members out, errors in EC2's words."""

import argparse
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from imagetasks.cli.ec2 import connection, members, requests
from imagetasks.cli.ec2.failures import Failure, ServiceError
from imagetasks.cli.ec2.model import OPERATION, RESULTS
from imagetasks.cli.ec2.scope import Scope
from imagetasks.outcomes import Outcomes
from imagetasks.v1 import store_image_tasks_pb2 as pb

if TYPE_CHECKING:
    from imagetasks.errors import Error
    from imagetasks.watch import BlockingWatch

# A terminal is told after this many seconds what is waited for, and then each second.
_SILENT_SECONDS = 0.5
_TOLD_EACH_SECONDS = 1.0

# In the texts of gRPC's core.
_TLS_FAILED = re.compile("SSL|CERTIFICATE|verification check", re.IGNORECASE)
_BAD_REGION = re.compile(r"regions\[(\d+)\]")


class Gateway:
    """Asks for pages. To be closed.

    Args:
        chosen: The global options.
        own: The gateway's own options.
        scope: The targets and the freshness.
        unasked_page: Tasks of a page where none are asked for; None: as the gateway likes.
        until: Seconds of the monotonic clock at which every call has ended.

    Attributes:
        scope: The same; may be changed between calls.
        unasked_page: The same; may be changed between calls.
    """

    def __init__(
        self,
        chosen: argparse.Namespace,
        own: argparse.Namespace,
        scope: Scope,
        unasked_page: int | None,
        until: float = math.inf,
    ) -> None:
        self.scope = scope
        self.unasked_page = unasked_page
        self._until = until
        self._show_targets: bool = own.show_targets
        self._debug: bool = chosen.debug
        self._outcomes = Outcomes()
        self._seen = 0
        self._connection = connection.connect(chosen, own, until - time.monotonic())

    @property
    def outcomes(self) -> tuple[pb.TargetOutcome, ...]:
        """How each target ended on the pages seen so far: its first failure, else its newest outcome."""
        return self._outcomes.all()

    def start_over(self) -> None:
        """Forgets the pages seen so far: a listing begins anew."""
        self._outcomes = Outcomes()
        self._seen = 0

    def close(self) -> None:
        """Closes the connection."""
        self._connection.channel.close()

    def describe(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """One page, as EC2 would answer.

        Raises:
            Failure: As EC2 would, or the gateway cannot be asked.
        """
        response = self.page(parameters)
        page: dict[str, Any] = {
            RESULTS: [
                members.of_task(task, show_target=self._show_targets)
                for task in response.store_image_task_results
            ]
        }
        if response.HasField("next_token"):
            page["NextToken"] = response.next_token
        return page

    def page(self, parameters: dict[str, Any]) -> pb.DescribeStoreImageTasksResponse:
        """One page, as the gateway answers.

        Raises:
            Failure: As EC2 would, or the gateway cannot be asked.
        """
        request = requests.describe(parameters, self.scope, self.unasked_page)
        began = time.monotonic()
        try:
            response = self._call(request)
        except grpc.RpcError as error:
            self._raise(error, parameters)
        self._note(request, response, time.monotonic() - began)
        if parameters.get("DryRun"):
            raise Failure("\n".join(map(_permission, response.target_outcomes)))
        self._outcomes.add(response.target_outcomes)
        self._seen += len(response.store_image_task_results)
        return response

    def watch(self, image_ids: Iterable[str]) -> "BlockingWatch":
        """Every change of these AMIs' tasks."""
        from imagetasks.watch import BlockingWatch  # noqa: PLC0415 - for waits only

        selector = pb.TaskSelector(
            accounts=self.scope.accounts, regions=self.scope.regions, image_ids=image_ids
        )
        way = self._connection
        return BlockingWatch(
            lambda request: way.stub.WatchStoreImageTasks(request, metadata=way.metadata), selector
        )

    def troubles(self) -> Iterator[tuple[str, bool]]:
        """What is to be said on stderr of targets that failed or are stale, and whether they failed."""
        for outcome in self.outcomes:
            if not outcome.HasField("status"):
                continue
            place, code, text = _trouble(outcome)
            if outcome.source == pb.SOURCE_STALE:
                read = members.timestamp(outcome.read_time)
                yield f"warning: {place} is shown as read at {read}, for EC2 now says {code}: {text}", False
            else:
                yield str(ServiceError(code, text, place)), True

    def errors(self) -> "list[Error]":
        """Why targets failed on the pages seen so far."""
        from imagetasks import errors  # noqa: PLC0415 - only where something failed

        return [errors.from_status(each.status) for each in self.outcomes if each.HasField("status")]

    def hidden_by(self, error: "Error") -> Iterator[tuple[str, str]]:
        """Which targets, or that the gateway, cannot be heard of for this error, and why."""
        if error.target_failures:
            for each in error.target_failures:
                yield _place(each), each.reason
        elif error.reason:
            yield _place(error) or self._connection.url, why(error)
        else:
            yield "the gateway", _unconnected(error.message, self._connection.url)

    def _call(self, request: pb.DescribeStoreImageTasksRequest) -> pb.DescribeStoreImageTasksResponse:
        method = self._connection.stub.DescribeStoreImageTasks
        timeout = connection.within(self._connection.timeout, self._until - time.monotonic())
        metadata = self._connection.metadata
        if not sys.stderr.isatty():
            return method(request, timeout=timeout, metadata=metadata)
        from imagetasks.cli.terminal import StatusLine  # noqa: PLC0415 - on terminals only

        status = StatusLine(sys.stderr)
        call = method.future(request, timeout=timeout, metadata=metadata)
        began = time.monotonic()
        try:
            wait = _SILENT_SECONDS
            while True:
                try:
                    return call.result(timeout=wait)
                except grpc.FutureTimeoutError:
                    status.show(self._waiting(time.monotonic() - began))
                    wait = _TOLD_EACH_SECONDS
        finally:
            status.clear()
            call.cancel()

    def _waiting(self, seconds: float) -> str:
        so_far = f"{self._seen} tasks so far, " if self._seen else ""
        return f"{so_far}waiting for {self._connection.url} ({seconds:.0f} s)"

    def _note(self, request: Any, response: pb.DescribeStoreImageTasksResponse, seconds: float) -> None:
        if not self._debug:
            return
        from google.protobuf.text_format import MessageToString  # noqa: PLC0415 - for --debug only

        shown = MessageToString(request, as_one_line=True)
        count, targets = len(response.store_image_task_results), len(response.target_outcomes)
        sys.stderr.write(
            f"imagetasks: {self._connection.url} {OPERATION} {{{shown}}}: "
            f"{count} tasks of {targets} targets, {seconds * 1000:.1f} ms\n"
        )
        for outcome in response.target_outcomes:
            sys.stderr.write(f"imagetasks:   {MessageToString(outcome, as_one_line=True)}\n")

    def _raise(self, failed: grpc.RpcError, parameters: dict[str, Any]) -> NoReturn:
        """Raises what EC2 or the AWS CLI would say."""
        from imagetasks import errors  # noqa: PLC0415 - only where something failed
        from imagetasks.cli.ec2 import refusals  # noqa: PLC0415

        error = errors.from_call(failed)
        if self._debug:
            sys.stderr.write(f"imagetasks: {failed!r}\n")
        if error.reason == "UNKNOWN_ACCOUNT":
            name = error.account or ", ".join(self.scope.accounts)
            raise Failure(f"The config profile ({name}) could not be found") from failed
        if isinstance(error, errors.InvalidArgumentError):
            self._raise_invalid(error, parameters)
        if error.aws_error_code:
            text = _text_of_aws(error)
            if error.reason == "IMAGE_NOT_FOUND":
                text = refusals.in_order(text, parameters.get("ImageIds", []))
            raise ServiceError(error.aws_error_code, text) from failed
        if isinstance(error, errors.DeadlineExceededError):
            raise Failure(f'Read timeout on endpoint URL: "{self._connection.url}"') from failed
        if not error.reason and isinstance(error, errors.UnavailableError):
            raise Failure(_unconnected(error.message, self._connection.url)) from failed
        text = "; ".join([error.message, *_of_targets(error)])
        code = refusals.GATEWAY_CODES.get(error.reason) or refusals.GATEWAY_CODES.get(error.code.name)
        if code is None:
            raise Failure(text) from failed
        raise ServiceError(code, text) from failed

    def _raise_invalid(self, error: Any, parameters: dict[str, Any]) -> NoReturn:
        from imagetasks.cli.ec2 import refusals  # noqa: PLC0415

        for violation in error.field_violations:
            if found := _BAD_REGION.fullmatch(violation.field):
                name = self.scope.regions[int(found[1])]
                raise Failure(f"Provided region_name '{name}' doesn't match a supported format.")
            if violation.field.startswith("accounts"):
                names = ", ".join(self.scope.accounts)
                raise Failure(f"The config profile ({names}) could not be found")
        refusal = refusals.of_request(parameters)
        if refusal is None and error.reason == "PAGE_TOKEN_INVALID":
            refusal = refusals.TOKEN_REFUSED
        raise ServiceError(*(refusal or (refusals.GATEWAY_CODES["INVALID_ARGUMENT"], error.message)))


def cause_of(failure: Failure) -> "Error | None":
    """The error of the call for which a `Gateway` failed; None if it was another reason."""
    from imagetasks import errors  # noqa: PLC0415 - only where something failed

    cause = failure.__cause__
    return errors.from_call(cause) if isinstance(cause, grpc.RpcError) else None


def why(error: "Error") -> str:
    """EC2's code and text, or the gateway's, as one."""
    return ": ".join(_words_of(error))


def _words_of(error: "Error") -> tuple[str, str]:
    """EC2's code and text, or the gateway's."""
    return error.aws_error_code or error.reason or error.code.name, _text_of_aws(error)


def _trouble(outcome: pb.TargetOutcome) -> tuple[str, str, str]:
    """A failed target's name, EC2's code and text."""
    from imagetasks import errors  # noqa: PLC0415 - only where something failed

    return _place(outcome.target), *_words_of(errors.from_status(outcome.status))


def _permission(outcome: pb.TargetOutcome) -> str:
    """EC2's answer to a dry run in one of several targets."""
    if outcome.HasField("status"):
        place, code, text = _trouble(outcome)
        return str(ServiceError(code, text, place))
    text = "Request would have succeeded, but DryRun flag is set."
    return str(ServiceError("DryRunOperation", text, _place(outcome.target)))


def _place(target: Any) -> str:
    """A target, or one of a call's failures, as "account/region"; of a whole account only the account."""
    return "/".join(filter(None, (target.account, target.region)))


def _text_of_aws(error: Any) -> str:
    """AWS's own text, where the gateway's differs, else the gateway's."""
    from google.rpc.error_details_pb2 import ErrorInfo  # noqa: PLC0415 - only where something failed

    info = ErrorInfo()
    for detail in error.status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
    return info.metadata.get("awsErrorMessage") or str(error.message)


def _unconnected(message: str, url: str) -> str:
    if _TLS_FAILED.search(message):
        return f"SSL validation failed for {url} {message}"
    kind = "Connect timeout on" if "timed out" in message else "Could not connect to the"
    return f'{kind} endpoint URL: "{url}"'


def _of_targets(error: Any) -> list[str]:
    told = [f"{_place(each)}: {each.reason}" for each in error.target_failures]
    if error.omitted_target_failures:
        told.append(f"and {error.omitted_target_failures} more")
    return told
