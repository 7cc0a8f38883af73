"""Distinguishes refusals for the rate from those that a lower rate does not prevent."""

from __future__ import annotations

from collections import OrderedDict

_HORIZON = 500.0
"""Answers after which one counts for a third of a new one."""
_ENOUGH = 5
"""Refusals at the slower rate before anything is decided."""
_MAX_IDS = 1000
_ENOUGH_OTHERS = 10
"""Other ids answered for each refusal of one, to call that one an exception."""


class Tally:
    """The share of refusals among recent answers."""

    __slots__ = ("answers", "refusals")

    def __init__(self, answers: float = 0.0) -> None:
        self.answers = answers
        self.refusals = 0.0

    def add(self, *, refused: bool) -> None:
        keep = 1 - 1 / _HORIZON
        self.answers = self.answers * keep + 1
        self.refusals = self.refusals * keep + refused

    @property
    def share(self) -> float:
        return self.refusals / max(1.0, self.answers)


class SlowerTest:
    """Whether going slower makes refusals rarer: if not, they are no limit on the rate.

    The share of refusals before the client first slowed down is compared with the share after it.
    """

    __slots__ = ("_after_good", "_began", "_fast", "_slow", "_tolerated")

    def __init__(self, accepted: int, now: float) -> None:
        """Begin at a refusal, `accepted` good answers after the client began."""
        self._began = now
        self._fast = Tally(min(accepted, 200))
        self._slow = Tally()
        self._after_good = False
        self._tolerated: float | None = None

    @property
    def limits(self) -> bool:
        """Whether refusals are taken for a limit on the rate."""
        return self._tolerated is None

    def accepted(self, sent: float) -> None:
        """Record a good answer to a request that left at `sent`."""
        slow = self._tolerated is None and sent > self._began
        (self._slow if slow else self._fast).add(refused=False)
        self._after_good = self._after_good or slow

    def refused(self, now: float, sent: float) -> None:
        """Record a refusal of a request that left at `sent`."""
        if self._tolerated is not None:
            self._fast.add(refused=True)
            if self._fast.answers > 50 and self._fast.share > 2 * self._tolerated + 0.05:
                self._tolerated = None
                self._began = now
                self._slow = Tally()
        elif sent <= self._began:
            self._fast.add(refused=True)
        elif self._after_good:
            # Of several in a row one counts: a window that is used up refuses at any rate.
            self._after_good = False
            self._slow.add(refused=True)
            if self._slow.refusals >= _ENOUGH - 0.5 and self._slow.share > self._fast.share / 2:
                self._tolerated = max(self._slow.share, self._fast.share)
                self._fast = Tally()


class _Refusals:
    """The refusals of one id, one after the other."""

    __slots__ = ("accepted", "counted", "others", "times")

    def __init__(self, accepted: int, others: int) -> None:
        self.times = 0
        self.counted = 0
        """How many of them were counted, before it was known that they concern this id alone."""
        self.accepted = accepted
        self.others = others
        """The two counts of `RefusedIds` when they began."""


class RefusedIds:
    """Find ids that are refused again and again while others are answered.

    Attributes:
        ids: those refused last, and not answered since.
        counted: pauses that began with refusals not known to concern one id alone.

    """

    __slots__ = ("_accepted", "_refused_at", "counted", "ids")

    def __init__(self) -> None:
        self.ids: OrderedDict[str, _Refusals] = OrderedDict()
        self._accepted = 0
        self._refused_at = 0.0
        self.counted = 0

    def accepted(self, task_id: str, sent: float) -> None:
        """Record a good answer to a request that left at `sent`."""
        # One that was in flight with a refused one shows nothing.
        self._accepted += sent > self._refused_at
        self.ids.pop(task_id, None)

    def refused(self, task_id: str, now: float, *, new: bool) -> bool:
        """Record a refusal; return whether it concerns this id alone.

        `new` says whether it is the first of its pause: what was in flight then says no more.
        """
        one = self.ids.pop(task_id, None) or _Refusals(self._accepted, self.counted)
        self.ids[task_id] = one
        if len(self.ids) > _MAX_IDS:
            self.ids.popitem(last=False)
        self._refused_at = now
        one.times += 1
        others = self.counted - one.others - one.counted
        answered = self._accepted - one.accepted
        if others > 0:
            alone = one.times > 3 and answered >= _ENOUGH_OTHERS * others
        else:
            alone = answered >= (_ENOUGH_OTHERS if one.times < 3 else 2) and one.times > 1
        if alone:
            self.counted -= one.counted
            one.counted = 0
        elif new:
            one.counted += 1
            self.counted += 1
        return alone
