"""Certificates that the `openssl` program makes for a test, and servers behind them."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Sequence
from http.server import HTTPServer
from pathlib import Path
from typing import NamedTuple

_YEARS = "3650"


class Certificate(NamedTuple):
    """A certificate signed by a CA of its own; `ca` is for REQUESTS_CA_BUNDLE."""

    ca: Path
    chain: Path
    key: Path

    def wrap(self, server: HTTPServer) -> None:
        """Let a server speak TLS on the sockets it accepts.

        The handshake is left to the thread that reads. No session tickets follow it: what the
        server sends after it is its answer.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        context.num_tickets = 0
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )


def certificate(folder: Path, names: Sequence[str], openssl: str = "openssl") -> Certificate:
    """Make a CA and a certificate for host names and IPv4 addresses."""
    ca, ca_key, key, asked, chain = (
        folder / name for name in ("ca.pem", "ca.key", "server.key", "server.csr", "server.pem")
    )
    kinds = [f"{'IP' if name.replace('.', '').isdecimal() else 'DNS'}:{name}" for name in names]
    extensions = folder / "server.ext"
    extensions.write_text(f"subjectAltName={','.join(kinds)}\n")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    signing = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", extensions)
    for command in (
        ("req", "-x509", *curve, "-keyout", ca_key, "-out", ca, "-subj", "/CN=A CA", *usage),
        ("req", *curve, "-keyout", key, "-out", asked, "-subj", "/CN=A server"),
        ("x509", "-req", "-in", asked, *signing, "-out", chain),
    ):
        days = () if command[:2] == ("req", "-newkey") else ("-days", _YEARS)
        subprocess.run([openssl, *command, *days], check=True, capture_output=True)
    return Certificate(ca, chain, key)
