from __future__ import annotations

import asyncio
import html
import json
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_tasks import ConfigurationError
from xai_tasks._http.credentials import Credentials, Redactor

KEY = 'sk-live/0123+456=789&"<x>\\'


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("MOUNTSEA_API_KEY", raising=False)


def refusal(source):
    with pytest.raises((ConfigurationError, TypeError)) as caught:
        Credentials(source).check()
    return caught.value


# Where the key comes from.


def test_a_string_is_the_key():
    credentials = Credentials("sk-1")
    credentials.check()

    assert (credentials.key, credentials.version, credentials.renewable) == ("sk-1", 0, False)


def test_none_is_the_environments_key(monkeypatch):
    monkeypatch.setenv("MOUNTSEA_API_KEY", "sk-env")
    credentials = Credentials(None)
    credentials.check()

    assert (credentials.key, credentials.renewable) == ("sk-env", False)


def test_an_argument_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("MOUNTSEA_API_KEY", "sk-env")

    assert Credentials("sk-1").key == "sk-1"


def test_no_key_at_all_says_where_one_may_stand():
    error = refusal(None)

    assert type(error) is ConfigurationError
    assert str(error) == "no API key: pass api_key or set $MOUNTSEA_API_KEY"


def test_another_vendors_key_is_not_taken(monkeypatch):
    monkeypatch.setenv("XAI_API_KEY", "xai-1")

    assert "no API key" in str(refusal(None))


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("sk-1\n", "holds a control character, perhaps a line break at its end"),
        ("sk\r\nX-Evil: 1", "holds a control character"),
        ("sk\x00", "holds a control character"),
        ("sk\x7f", "holds a control character"),
        ("sk-ключ", "holds a character that is not ASCII"),
        ("sk-\ud800", "holds a character that is not ASCII"),
    ],
)
def test_a_malformed_key_is_refused_by_name_and_not_shown(monkeypatch, key, problem):
    error = refusal(key)

    assert type(error) is ConfigurationError
    assert str(error).startswith(f"api_key {problem}")
    assert "sk" not in str(error)


@pytest.mark.parametrize("key", ["", " ", "sk-1\n"])
def test_a_malformed_key_in_the_environment_is_refused_by_the_variables_name(monkeypatch, key):
    monkeypatch.setenv("MOUNTSEA_API_KEY", key)

    assert str(refusal(None)).startswith("$MOUNTSEA_API_KEY ")


@pytest.mark.parametrize("source", [7, b"sk-1", ["sk-1"], {}, 0, False])
def test_a_source_of_another_type_is_a_type_error(source):
    error = refusal(source)

    assert type(error) is TypeError
    assert str(error) == f"api_key must be a string or a function, not {type(source).__name__}"


# A function that gives the key.


def test_a_function_is_not_called_before_its_key_is_needed():
    credentials = Credentials(lambda: pytest.fail("called"))
    credentials.check()

    assert (credentials.key, credentials.renewable) == (None, True)


async def test_renewing_takes_a_plain_functions_answer():
    credentials = Credentials(lambda: "sk-1")

    await credentials.renew(0)

    assert (credentials.key, credentials.version) == ("sk-1", 1)


async def test_renewing_awaits_an_async_functions_answer():
    async def source():
        await asyncio.sleep(0)
        return "sk-1"

    credentials = Credentials(source)
    await credentials.renew(0)

    assert (credentials.key, credentials.version) == ("sk-1", 1)


async def test_renewing_takes_any_callable_and_any_awaitable():
    class Source:
        def __call__(self):
            return asyncio.ensure_future(asyncio.sleep(0, "sk-1"))

    credentials = Credentials(Source())
    await credentials.renew(0)

    assert credentials.key == "sk-1"


async def test_renewals_of_the_same_version_at_once_share_one_call():
    calls = 0

    async def source():
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        return f"sk-{calls}"

    credentials = Credentials(source)
    await asyncio.gather(*(credentials.renew(0) for _ in range(100)))

    assert (calls, credentials.key, credentials.version) == (1, "sk-1", 1)


async def test_a_renewal_of_a_version_already_replaced_calls_nothing():
    keys = iter(["sk-1", "sk-2", "sk-3"])
    credentials = Credentials(lambda: next(keys))
    await credentials.renew(0)

    await credentials.renew(0)
    assert credentials.key == "sk-1"
    await credentials.renew(1)
    assert credentials.key == "sk-2"


