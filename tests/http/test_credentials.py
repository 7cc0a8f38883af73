from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import html
import json
import time
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_tasks import ClientClosedError, ConfigurationError
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


def test_string_is_the_key():
    credentials = Credentials("sk-1")
    credentials.check()

    assert (credentials.key, credentials.version, credentials.renewable) == ("sk-1", 0, False)


def test_none_means_the_environments_key(monkeypatch):
    monkeypatch.setenv("MOUNTSEA_API_KEY", "sk-env")
    credentials = Credentials(None)
    credentials.check()

    assert (credentials.key, credentials.renewable) == ("sk-env", False)


def test_argument_precedes_environment(monkeypatch):
    monkeypatch.setenv("MOUNTSEA_API_KEY", "sk-env")

    assert Credentials("sk-1").key == "sk-1"


def test_missing_key_says_where_to_put_one():
    error = refusal(None)

    assert type(error) is ConfigurationError
    assert str(error) == "no API key: pass api_key or set $MOUNTSEA_API_KEY"


def test_other_vendors_key_is_not_read(monkeypatch):
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
def test_malformed_key_is_refused_and_hidden(monkeypatch, key, problem):
    error = refusal(key)

    assert type(error) is ConfigurationError
    assert str(error).startswith(f"api_key {problem}")
    assert "sk" not in str(error)


@pytest.mark.parametrize("key", ["", " ", "sk-1\n"])
def test_malformed_environment_key_is_refused(monkeypatch, key):
    monkeypatch.setenv("MOUNTSEA_API_KEY", key)

    assert str(refusal(None)).startswith("$MOUNTSEA_API_KEY ")


@pytest.mark.parametrize("source", [7, b"sk-1", ["sk-1"], {}, 0, False])
def test_source_of_wrong_type_is_a_type_error(source):
    error = refusal(source)

    assert type(error) is TypeError
    assert str(error) == f"api_key must be a string or a function, not {type(source).__name__}"


# A function that gives the key.


def test_function_is_called_on_first_need():
    credentials = Credentials(lambda: pytest.fail("called"))
    credentials.check()

    assert (credentials.key, credentials.renewable) == (None, True)


async def test_renew_calls_plain_function():
    credentials = Credentials(lambda: "sk-1")

    await credentials.renew(0)

    assert (credentials.key, credentials.version) == ("sk-1", 1)


async def test_renew_awaits_async_function():
    async def source():
        await asyncio.sleep(0)
        return "sk-1"

    credentials = Credentials(source)
    await credentials.renew(0)

    assert (credentials.key, credentials.version) == ("sk-1", 1)


async def test_renew_takes_any_callable_and_awaitable():
    class Source:
        def __call__(self):
            return asyncio.ensure_future(asyncio.sleep(0, "sk-1"))

    credentials = Credentials(Source())
    await credentials.renew(0)

    assert credentials.key == "sk-1"


async def test_concurrent_renewals_share_one_call():
    calls = 0

    async def source():
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        return f"sk-{calls}"

    credentials = Credentials(source)
    await asyncio.gather(*(credentials.renew(0) for _ in range(100)))

    assert (calls, credentials.key, credentials.version) == (1, "sk-1", 1)


async def test_renewal_of_replaced_version_calls_nothing():
    keys = iter(["sk-1", "sk-2", "sk-3"])
    credentials = Credentials(lambda: next(keys))
    await credentials.renew(0)

    await credentials.renew(0)
    assert credentials.key == "sk-1"
    await credentials.renew(1)
    assert credentials.key == "sk-2"


async def test_renewing_fixed_key_changes_nothing():
    credentials = Credentials("sk-1")

    await credentials.renew(0)

    assert (credentials.key, credentials.version) == ("sk-1", 0)


@pytest.mark.parametrize("answer", ["", "sk-2\n", "sk-ключ", None, 7, b"sk-2"])
async def test_malformed_renewal_keeps_the_old_key(answer):
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
async def test_function_error_propagates_and_next_call_retries(asynchronous):
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


async def test_cancelled_renewal_leaves_others_waiting():
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


async def test_concurrent_callers_share_a_failure():
    calls = 0

    def fails():
        nonlocal calls
        calls += 1
        raise LookupError("the vault is shut")

    credentials = Credentials(fails)
    results = await asyncio.gather(
        *(credentials.renew(0) for _ in range(500)), return_exceptions=True
    )

    assert calls == 1
    assert {type(result) for result in results} == {LookupError}


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_cancelled_error_of_function_propagates(asynchronous):
    async def cancels():
        raise asyncio.CancelledError

    def cancels_at_once():
        raise asyncio.CancelledError

    credentials = Credentials(cancels if asynchronous else cancels_at_once)
    results = await asyncio.gather(
        *(credentials.renew(0) for _ in range(3)), return_exceptions=True
    )

    assert [type(result) for result in results] == [asyncio.CancelledError] * 3
    assert asyncio.current_task().cancelling() == 0


async def hang():
    await asyncio.Event().wait()


async def hang_and_ignore_cancellation():
    for _ in range(3):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.02)
    return "sk-late"


@pytest.mark.parametrize("source", [hang, hang_and_ignore_cancellation])
async def test_close_ends_a_hanging_call(source):
    credentials = Credentials(source)
    waits = [asyncio.create_task(credentials.renew(0)) for _ in range(3)]
    await asyncio.sleep(0.01)

    credentials.close()

    results = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(result) for result in results] == [ClientClosedError] * 3
    with pytest.raises(ClientClosedError):
        await credentials.renew(0)
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_close_without_a_call_is_fine():
    credentials = Credentials("sk-1")

    credentials.close()
    await credentials.renew(0)


