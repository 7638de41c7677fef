"""What can be set of the limits: how much is let in, and how long a stream lasts."""

from typing import Annotated

from pydantic import Field

from imagetasks_server.account_settings import Table
from imagetasks_server.amounts import Count, PerSecond, Seconds
from imagetasks_server.limits import Quota


class LimitSettings(Table):
    """How much is let in. Above a limit a call is refused at once, with the time to come back."""

    max_concurrent_calls: Count = 1000
    """Unary calls under way, of all callers together, but for waits. More: longer reads of EC2 are waited for
    by more; less: less memory under a flood."""
    max_open_streams: Count = 20_000
    """Streams, watches and waits under way, of all callers together; about 40 KiB each. More: memory."""
    max_connections: Count = 10_000
    """Connections of callers; fewer if the process may not open as many files. Above, one is closed as soon
    as it is opened. More: about 15 KiB each, without a call; less: a flood of them takes less memory."""
    max_waiting_calls: Count = 10_000
    """Calls of each method that have arrived and wait until the processor gets to them. Above, gRPC itself
    refuses: with CANCELLED, at almost no cost. More: as many watchers can come back in the same moment; less:
    under overload who is let in is answered sooner, for 2,000 or so are answered a second."""
    max_waiting_seconds: Annotated[int, Field(ge=1, le=3600)] = 20
    """Seconds that such a call waits; then it is refused in the same way. More: more watchers can come back
    in the same moment, for some 1,500 a second are taken; less: nobody is let in who has waited for longer,
    however many may wait."""
    max_arrival_seconds: Seconds = 10.0
    """Seconds that a caller who was let in has to send what it asks. More: slower networks are good enough;
    less: whoever sends slowly holds a place and memory for less time."""
    default_calls_per_second: PerSecond | None = None
    """New calls per second of one caller who has no quota of its own, in the long run. Absent: no limit.
    More: one caller can take more of the processor."""
    default_burst: Count | None = None
    """Calls that such a caller may begin at once after a pause. Absent: one second's worth. More: a script
    that asks for much at once is not held up."""
    default_concurrent_calls: Count | None = None
    """Unary calls that such a caller may have under way. Absent: half of max_concurrent_calls. Less: one
    caller leaves more place for others."""
    default_open_streams: Count | None = None
    """The same of streams, watches and waits. Absent: half of max_open_streams."""
    max_stream_age: Seconds = 3600.0
    """Seconds that any call may last. A watch is closed with a token when it is up to a fifth younger, so
    that those who came at once do not come back at once; a wait answers that its time is over. More: fewer
    reconnects; less: watches spread over replicas sooner."""

    @property
    def default_quota(self) -> Quota:
        """What a caller may who has no quota of its own."""
        return Quota(
            self.default_calls_per_second,
            self.default_burst,
            self.default_concurrent_calls or _half(self.max_concurrent_calls),
            self.default_open_streams or _half(self.max_open_streams),
        )


def _half(places: int) -> int:
    """One caller alone does not take all of several places, not even one who reads no answer."""
    return (places + 1) // 2
