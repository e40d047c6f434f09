"""HTTP/1.1 messages: heads that cannot mislead, and replies in any pieces."""

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill.core.http1 import BrokenReply, RawReply, ReplyReader, request_bytes, request_head

_NAMES = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True).filter(
    lambda name: name.lower() not in {"host", "content-length", "transfer-encoding", "connection"}
)


@given(
    target=st.one_of(st.from_regex(r"/[\x21-\x7e]{0,30}", fullmatch=True), st.text(max_size=10)),
    fields=st.lists(st.tuples(st.one_of(_NAMES, st.text(max_size=5)), st.text(max_size=20)), max_size=4),
    body=st.binary(max_size=50),
)
def test_a_head_is_refused_or_says_what_was_asked(target: str, fields: list[tuple[str, str]], body: bytes) -> None:
    """No target and no header value can begin another header or another request: h11 reads back what was asked."""
    try:
        sent = request_bytes(request_head("PUT", target, [("host", "h"), *fields]), body)
    except ValueError:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(sent)
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert request.target.decode("latin-1") == target
    expected = [(b"host", b"h"), *((n.lower().encode("latin-1"), v.strip(" \t").encode("latin-1")) for n, v in fields)]
    assert list(request.headers) == [*expected, (b"content-length", b"%d" % len(body))]
    received = b""
    while isinstance(event := server.next_event(), h11.Data):
        received += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert received == body
    assert server.trailing_data[0] == b""


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/a b", [("host", "h")]),
        ("/a\r\nx: y", [("host", "h")]),
        ("", [("host", "h")]),
        ("/", []),
        ("/", [("host", "h"), ("Host", "i")]),
        ("/", [("host", "h"), ("x", "a\r\nb: c")]),
        ("/", [("host", "h"), ("x", "a\0")]),
        ("/", [("host", "h"), ("x:", "a")]),
        ("/", [("host", "h"), ("Content-Length", "3")]),
        ("/", [("host", "h"), ("transfer-encoding", "chunked")]),
    ],
)
def test_a_head_that_could_mislead_is_refused(target: str, fields: list[tuple[str, str]]) -> None:
    """Injection and double framing are refused, and the message shows no value: it may be a token."""
    with pytest.raises(ValueError, match=r"header|target|Host|transport") as caught:
        request_head("PUT", target, fields)
    assert "a\r" not in str(caught.value)


def read(data: bytes, cuts: list[int] | None = None, limit: int = 1 << 20) -> RawReply | str:
    """What a reader makes of the bytes, fed in pieces, with the peer's end after them."""
    reader = ReplyReader(b"PUT", limit)
    places = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts or ())})
    try:
        for start, end in itertools.pairwise(places):
            if (reply := reader.feed(data[start:end])) is not None:
                return reply
        return reader.end() or "none"
    except BrokenReply as error:
        return error.cause


REPLIES = {
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello": RawReply(200, [(b"content-length", b"5")], b"hello"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n": RawReply(
        200, [(b"transfer-encoding", b"chunked")], b"hello"
    ),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n": RawReply(204, [], b""),
    b"HTTP/1.0 200 OK\r\n\r\nup to the end": RawReply(200, [], b"up to the end"),
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello": "closed",
    b"HTTP/1.1 200 OK\r\nContent-Le": "closed",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello": "malformed",
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n": "malformed",
}


@pytest.mark.parametrize("data", REPLIES)
@given(cuts=st.lists(st.integers(0, 80), max_size=4))
def test_a_reply_is_the_same_in_whatever_pieces(data: bytes, cuts: list[int]) -> None:
    """Where the network cuts it says nothing about it."""
    assert read(data, cuts) == REPLIES[data]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_a_reply_without_end_is_not_read_on(data: bytes) -> None:
    """Memory is bounded, for bodies and heads."""
    assert read(data, limit=1000) == "too_large"


@pytest.mark.parametrize(
    ("headers", "keep_for_s"),
    [
        (b"", -1.0),
        (b"Keep-Alive: timeout=5, max=100\r\n", 5.0),
        (b"Connection: close\r\n", None),
        (b"Keep-Alive: soon\r\n", -1.0),
    ],
)
def test_what_is_announced_about_the_connection(headers: bytes, keep_for_s: float | None) -> None:
    """Closed, kept, or kept for so many seconds."""
    reader = ReplyReader(b"PUT", 100)
    assert reader.feed(b"HTTP/1.1 200 OK\r\n" + headers + b"Content-Length: 0\r\n\r\n") is not None
    assert reader.keep_for_s == keep_for_s


def test_bytes_beyond_the_reply_end_the_connection() -> None:
    """What nobody asked for must not be taken for the next reply."""
    reader = ReplyReader(b"PUT", 100)
    assert reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n") is not None
    assert reader.keep_for_s is None


@given(
    data=st.sampled_from(sorted(REPLIES)),
    mutations=st.lists(st.tuples(st.integers(0, 90), st.binary(max_size=2)), max_size=4),
    cuts=st.lists(st.integers(0, 90), max_size=2),
)
def test_mutated_bytes_are_a_reply_or_a_broken_one(
    data: bytes, mutations: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    """Never another exception, in whatever pieces the rubbish comes."""
    raw = bytearray(data)
    for place, put in mutations:
        raw[place : place + 1] = put
    assert isinstance(read(bytes(raw), cuts), RawReply | str)
