"""Proxies: does the way to an address lead through one, and what is said to it?

Reads no environment, an entry point passes it in; opens no connection. No text made here shows a user or password.

The rules are those of curl, requests and httpx, where they agree. A name in lower case overrules the same in capitals;
HTTPS_PROXY or HTTP_PROXY, by the scheme of the address, overrules ALL_PROXY. NO_PROXY lists names (with all names
below them), addresses and networks (10.0.0.0/8), each with a port or without, or `*`. As there, a network matches an
address that was written as one: no name is resolved to see whether it lies inside.
"""

import ipaddress
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

from backfill.core.errors import ConfigurationError

_SPOKEN_ELSEWHERE = frozenset(("https", "socks", "socks4", "socks4a", "socks5", "socks5h"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """An HTTP proxy, and the variable that named it. `authorization`: the value of Proxy-Authorization, if any."""

    host: str
    port: int
    variable: str
    authorization: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"the proxy {host}:{self.port} ({self.variable})"

    @property
    def subject(self) -> str:
        """The same as the first words of a sentence."""
        return f"T{str(self)[1:]}"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of NO_PROXY: a network of addresses, or a name that stands for all names below it too."""

    host: str | ipaddress.IPv4Network | ipaddress.IPv6Network
    port: int | None

    def matches(self, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        if isinstance(self.host, str):
            return address is None and (host == self.host or host.endswith(f".{self.host}"))
        return address is not None and address.version == self.host.version and address in self.host


@dataclass(frozen=True, slots=True, repr=False)
class Proxies:
    """Which proxy serves which address. The values are judged where one is needed: SOCKS in ALL_PROXY hurts nobody
    whose HTTPS_PROXY is fine.
    """

    _urls: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    _all_direct: bool = False
    _direct: tuple[_Entry, ...] = ()

    @classmethod
    def named_in(cls, environment: Mapping[str, str]) -> "Proxies":
        """From HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, in small letters or capitals."""
        urls: dict[str, tuple[str, str]] = {}
        for scheme in ("http", "https", "all"):
            variable, value = _variable(environment, f"{scheme}_proxy")
            if value and not (variable == "HTTP_PROXY" and "REQUEST_METHOD" in environment):
                # Under CGI, HTTP_PROXY is what a client wrote into its header `Proxy`.
                urls[scheme] = (variable, value)
        listed = [entry for entry in re.split(r"[,\s]+", _variable(environment, "no_proxy")[1]) if entry]
        return cls(urls, "*" in listed, tuple(_entry(text) for text in listed))

    def route(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The proxy on the way to an address; None: go there directly. `host`: as ASCII, without brackets.

        Raises: ConfigurationError where the proxy that is named cannot be used.
        """
        variable, url = self._urls.get(scheme) or self._urls.get("all") or ("", "")
        if not url or self._all_direct:
            return None
        name = host.lower().rstrip(".")
        address = _address(name)
        if any(entry.matches(name, address, port) for entry in self._direct):
            return None
        return _proxy(url, variable)

    def require(self, *urls: str) -> None:
        """Raises: ConfigurationError where the proxy on the way to one of these cannot be used; a path has none."""
        for url in urls:
            parts = urlsplit(url)
            if parts.hostname:
                self.route(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))


def _variable(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """Its name as it was found, and its value. Small letters win, also when they say nothing."""
    for variable in (name, name.upper()):
        if (value := environment.get(variable)) is not None:
            return variable, value.strip()
    return name, ""


def _entry(text: str) -> _Entry:
    host, port = text.lower(), None
    # Not the last group of an IPv6 address: that stands in brackets where a port follows.
    if found := re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", host):
        host, port = found[1], int(found[2])
    host = host.replace("[", "").replace("]", "")
    try:
        return _Entry(ipaddress.ip_network(host, strict=False), port)
    except ValueError:
        return _Entry(host.removeprefix("*").strip("."), port)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _proxy(url: str, variable: str) -> Proxy:
    unusable = ConfigurationError(
        f"{variable} is not the address of a proxy. Write it as http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT "
        "with special characters percent-encoded; or name in NO_PROXY what needs none."
    )
    if re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise unusable
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise unusable from None
    if parts.scheme in _SPOKEN_ELSEWHERE:
        raise ConfigurationError(
            f"{variable} names a proxy that is spoken to by {parts.scheme}://. Only proxies of http:// are supported "
            "(they carry https, too). Name one, or put the hosts of api.base_url and api.token_url into NO_PROXY."
        )
    # A password with a bare / ? or # in it would be cut there, and its first half be taken for a port.
    if parts.scheme != "http" or not host or port == 0 or "@" in parts.path + parts.query + parts.fragment:
        raise unusable
    authorization = None
    if parts.username or parts.password:
        words = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(words.encode()).decode()}"
    return Proxy(host=host, port=port or 80, variable=variable, authorization=authorization)


# ------------------------------------------------------------------------------------------------ what a proxy answers


def refusal(proxy: Proxy, authority: str, status: int) -> tuple[Literal["proxy_credentials", "proxy_refused"], str]:
    """Why a proxy that answered `status` opened no tunnel to `authority`: one word, and sentences for a person."""
    who = proxy.subject
    if status == 407:
        return "proxy_credentials", (
            f"{who} refuses its user and password (407). Correct them in {proxy.variable}."
            if proxy.authorization
            else f"{who} asks for a user and password (407). Write them into {proxy.variable}: "
            "http://USER:PASSWORD@HOST:PORT (Basic; NTLM and Kerberos are not spoken)."
        )
    what = f"{who} opened no tunnel to {authority}: it answered {status}."
    if status in (502, 503, 504):
        return "proxy_refused", f"{what} It may not reach that host: check the address, and the proxy's own network."
    return "proxy_refused", f"{what} Have its operator allow the host, or name it in NO_PROXY if it needs no proxy."
