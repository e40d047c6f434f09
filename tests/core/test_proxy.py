"""Which proxy leads where, by plain values; names in NO_PROXY held against Python's own reading of them."""

import base64
import urllib.request
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backfill.core.errors import ConfigurationError
from backfill.core.http1 import forwarded, request_bytes, request_head
from backfill.core.proxy import Proxies, Proxy, refusal

TARGET = ("https", "api.example.com", 443)


def route(environment: dict[str, str], target: tuple[str, str, int] = TARGET) -> tuple[str, int, str] | None:
    proxy = Proxies.named_in(environment).route(*target)
    return None if proxy is None else (proxy.host, proxy.port, proxy.variable)


# ---------------------------------------------------------------------------------------------------- which variable


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:3128"}, ("p", 3128, "HTTPS_PROXY")),
        ({"https_proxy": "http://p:3128/"}, ("p", 3128, "https_proxy")),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:2"}, ("b", 2, "https_proxy")),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": ""}, None),
        ({"HTTP_PROXY": "http://a:1"}, None),
        ({"ALL_PROXY": "http://a:1"}, ("a", 1, "ALL_PROXY")),
        ({"all_proxy": "http://a:1", "HTTPS_PROXY": "http://b:2"}, ("b", 2, "HTTPS_PROXY")),
        ({"ALL_PROXY": "socks5://a:1", "HTTPS_PROXY": "http://b:2"}, ("b", 2, "HTTPS_PROXY")),
        ({"HTTPS_PROXY": "p:3128"}, ("p", 3128, "HTTPS_PROXY")),
        ({"HTTPS_PROXY": " http://p "}, ("p", 80, "HTTPS_PROXY")),
        ({"HTTPS_PROXY": "http://[::1]:3128"}, ("::1", 3128, "HTTPS_PROXY")),
    ],
)
def test_which_variable_counts(environment: dict[str, str], expected: tuple[str, int, str] | None) -> None:
    """Small letters before capitals, the scheme's own before ALL_PROXY, http:// where no scheme is written."""
    assert route(environment) == expected


def test_under_cgi_the_capitals_are_a_client_s_word() -> None:
    """A web server puts a request's header `Proxy` into HTTP_PROXY: it is not believed there."""
    target = ("http", "127.0.0.1", 8000)
    assert route({"HTTP_PROXY": "http://p:1"}, target) == ("p", 1, "HTTP_PROXY")
    assert route({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, target) is None
    assert route({"http_proxy": "http://p:1", "REQUEST_METHOD": "GET"}, target) == ("p", 1, "http_proxy")


# ---------------------------------------------------------------------------------------------------- NO_PROXY


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("*", "api.example.com", True),
        ("a.b,*", "api.example.com", True),
        ("example.com", "api.example.com", True),
        (".example.com", "api.example.com", True),
        ("*.example.com", "api.example.com", True),
        ("API.Example.COM.", "api.example.com", True),
        ("api.example.com", "API.example.com.", True),
        ("ample.com", "api.example.com", False),
        ("api.example.com.evil", "api.example.com", False),
        ("a.b example.com", "api.example.com", True),
        ("api.example.com:443", "api.example.com", True),
        ("api.example.com:8443", "api.example.com", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8:443", "10.1.2.3", True),
        ("10.0.0.0/16", "10.1.2.3", False),
        ("1.2.3", "10.1.2.3", False),
        ("::1", "::1", True),
        ("[::1]", "0:0:0:0:0:0:0:1", True),
        ("[::1]:443", "::1", True),
        ("[::1]:8443", "::1", False),
        ("fd00::/8", "fd12::1", True),
        ("fd00::/8", "10.1.2.3", False),
        ("", "api.example.com", False),
        (" , ", "api.example.com", False),
        ("10.0.0.0/99", "10.1.2.3", False),
    ],
)
def test_what_needs_no_proxy(no_proxy: str, host: str, direct: bool) -> None:
    """Names with all below them, addresses however spelled, networks, each with a port or without; `*` is all."""
    assert (route({"ALL_PROXY": "http://p:1", "no_proxy": no_proxy}, ("https", host, 443)) is None) is direct


NAMES = st.lists(st.sampled_from(("a", "b", "ab", "x-1")), min_size=1, max_size=4).map(".".join)


