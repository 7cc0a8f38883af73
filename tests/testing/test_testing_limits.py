from __future__ import annotations

import pytest
from raw_peer import connected

from xai_tasks import TaskClient
from xai_tasks._http.hints import Quota, parse_hints
from xai_tasks.testing import TaskServer
from xai_tasks.testing._rate_limits import limit_factory


def limit(style, *, rate=0.2, burst=2, name=""):
    """Build a limit of 2 in 10 seconds."""
    return limit_factory(rate, burst, 100.0, "1", style, name)()


def ask(limit, *times):
    """Return what answers at these times say: accepted, or the status of the refusal; headers."""
    for now in times:
        accepted, headers = limit.take(now)
        yield accepted or limit.refuse(headers, "a").status, dict(headers)


@pytest.mark.parametrize(
    ("style", "name", "good", "bad"),
    [
        ("bucket", "", {}, {"Retry-After": "1"}),
        ("nginx", "", {}, {}),
        (
            "nestjs",
            "",
            {"X-RateLimit-Limit": "2", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9"},
            {"Retry-After": "10"},
        ),
        (
            "nestjs",
            "long",
            {
                "X-RateLimit-Limit-long": "2",
                "X-RateLimit-Remaining-long": "0",
                "X-RateLimit-Reset-long": "9",
            },
            {"Retry-After-long": "10"},
        ),
        (
            "draft-6",
            "",
            {
                "RateLimit-Policy": "2;w=10",
                "RateLimit-Limit": "2",
                "RateLimit-Remaining": "0",
                "RateLimit-Reset": "9",
            },
            {"Retry-After": "8"},
        ),
        (
            "draft-7",
            "",
            {"RateLimit-Policy": "2;w=10", "RateLimit": "limit=2, remaining=0, reset=9"},
            {"Retry-After": "8"},
        ),
        (
            "draft-8",
            "",
            {
                "RateLimit-Policy": '"2-in-10sec"; q=2; w=10',
                "RateLimit": '"2-in-10sec"; r=0; t=9',
            },
            {"Retry-After": "8"},
        ),
    ],
)
def test_answers_say_what_such_a_server_says(style, name, good, bad):
    answers = list(ask(limit(style, name=name), 100.0, 101.0, 102.0))

    assert [accepted for accepted, _ in answers] == [True, True, 503 if style == "nginx" else 429]
    assert answers[1][1] == good
    assert bad.items() <= answers[2][1].items()
    assert ("Retry-After" in answers[2][1]) == ("Retry-After" in bad)


def test_nestjs_blocks_for_a_whole_window_and_counts_anew():
    accepted = [
        seen
        for seen, _ in ask(limit("nestjs"), 100.0, 101.0, 110.0, 111.0, 112.0, 121.9, 122.0, 123.0)
    ]

    assert accepted == [True, True, True, True, 429, 429, True, True]


def test_express_begins_a_window_with_its_first_request():
    accepted = [seen for seen, _ in ask(limit("draft-7"), 105.0, 106.0, 107.0, 114.9, 115.0, 116.0)]

    assert accepted == [True, True, 429, 429, True, True]


@pytest.mark.parametrize("style", ["nestjs", "draft-6", "draft-7", "draft-8"])
def test_the_client_reads_what_is_left(style):
    ((_, headers),) = ask(limit(style), 100.0)

    (quota,) = parse_hints(headers, None).quotas

    name = "2-in-10sec" if style == "draft-8" else ""
    assert quota == Quota(name, 1, None if style == "nestjs" else 10.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"style": "apache"}, "style must be one of"), ({"name": "a"}, "only the style 'nestjs'")],
)
async def test_an_unknown_style_is_refused(options, words):
    async with TaskServer() as server:
        with pytest.raises(ValueError, match=words):
            server.limit(1, **options)


async def test_headers_stand_on_good_answers_and_on_errors_of_the_api():
    async with TaskServer() as server, connected(server) as peer:
        server.add("a")
        server.limit(10, 100, style="draft-7")

        peer.ask()
        good, _ = await peer.answer()
        peer.send("/xai/tasks?taskId=unknown")
        unknown, _ = await peer.answer()

    assert "RateLimit: limit=100, remaining=99, reset=10\r\n" in good
    assert "RateLimit: limit=100, remaining=98, reset=10\r\n" in unknown


@pytest.mark.parametrize(
    ("style", "refused"),
    [("nestjs", 1), ("draft-6", 0), ("draft-7", 0), ("draft-8", 0), ("nginx", 200)],
)
async def test_no_task_is_lost_to_any_style(style, refused):
    async with TaskServer(None) as server:
        ids = server.add_many(300, duration=lambda random: 0.0)
        server.limit(100, 100 if style != "nginx" else 5, style=style)
        async with TaskClient("made-up-key", base_url=server.url) as client:
            tasks = await client.wait_all(ids)

        assert len(tasks) == 300
        assert sum(record.status != 200 for record in server.requests) <= refused