async def test_call_is_cancelled_when_the_last_caller_leaves():
    ended = asyncio.Event()

    async def source():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    credentials = Credentials(source)
    waits = [asyncio.create_task(credentials.renew(0)) for _ in range(2)]
    await asyncio.sleep(0.01)
    waits[0].cancel()
    await asyncio.sleep(0.01)
    assert not ended.is_set()
    waits[1].cancel()

    await asyncio.wait(waits)
    await asyncio.wait_for(ended.wait(), 5)


async def test_next_caller_after_all_left_calls_again():
    keys = iter([asyncio.Event().wait(), asyncio.sleep(0, "sk-2")])
    credentials = Credentials(lambda: next(keys))
    first = asyncio.create_task(credentials.renew(0))
    await asyncio.sleep(0.01)
    first.cancel()
    second = asyncio.create_task(credentials.renew(0))

    await asyncio.wait([first, second])

    assert (second.exception(), credentials.key, credentials.version) == (None, "sk-2", 1)


async def test_unwaited_failure_is_not_logged():
    async def source():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise LookupError from None

    credentials = Credentials(source)
    wait = asyncio.create_task(credentials.renew(0))
    await asyncio.sleep(0.01)
    wait.cancel()
    await asyncio.wait([wait])
    await asyncio.sleep(0.01)
    gc.collect()


tenant = contextvars.ContextVar("tenant")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_function_runs_in_contextvars_of_construction(asynchronous):
    async def source():
        await asyncio.sleep(0)
        return f"sk-{tenant.get()}"

    tenant.set("one")
    credentials = Credentials(source if asynchronous else lambda: f"sk-{tenant.get()}")
    tenant.set("two")

    await contextvars.Context().run(asyncio.create_task, credentials.renew(0))

    assert credentials.key == "sk-one"
    assert tenant.get() == "two"


async def test_function_runs_under_old_task_factory():
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, coro: asyncio.Task(coro, loop=loop))
    tenant.set("one")
    try:
        credentials = Credentials(lambda: f"sk-{tenant.get()}")
        await credentials.renew(0)
    finally:
        loop.set_task_factory(None)

    assert credentials.key == "sk-one"


# Redacting the key.

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
def test_key_is_redacted_from_text_in_any_escape(escape):
    assert Redactor(KEY).text(f"<{escape(KEY)}|{escape(KEY)}>") == "<[key]|[key]>"


def test_text_without_key_is_unchanged():
    text = r"100 % &amp; \u0041 \/ %41"

    assert Redactor(KEY).text(text) == text


def test_key_is_redacted_from_text_in_all_escapes():
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
def test_no_escaped_key_survives_in_text(key, name):
    shown = Redactor(key).text(f"the key {ESCAPES[name](key)} was refused")

    assert "[key]" in shown
    assert all(key not in decode(shown) for decode in (str, unquote, html.unescape))


IN_JSON = [name for name in ESCAPES if "JSON" in name] + ["as it is"]


def escaped(key, draw):
    """Write a key as JSON, each character in one of the ways that JSON has for it."""

    def forms(char):
        code = f"{ord(char):04x}"
        yield f"\\u{code}"
        yield f"\\u{code.upper()}"
        yield f"\\u{code[:3]}{code[3].upper()}"
        yield f"\\{char}" if char in '"\\/' else char
        if char not in '"\\':
            yield char

    return "".join(draw(st.sampled_from(list(forms(char)))) for char in key)


@given(
    st.data(),
    st.text(
        st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="[]"),
        min_size=8,
        max_size=40,
    ),
    st.integers(0, 2),
)
def test_no_json_form_of_key_survives_in_body(data, key, nesting):
    text = escaped(key, data.draw)
    assert json.loads(f'"{text}"') == key
    for _ in range(nesting):
        text = json.dumps(text)[1:-1]

    body = Redactor(key).body(f'{{"taskId": "<{text}>"}}'.encode())

    assert json.loads(body)["taskId"] == "<[key]>"
    assert Redactor(key).text(f"<{text}>") == "<[key]>"


def test_several_secrets_are_redacted():
    redactor = Redactor("sk-0123456789", None, "short", "password/1")

    assert redactor.text("sk-0123456789 short password%2F1") == "[key] short [key]"
    assert redactor.body(b'"password\\/1" "sk-012345678\\u0039"') == b'"[key]" "[key]"'


def test_redacting_a_large_body_is_fast():
    body = json.dumps(["\u4efb\u52a1\u001b sk-liv\\ /"] * 300_000).encode()
    began = time.perf_counter()
    Redactor(KEY).body(body)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    json.loads(body)

    assert seconds < 10 * (time.perf_counter() - began)


@pytest.mark.parametrize("name", IN_JSON)
def test_redacted_body_is_still_json(name):
    body = b'{"taskId": "%s"}' % ESCAPES[name](KEY).encode()

    assert Redactor(KEY).body(body) == b'{"taskId": "[key]"}'


def test_body_without_key_is_not_copied():
    body = b"{}" * 100

    assert Redactor(KEY).body(body) is body


@pytest.mark.parametrize("key", [None, "", "a", "7777777"])
def test_short_key_is_not_redacted(key):
    redactor = Redactor(key)

    assert redactor.text("a banana: 7777777") == "a banana: 7777777"
    assert redactor.body(b"a banana: 7777777") == b"a banana: 7777777"