@given(
    host=NAMES,
    port=st.sampled_from((80, 443)),
    entries=st.lists(
        st.builds(
            lambda dot, name, port: f"{dot}{name}{port}",
            st.sampled_from(("", ".")),
            NAMES,
            st.sampled_from(("", ":80", ":443")),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_names_are_read_as_python_reads_them(host: str, port: int, entries: list[str]) -> None:
    """Whether a name needs no proxy: the same answer as the standard library's, and so as that of requests."""
    listed = ", ".join(entries)
    ours = route({"ALL_PROXY": "http://p:1", "NO_PROXY": listed}, ("https", host, port)) is None
    theirs = urllib.request.proxy_bypass_environment(f"{host}:{port}", {"no": listed})  # type: ignore[attr-defined]
    assert ours == bool(theirs)


# ---------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://p:1", "by https://"),
        ("socks5://p:1", "by socks5://"),
        ("socks5h://u:hunter2@p:1", "by socks5h://"),
        ("ftp://p:1", "is not the address of a proxy"),
        ("hunter2://p:1", "is not the address of a proxy"),
        ("http://", "is not the address of a proxy"),
        ("http://p:hunter2", "is not the address of a proxy"),
        ("http://p:99999", "is not the address of a proxy"),
        ("http://p:0", "is not the address of a proxy"),
        ("http://[::1:3128", "is not the address of a proxy"),
        ("http://u:hunter2 @p:1", "is not the address of a proxy"),
        ("http://u:hunter2\t@p:1", "is not the address of a proxy"),
        ("http://u:12/hunter2@p:1", "is not the address of a proxy"),
        ("http://u:12?hunter2@p:1", "is not the address of a proxy"),
        ("http://u:12#hunter2@p:1", "is not the address of a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_where_it_is_needed(value: str, words: str) -> None:
    """78 naming the variable and never the value; an address that needs no proxy does not care."""
    proxies = Proxies.named_in({"HTTPS_PROXY": value, "NO_PROXY": "direct.example"})
    with pytest.raises(ConfigurationError) as caught:
        proxies.require("/one/oauth2token", "http://127.0.0.1:1", "https://direct.example", "https://api.example")
    assert "HTTPS_PROXY" in caught.value.message
    assert words in caught.value.message
    assert "hunter2" not in caught.value.message
    proxies.require("/one/oauth2token", "http://127.0.0.1:1", "https://direct.example")


@given(user=st.text(min_size=1), password=st.text())
@example(user="DOMAIN\\u", password="p@ss:w/rd?#%41")
def test_user_and_password_reach_the_proxy_and_no_text(user: str, password: str) -> None:
    """Percent-encoded in the URL, whole in Proxy-Authorization, and in no representation."""
    url = f"http://{quote(user, safe='')}:{quote(password, safe='')}@p:1"
    proxies = Proxies.named_in({"HTTPS_PROXY": url})
    proxy = proxies.route(*TARGET)
    assert proxy is not None
    assert proxy.authorization is not None
    assert base64.b64decode(proxy.authorization.removeprefix("Basic ")).decode() == f"{user}:{password}"
    assert proxy.authorization not in f"{proxy} {proxy!r}"
    assert str(proxy) == "the proxy p:1 (HTTPS_PROXY)"
    assert "p:1" not in repr(proxies)


# ---------------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("status", "authorization", "cause", "words"),
    [
        (407, None, "proxy_credentials", "asks for a user and password (407). Write them into HTTPS_PROXY"),
        (407, "Basic eDp5", "proxy_credentials", "refuses its user and password (407). Correct them in HTTPS_PROXY"),
        (403, None, "proxy_refused", "answered 403. Have its operator allow the host"),
        (502, None, "proxy_refused", "answered 502. It may not reach that host"),
        (301, None, "proxy_refused", "answered 301."),
    ],
)
def test_a_refused_tunnel_says_what_to_do(status: int, authorization: str | None, cause: str, words: str) -> None:
    """Credentials are the user's matter, the rest that of whoever runs the proxy; neither text shows a secret."""
    proxy = Proxy(host="p", port=1, variable="HTTPS_PROXY", authorization=authorization)
    word, said = refusal(proxy, "api.example.com:443", status)
    assert word == cause
    assert words in said
    assert said.startswith("The proxy p:1 (HTTPS_PROXY) ")
    assert "eDp5" not in said


def test_a_forwarded_request_names_its_target_in_full() -> None:
    """The request line has the whole address, the proxy's credentials follow, and all else stays as it was."""
    head = request_head("PUT", "/a?sk=1", [("host", "h:8"), ("x", "y")])
    assert request_bytes(forwarded(head, b"http://h:8", "Basic eDp5"), b"{}") == (
        b"PUT http://h:8/a?sk=1 HTTP/1.1\r\nhost: h:8\r\nx: y\r\nproxy-authorization: Basic eDp5\r\n"
        b"content-length: 2\r\n\r\n{}"
    )
    assert request_bytes(forwarded(head, b"http://h:8", None), b"{}") == (
        b"PUT http://h:8/a?sk=1 HTTP/1.1\r\nhost: h:8\r\nx: y\r\ncontent-length: 2\r\n\r\n{}"
    )
