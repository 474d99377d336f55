from __future__ import annotations

from pytest_llem.energy.ticks import Tick, TickTracker

MS = 1_000_000


class Counter:
    """A counter whose steps come at known times, read by a tracker without any waiting."""

    def __init__(self, steps_ns: list[int], latency_ns: int = 50_000) -> None:
        self.steps_ns = steps_ns
        self.latency_ns = latency_ns
        self.reads = 0

    def follow(self, tracker: TickTracker, until_ns: int, late_at_ns: int | None = None) -> list[Tick]:
        now = self.steps_ns[0] - 3 * MS
        found = []
        while now < until_ns:
            self.reads += 1
            value = sum(step <= now + self.latency_ns // 2 for step in self.steps_ns)
            tick = tracker.observe(now, now + self.latency_ns, value)
            if tick is not None:
                found.append(tick)
            now = max(tracker.due_ns, now + self.latency_ns)
            if late_at_ns is not None and now >= late_at_ns:
                now += 30 * MS
                late_at_ns = None
        return found


def steps(count: int, period: int = 100 * MS, jitter: int = 0) -> list[int]:
    return [1000 * MS + k * period + (jitter if k % 2 else -jitter) for k in range(count)]


def test_every_bracket_holds_its_step() -> None:
    counter = Counter(steps(40, jitter=MS))

    found = counter.follow(TickTracker(), counter.steps_ns[-1])

    assert len(found) >= 38
    for tick in found:
        assert tick.low_ns <= counter.steps_ns[tick.value_mj - 1] <= tick.high_ns


def test_steps_are_found_closely_with_few_reads() -> None:
    """Even polling at 2 ms needs 50 reads for each step of 100 ms."""
    counter = Counter(steps(100))

    found = counter.follow(TickTracker(step_ns=2 * MS), counter.steps_ns[-1])

    assert max(tick.high_ns - tick.low_ns for tick in found) <= 2.5 * MS
    assert counter.reads / len(found) < 12


def test_the_period_is_learned_and_followed_when_it_drifts() -> None:
    slow = [1000 * MS]
    for k in range(80):
        slow.append(slow[-1] + 100 * MS + k * 50_000)
    counter = Counter(slow)

    found = counter.follow(TickTracker(), slow[-1])

    assert all(tick.high_ns - tick.low_ns < 8 * MS for tick in found[10:])


def test_a_late_read_gives_a_wide_bracket_and_the_next_one_is_close_again() -> None:
    counter = Counter(steps(30))

    found = counter.follow(TickTracker(), counter.steps_ns[-1], late_at_ns=1995 * MS)

    widths = [tick.high_ns - tick.low_ns for tick in found]
    assert max(widths) > 20 * MS
    assert all(width < 5 * MS for width in widths[-10:])
    for tick in found:
        assert tick.low_ns <= counter.steps_ns[tick.value_mj - 1] <= tick.high_ns


def test_a_counter_that_stops_is_not_polled_faster_for_it() -> None:
    counter = Counter(steps(10))
    tracker = TickTracker()
    counter.follow(tracker, counter.steps_ns[-1] + 200 * MS)

    now = counter.steps_ns[-1] + 200 * MS
    for _ in range(100):
        tracker.observe(now, now + 50_000, 10)
        assert tracker.due_ns - now >= 2 * MS
        now = tracker.due_ns

    assert now > counter.steps_ns[-1] + 600 * MS


def test_a_counter_faster_than_the_polling_is_read_calmly() -> None:
    counter = Counter(steps(2000, period=2 * MS))

    found = counter.follow(TickTracker(step_ns=2 * MS), counter.steps_ns[-1])

    assert counter.reads < 4000 / 15
    for tick in found[10:]:
        assert tick.high_ns - tick.low_ns < 5 * MS


def test_after_a_gap_no_step_is_made_up() -> None:
    tracker = TickTracker()
    tracker.observe(0, 1000, 5)
    tracker.forget()

    assert tracker.observe(10**9, 10**9 + 1000, 500) is None
