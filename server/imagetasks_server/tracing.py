"""Spans through OpenTelemetry's API: of each call, of each call to EC2, of each group of changes told.

Needs the extra `otel`, and is imported only where tracing is wanted. No span is the current one of any
context but that of a call to EC2, for what is sent then: reads have contexts of their own, and a watch would
hold its span open for days. grpc's own interceptors of OpenTelemetry do not suit streams that end early.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, set_span_in_context, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from imagetasks_server.errors import Error
from imagetasks_server.tally import Purpose, Tally

_NANOS = 1_000_000_000
# What is the gateway's or AWS's fault, and not the caller's.
_OURS = frozenset({"DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNKNOWN"})


class Tracer:
    """Begins and ends the gateway's spans.

    Args:
        provider: What takes them.
        version: The gateway's.
    """

    def __init__(self, provider: TracerProvider, version: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("imagetasks_server", version)
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left, and end. May block for seconds."""
        self._provider.shutdown()

    def begin(self, service: str, method: str, metadata: Mapping[str, str]) -> Span:
        """The span of a call, below the caller's own if its metadata names one. It must be ended.

        Args:
            service: The service's full name.
            method: The method's bare name.
            metadata: The call's `traceparent` and `tracestate`.
        """
        return self._tracer.start_span(
            f"{service}/{method}",
            context=self._propagator.extract(metadata, Context()),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )

    def end(self, span: Span, code: str, reason: str, request_id: str) -> None:
        """A call has ended, or a watch has begun.

        Args:
            span: Its span.
            code: The gRPC code's name.
            reason: The contract's reason, if it failed.
            request_id: What the log calls it.
        """
        span.set_attribute("rpc.response.status_code", code)
        span.set_attribute("imagetasks.request_id", request_id)
        if reason:
            span.set_attribute("error.type", reason)
        if code in _OURS:
            span.set_status(StatusCode.ERROR, reason)
        span.end()

    @contextlib.contextmanager
    def asking(
        self,
        account: str,
        region: str,
        purpose: Purpose,
        continued: bool,  # noqa: FBT001  # of `Asking`
    ) -> Iterator[None]:
        """Around one call to EC2: below the call that waits for it; where several do, linked to each.

        Args:
            account: The account's name.
            region: The Region.
            purpose: Why EC2 is asked.
            continued: Whether it asks for a page after the first.
        """
        waiting = _spans(purpose.waiters())
        alone = waiting[0] if len(waiting) == 1 else None
        span = self._tracer.start_span(
            "ec2/DescribeStoreImageTasks",
            context=set_span_in_context(alone, Context()) if alone else Context(),
            kind=SpanKind.CLIENT,
            links=[] if alone else [Link(each.get_span_context()) for each in waiting],
            attributes={
                "imagetasks.account": account,
                "imagetasks.kind": purpose.kind,
                "imagetasks.continued": continued,
                "cloud.region": region,
            },
        )
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                yield
        except Error as error:
            span.set_attribute("error.type", error.aws_code or error.reason)
            span.set_status(StatusCode.ERROR, error.reason)
            raise
        finally:
            for each in _spans(purpose.waiters()):
                if each not in waiting:
                    # Who joined meanwhile.
                    span.add_link(each.get_span_context())
            span.end()

    async def send_along(self, request: Any, **_: Any) -> None:
        """Botocore's hook `before-send`: AWS, or a proxy on the way, is told which call this is part of."""
        self._propagator.inject(request.headers)

    def told(self, tally: Tally, *, changes: int, began: float, ended: float) -> None:
        """A watch has told a group of changes.

        Args:
            tally: The watch's.
            changes: How many.
            began: Unix seconds; the start of the read that saw the first.
            ended: Unix seconds.
        """
        span = self._tracer.start_span(
            "watch/changes",
            context=Context(),
            links=[Link(each.get_span_context()) for each in _spans([tally])],
            attributes={"imagetasks.changes": changes},
            start_time=round(began * _NANOS),
        )
        span.end(round(ended * _NANOS))


def exporting(version: str) -> TracerProvider:
    """What sends spans by OTLP over HTTP, as the standard OTEL_* variables say. It must be shut down."""
    named = Resource.create().attributes.get(SERVICE_NAME, "unknown_service")
    resource = Resource.create(
        {"service.version": version}
        | ({SERVICE_NAME: "imagetasks-server"} if str(named).startswith("unknown_service") else {})
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _spans(tallies: Iterable[Tally]) -> list[Span]:
    return [tally.span for tally in tallies if tally.span is not None]
