"""Keep requests within what the server's headers say is left.

Where headers say what is left and when there is more, or a refusal has shown how long a window is,
nothing else has to be learned: the client uses up what is left, and waits. Requests in flight never
exceed what is left. What headers say is believed within bounds: no wait is longer than a minute,
and a server that refuses although enough is left, or accepts although nothing is, is not believed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from xai_tasks._http.hints import Quota

_LONGEST = 60.0
"""Seconds that the client waits at most because of one header; then one request tries it."""
_FREE = 0.05
"""The share of a window that may be used up at once."""
_FEW = 5
"""Requests that may be used up at once, however small the window is."""
_ALONE = 4.0
"""How many times faster than evenly the rest of a window is used up by a client that is alone."""
_SHARED = 1.5
"""The same, if others use the window too. All see the same number and slow down as it shrinks, so
each gets as much, however many there are, and few are refused at the end."""
_LAST = 0.02
"""The share of a window that is left alone if others use it too: they may be on their way to it."""
_ANSWERS = 5000
"""Good answers whose times are kept, to know when the oldest leaves a window."""
_MAX_WINDOWS = 8
_STRIKES = 3
"""Refusals that contradict the headers, within ten minutes, until they are no guide any more."""
_FORGIVEN = 600.0


class _Window:
    """One of the server's windows."""

    __slots__ = (
        "heard",
        "left",
        "length",
        "lies",
        "most",
        "others",
        "own",
        "resets_at",
        "said_until",
        "shared",
    )

    def __init__(self) -> None:
        self.heard = -math.inf
        """When the answer came that said what is left."""
        self.left: float = math.inf
        self.most = 0
        """The most that was ever left."""
        self.own = 0
        """Requests of our own since the window began."""
        self.others = self.shared = False
        """Whether others use it up too: since it began, and then or in the one before."""
        self.resets_at: float | None = None
        """When there is more; None if no header says it."""
        self.said_until = -math.inf
        """The same, not bounded."""
        self.length: float | None = None
        """Seconds. The longest time until a reset, or else what a refusal has shown."""
        self.lies = False
        """Whether the time until a reset proved to be wrong."""

    def heed(self, quota: Quota, now: float, sent: float, *, accepted: bool) -> None:
        """Record what the answer to a request that left at `sent` says."""
        _, remaining, reset = quota
        self.most = max(self.most, remaining)
        if accepted and self.left == 0 and self.heard < sent < self.said_until - 2.0:
            self.lies = True
            self.length = None
        # Of answers to requests that were in flight together, the least counts.
        if sent < self.heard and remaining >= self.left:
            return
        if remaining > self.left or self.left == math.inf:
            self.own = 1
            self.shared = self.others
            self.others = False
        if self.most - remaining > 1.2 * self.own + 2:
            self.others = self.shared = True
        self.heard = now
        self.left = remaining
        if reset is None or self.lies:
            self.resets_at = None
        else:
            self.said_until = now + reset
            self.resets_at = now + min(reset, _LONGEST)
            self.length = max(reset, self.length or 0.0)

    def delay(self, now: float, last: float, answers: deque[float]) -> float:
        """Return the seconds until the next request, with the last one sent at `last`."""
        if self.left <= (_LAST * self.most if self.shared else 0):
            if self.resets_at is not None:
                return self.resets_at - now
            if self.length is None or len(answers) <= self.most:
                return 0.0
            return min(answers[-self.most - 1] + self.length, self.heard + _LONGEST) - now
        if self.resets_at is None or self.resets_at <= now:
            return 0.0
        if not self.shared and self.own <= max(_FEW, _FREE * self.most):
            return 0.0
        faster = _SHARED if self.shared else _ALONE
        return last + (self.resets_at - now) / (faster * self.left) - now


class Quotas:
    """What is left of the server's windows, as the newest answers say.

    All times are seconds of one monotonic clock, which each method is told.

    Attributes:
        known: whether any answer said what is left.

    """

    __slots__ = (
        "_answers",
        "_sent",
        "_sent_before",
        "_strike_at",
        "_strikes",
        "_windows",
        "known",
    )

    def __init__(self) -> None:
        self.known: bool = False
        self._windows: dict[str, _Window] = {}
        self._answers: deque[float] = deque(maxlen=_ANSWERS)
        self._sent = self._sent_before = 0.0
        self._strikes = 0
        self._strike_at = 0.0

    @property
    def guide(self) -> bool:
        """Whether they alone tell how fast requests may leave."""
        return (
            self.known
            and self._strikes < _STRIKES
            and all(window.length is not None for window in self._windows.values())
        )

    @property
    def rate(self) -> float:
        """Requests per second over whole windows; infinity if that is not known."""
        rates = [(w.most + 1) / max(w.length, 1.0) for w in self._windows.values() if w.length]
        return min(rates, default=math.inf)

    def take(self, now: float) -> None:
        """Record that a request leaves."""
        self._sent_before, self._sent = self._sent, now
        for window in self._windows.values():
            window.own += 1

    def give_back(self) -> None:
        """Record that the request that was to leave last was never sent."""
        self._sent = self._sent_before
        for window in self._windows.values():
            window.own = max(0, window.own - 1)

    def accepted(self, quotas: Iterable[Quota], now: float, sent: float) -> None:
        """Record an answer to a request that left at `sent`, and what it says is left."""
        self._answers.append(now)
        self._heed(quotas, now, sent, accepted=True)

    def refused(self, quotas: Iterable[Quota], now: float, sent: float, pause: float) -> None:
        """Record a refusal with a pause after it: it may tell how long a window is."""
        self._heed(quotas, now, sent, accepted=False)
        windows = self._windows.values()
        used_up = [window for window in windows if window.left <= max(1, 0.1 * window.most)]
        unknown = [window for window in used_up if window.length is None]
        if unknown:
            spent = now - self._answers[-unknown[0].most - 1] if self._kept(unknown[0]) else 0.0
            # A server that blocks for a whole window names its length, others what is left of it.
            unknown[0].length = pause if pause >= spent else spent + pause
        elif self._windows and not any(window.resets_at is not None for window in used_up):
            self._strikes = self._strikes + 1 if now < self._strike_at + _FORGIVEN else 1
            self._strike_at = now

    def delay(self, now: float, in_flight: int) -> float:
        """Return the seconds until a request may leave; infinity if that takes an answer."""
        delay = 0.0
        for window in self._windows.values():
            if in_flight >= max(1.0, window.left):
                return math.inf
            delay = max(delay, window.delay(now, self._sent, self._answers))
        return delay

    def _kept(self, window: _Window) -> bool:
        return len(self._answers) > window.most

    def _heed(self, quotas: Iterable[Quota], now: float, sent: float, *, accepted: bool) -> None:
        for quota in quotas:
            window = self._windows.get(quota.name)
            if window is None:
                if len(self._windows) == _MAX_WINDOWS:
                    continue
                window = self._windows[quota.name] = _Window()
                self.known = True
            window.heed(quota, now, sent, accepted=accepted)
