from __future__ import annotations

from xai_tasks._limits.refusals import RefusedIds, SlowerTest


def answer(test, sent, pattern):
    """Record answers to requests that left at `sent`: `.` is good, `x` a refusal."""
    for one in pattern:
        if one == ".":
            test.accepted(sent)
        else:
            test.refused(sent, sent)


class TestSlowerTest:
    def test_takes_refusals_for_a_limit_at_first(self):
        test = SlowerTest(10, 100.0)

        answer(test, 99.0, "..xx..xx")

        assert test.limits

    def test_keeps_to_that_if_they_become_rarer(self):
        test = SlowerTest(5, 100.0)
        answer(test, 99.0, "x" * 50)

        answer(test, 101.0, ("." * 30 + "x") * 20)

        assert test.limits

    def test_finds_that_they_come_at_any_rate(self):
        test = SlowerTest(10, 100.0)
        answer(test, 99.0, "..x" * 20)

        answer(test, 101.0, "..x" * 4)
        assert test.limits
        answer(test, 101.0, "..x" * 4)

        assert not test.limits

    def test_counts_refusals_in_a_row_once(self):
        test = SlowerTest(1000, 100.0)

        answer(test, 101.0, "." + "x" * 100)

        assert test.limits

    def test_begins_again_when_many_more_are_refused(self):
        test = SlowerTest(10, 100.0)
        answer(test, 99.0, "..x" * 20)
        answer(test, 101.0, "..x" * 8)

        answer(test, 102.0, "..x" * 100)
        assert not test.limits
        answer(test, 103.0, "x" * 1000)

        assert test.limits


class TestRefusedIds:
    def test_one_that_others_are_answered_beside_is_found_at_the_second_refusal(self):
        ids = RefusedIds()

        assert not ids.refused("a", 1.0, new=True)
        for n in range(10):
            ids.accepted(f"b{n}", 2.0)

        assert ids.refused("a", 3.0, new=True)
        assert ids.counted == 0

    def test_answers_to_what_was_in_flight_show_nothing(self):
        ids = RefusedIds()

        assert not ids.refused("a", 1.0, new=True)
        for n in range(10):
            ids.accepted(f"b{n}", 0.9)

        assert not ids.refused("a", 3.0, new=True)

    def test_where_few_are_answered_it_takes_one_more(self):
        ids = RefusedIds()

        for time in (1.0, 3.0):
            assert not ids.refused("a", time, new=True)
            ids.accepted("b", time + 1)

        assert ids.refused("a", 5.0, new=True)

    def test_ids_that_are_refused_by_turns_are_not_alone(self):
        ids = RefusedIds()

        for time in range(100):
            assert not ids.refused("a" if time % 2 else "b", float(time), new=True)
            ids.accepted("c", time + 0.5)

        assert ids.counted == 100

    def test_one_beside_a_real_limit_is_found_later(self):
        ids = RefusedIds()
        found = []

        for time in range(20):
            found.append(ids.refused("a", float(time), new=True))
            for n in range(20):
                ids.accepted(f"b{n}", time + 0.1)
            if time % 4 == 0:
                ids.refused(f"c{time}", time + 0.2, new=True)

        assert not any(found[:3])
        assert all(found[5:])

    def test_one_that_is_answered_is_forgotten(self):
        ids = RefusedIds()
        ids.refused("a", 1.0, new=True)
        for n in range(10):
            ids.accepted(f"b{n}", 2.0)

        ids.accepted("a", 2.0)

        assert not ids.refused("a", 3.0, new=True)

    def test_only_the_newest_thousand_are_kept(self):
        ids = RefusedIds()

        for n in range(1500):
            ids.refused(f"id {n}", 1.0, new=False)

        assert len(ids.ids) == 1000
        assert ids.counted == 0
