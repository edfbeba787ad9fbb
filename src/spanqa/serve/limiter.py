"""How often each client may ask: a token bucket for each name, without HTTP."""

import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimiter:
    """Lets each name do something `per_minute` times a minute, and as often at once after a minute's rest.

    >>> limiter = RateLimiter(2, clock=lambda: 0.0)
    >>> [limiter.wait("a"), limiter.wait("a"), limiter.wait("a"), limiter.wait("b")]
    [0.0, 0.0, 30.0, 0.0]

    It remembers the `most` names that asked last; who is forgotten starts with a full bucket. A bucket is one number, the time at
    which it will be full again (the "generic cell rate algorithm").
    """

    def __init__(self, per_minute: float, *, most: int = 50_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._each = 60.0 / per_minute
        self._ahead = max(0.0, 60.0 - self._each)  # how far a bucket's time may be ahead of now for one more
        self._most, self._clock = most, clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait(self, name: str) -> float:
        """Return 0 and count one, or return the seconds until there is one to count."""
        now = self._clock()
        full_at = max(now, self._full_at.get(name, now))
        wait = full_at - now - self._ahead
        if wait > 1e-9:
            return wait
        self._full_at[name] = full_at + self._each
        self._full_at.move_to_end(name)
        if len(self._full_at) > self._most:
            self._full_at.popitem(last=False)
        return 0.0

    def __len__(self) -> int:
        return len(self._full_at)