async def test_renewing_a_fixed_key_changes_nothing():
    credentials = Credentials("sk-1")

    await credentials.renew(0)

    assert (credentials.key, credentials.version) == ("sk-1", 0)


@pytest.mark.parametrize("answer", ["", "sk-2\n", "sk-ключ", None, 7, b"sk-2"])
async def test_a_malformed_answer_is_refused_and_not_shown_and_the_old_key_kept(answer):
    answers = iter(["sk-1", answer])
    credentials = Credentials(lambda: next(answers))
    await credentials.renew(0)

    with pytest.raises(
        ConfigurationError, match="^the key that the function api_key gave "
    ) as caught:
        await credentials.renew(1)

    assert "sk-2" not in str(caught.value)
    assert (credentials.key, credentials.version) == ("sk-1", 1)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_functions_own_error_comes_through_and_the_next_renewal_calls_again(asynchronous):
    calls = 0

    def fails_once():
        nonlocal calls
        calls += 1
        if calls == 1:
            raise LookupError("the vault is shut")
        return "sk-1"

    async def fails_once_async():
        return fails_once()

    credentials = Credentials(fails_once_async if asynchronous else fails_once)

    with pytest.raises(LookupError, match="the vault is shut"):
        await credentials.renew(0)
    await credentials.renew(0)

    assert credentials.key == "sk-1"


async def test_a_cancelled_renewal_leaves_the_next_one_free_to_call():
    vault = asyncio.Event()

    async def source():
        await vault.wait()
        return "sk-1"

    credentials = Credentials(source)
    first = asyncio.create_task(credentials.renew(0))
    second = asyncio.create_task(credentials.renew(0))
    await asyncio.sleep(0)
    first.cancel()
    vault.set()

    await asyncio.wait([first, second])

    assert first.cancelled()
    assert second.exception() is None
    assert credentials.key == "sk-1"


# Blotting the key out.

ESCAPES = {
    "as it is": lambda key: key,
    "JSON": lambda key: json.dumps(key)[1:-1],
    "JSON with escaped slashes": lambda key: json.dumps(key)[1:-1].replace("/", r"\/"),
    "JSON, all escaped": lambda key: "".join(f"\\u{ord(char):04x}" for char in key),
    "JSON, all escaped, in capitals": lambda key: "".join(f"\\u{ord(char):04X}" for char in key),
    "a URL": lambda key: quote(key, safe=""),
    "a URL, all escaped": lambda key: "".join(f"%{ord(char):02x}" for char in key),
    "HTML": html.escape,
    "HTML, all escaped": lambda key: "".join(f"&#{ord(char)};" for char in key),
}


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
def test_a_text_comes_back_without_the_key_however_it_is_escaped(escape):
    assert Redactor(KEY).text(f"<{escape(KEY)}|{escape(KEY)}>") == "<[key]|[key]>"


def test_a_text_without_the_key_comes_back_as_it_is():
    text = r"100 % &amp; \u0041 \/ %41"

    assert Redactor(KEY).text(text) == text


def test_a_text_with_the_key_in_two_escapes_comes_back_without_either():
    text = "".join(escape(KEY) + "\n" for escape in ESCAPES.values())

    assert Redactor(KEY).text(text) == "[key]\n" * len(ESCAPES)


@given(
    st.text(
        st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="["),
        min_size=8,
        max_size=40,
    ),
    st.sampled_from(sorted(ESCAPES)),
)
def test_no_key_survives_in_a_text_it_was_escaped_into(key, name):
    shown = Redactor(key).text(f"the key {ESCAPES[name](key)} was refused")

    assert "[key]" in shown
    assert all(key not in decode(shown) for decode in (str, unquote, html.unescape))


@pytest.mark.parametrize("name", ["as it is", "JSON", "JSON with escaped slashes"])
def test_a_body_comes_back_without_the_key_and_is_still_json(name):
    body = b'{"taskId": "%s"}' % ESCAPES[name](KEY).encode()

    assert Redactor(KEY).body(body) == b'{"taskId": "[key]"}'


def test_a_body_without_the_key_is_not_copied():
    body = b"{}" * 100

    assert Redactor(KEY).body(body) is body


@pytest.mark.parametrize("key", [None, "", "a", "7777777"])
def test_a_key_too_short_to_be_one_is_left_where_it_stands(key):
    redactor = Redactor(key)

    assert redactor.text("a banana: 7777777") == "a banana: 7777777"
    assert redactor.body(b"a banana: 7777777") == b"a banana: 7777777"
