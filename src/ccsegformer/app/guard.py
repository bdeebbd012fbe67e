"""Which requests the application answers: those that a page of its own sends, and no other site's.

A page elsewhere can send requests to 127.0.0.1, and with DNS rebinding even read the answers. Its requests
carry its own name in `Host` or `Origin`.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BASEMAP = "https://tile.openstreetmap.org"
"""The only other site that the page may load from, and only if the person turns the basemap on."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    f"img-src 'self' blob: data: {BASEMAP}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "strict-origin-when-cross-origin",  # the basemap's server wants an origin
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def guarded(inner: ASGIApp, hosts: tuple[str, ...]) -> ASGIApp:
    """Refuse requests for other hosts, and changes that other sites ask for; add headers that lock the page.

    Args:
        inner: application.
        hosts: names and addresses, without port, by which the person may call this machine.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await inner(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }

        async def send_locked(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *_missing(present)]
            await send(message)

        if problem := _problem(scope["method"], headers, hosts):
            await PlainTextResponse(problem, 403)(scope, receive, send_locked)
        else:
            await inner(scope, receive, send_locked)

    return application


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _missing(present: set[bytes]) -> list[tuple[bytes, bytes]]:
    locked = ((name.lower().encode(), value.encode()) for name, value in HEADERS.items())
    return [(name, value) for name, value in locked if name not in present]


def _problem(method: str, headers: dict[str, str], hosts: tuple[str, ...]) -> str:
    """Say why a request is refused; empty if it is not."""
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    # A rebound name is never a number, so behind an address such as 0.0.0.0 all numbers are fine.
    if name not in hosts and not (not set(hosts) <= set(LOOPBACK) and _is_number(name)):
        return f"This page answers to {', '.join(hosts)} only, not to {host!r}."
    if method in ("GET", "HEAD"):
        return ""
    origin = headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != host
    if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "Another site may not use this page."
    return ""
