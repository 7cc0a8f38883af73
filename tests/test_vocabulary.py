"""One word for one thing: retired words do not come back.

The glossary has the words to use. A word is listed here if a pattern finds it without false alarms.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    file
    for folder in ("docs", "xai_tasks")
    for file in (ROOT / folder).rglob("*")
    if file.suffix in {".html", ".md", ".py"} and "_build" not in file.parts
) + [ROOT / "README.md"]

RETIRED = {
    r"is_passing|passing (?:fault|error)s?": "transient error, is_transient",
    r"\bLook\b(?! (?:up|at|for|in)\b)|\b(?:a|an|one|each|every|first|"
    r"second|next|last|the) looks?\b": "request, response, poll",
    r"\blooked\b(?! up)": "on_poll; polled",
    r"(?<!tenacity\.)\bRetrying[.(`]": "RetryingFetcher",
    r"\bLanes?\b": "PolicyGroup",
    r"\bFeed\b|\b_feeds\b": "producer",
    r"\b_?Place\b": "bulk subscriber, index",
    r"\b(?:lay|lays|laid) (?:\w+ )?down\b|\bin (?:the )?line\b|"
    r"\bat rest\b|\bready line\b": "schedule",
    r"\bleft-?overs?\b|\btid(?:y|ied|ies)\b": "stale entries, prune",
    r"\bhungry\b": "waiters",
    r"\bsweepers?\b|\bpatien(?:ce|t)\b": "outage timer, outage deadline",
    r"\bunseen\b": "never polled",
    r"\bstrange\b|\bodd\b(?! number)": "unknown",
    r"\b_Signature\b": "request template",
    r"class (?:Gate|Account|Held)\b|\bspell\(": "request checks, tally, completed ids, "
    "format_duration",
    r"\bdoubts?\b|\bnews\b|\bmasses\b": "uncertainty, new_observations, pmf",
    r"\bg(?:ive|ives|iven|ave|iving) (?:\w+ )?up\b": "time out, abandon",
    r"\bthe house\b": "the code base",
    r"\bdearer\b|\bcheaper than bare\b": "costs more",
    r"\b(?:whoever|whatsoever|anew|seldom|lest|oftener|nobody else's)\b": "plain English",
    r"\bon end\b(?! of)|\botherwise than\b|\bas it happens\b|"
    r"\bof its own accord\b": "plain English",
    r"(?<![Tt]here )\bis no (?:string|list|number|task|id|success)\b": "is not a ...",
    r'"""(?:Give|Say|Tell|Have|Hear|Note|Let)\b': "an imperative: Return, Raise, Wait, Build, ...",
}


def retired(text):
    """Return each retired word in a text, with its line and what to write instead."""
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}: write {instead}"
        for pattern, instead in RETIRED.items()
        for match in re.finditer(pattern, text)
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_retired_words_do_not_come_back(file):
    assert retired(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "the first look",
        '"""Give a name."""',
        "it is given up",
        "failed for a minute on end",
        "is no string",
    ],
)
def test_retired_word_is_found(text):
    assert len(retired(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "look it up",
        "`on_end`",
        "AsyncRetrying(wait=...)",
        "an odd number",
        '"""Return it."""',
        "there is no task",
    ],
)
def test_other_words_are_left_alone(text):
    assert retired(text) == []
