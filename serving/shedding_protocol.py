"""Under uvicorn, refuses rankings that cannot be in time before there is a task for them.

    uvicorn.Config(app, http=shedding_protocol(app.state.pressure, app.state.refusals))

`serving.shedding` refuses in the first lines of the application; by then uvicorn has made a task,
a cycle and an event for the request, and the layers before it their own. Under overload, when most
requests are refused, that is most of what they cost: 0.10 ms of a core there, 0.04 here. The parser
is uvicorn's, every request is read to its end, and whatever is not an ordinary request on a
connection that goes on takes the way through the application.
"""

import secrets
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.pressure import Pressure
from serving.request_limits import HEADER, SANE_ID
from serving.shedding import BODY as REASON
from serving.shedding import HEADERS, RANKED_PATHS, UnreadRefusals

RANKED_URLS = frozenset(path.encode() for path in RANKED_PATHS)
HEAD = b"HTTP/1.1 503 Service Unavailable\r\n" + b"".join(
    b"%b: %b\r\n" % header for header in HEADERS
)


def shedding_protocol(pressure: Pressure, refusals: UnreadRefusals) -> type[HttpToolsProtocol]:
    """uvicorn's protocol for one service's process; `refusals` counts."""

    class SheddingProtocol(HttpToolsProtocol):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._is_refused = False
            """Whether the request that is being read will be."""

        def on_headers_complete(self) -> None:
            if self.url in RANKED_URLS and self._is_ordinary() and pressure.is_hopeless():
                self._is_refused = True
            else:
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._is_refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if not self._is_refused:
                super().on_message_complete()
                return
            self._is_refused = False
            refusals.one()
            given = next((value for name, value in self.headers if name == HEADER), b"")
            own = given if SANE_ID.fullmatch(given) else secrets.token_hex(16).encode()
            if not self.transport.is_closing():
                self.transport.write(b"%b%b: %b\r\n\r\n%b" % (HEAD, HEADER, own, REASON))
            self.on_response_complete()

        def _is_ordinary(self) -> bool:
            """HTTP/1.1 that goes on afterwards, with no answer under way before its own."""
            return (
                (self.cycle is None or self.cycle.response_complete)
                and self.parser.get_http_version() == "1.1"
                and self.parser.should_keep_alive()
                and not self.parser.should_upgrade()
                and not self.expect_100_continue
            )

    return SheddingProtocol
