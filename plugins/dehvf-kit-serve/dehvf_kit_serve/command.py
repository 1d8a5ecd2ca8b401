"""`dehvf-kit serve`: adapters behind an API that OpenAI's clients speak."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from dehvf_kit.cli.console import waiting
from dehvf_kit.errors import DehvfError

NEEDED = ("starlette", "uvicorn", "llguidance")


def serve(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]ADAPTER...", help="Adapters' folders or hub ids, each under a name.", show_default=False),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Where to listen; 0: any free port.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="DEHVF_KIT_API_KEY", help="What clients must send as API key.", show_default="none"),
    ] = None,
    fetch_images: Annotated[bool, typer.Option("--fetch-images", help="Fetch images that requests name by http(s).")] = False,
    ignore_tools: Annotated[bool, typer.Option("--ignore-tools", help="Answer without the tools that requests offer.")] = False,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Requests answered together.")] = 16,
    max_waiting: Annotated[int, typer.Option("--max-waiting", min=1, help="Requests that may wait, arriving ones too.")] = 64,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 1024,
    max_images: Annotated[int, typer.Option("--max-images", min=0, help="Images in a request.")] = 8,
    max_request_mb: Annotated[float, typer.Option("--max-request-mb", min=0.01, help="Largest request, in MiB.")] = 32,
    patience: Annotated[int, typer.Option("--patience", min=0, help="Seconds that open answers get at the end.")] = 30,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A field to change in every recipe.", show_default=False)
    ] = None,
) -> None:
    """Load adapters, serve them and print the address.

    Raises: DehvfError where a package is missing or the port is taken, AdapterError for what is not an adapter.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise DehvfError(f"serve needs {', '.join(missing)}; pip install 'dehvf-kit[serve]'")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key == api_key.strip() != ""):
        raise DehvfError(
            "--api-key: no client can send this key in a header; name one of printable ASCII characters, no space at an end"
        )
    bound = listen(host, port)
    with waiting(f"Loading {', '.join(adapters)}", plain=True):
        from dehvf_kit_serve.adapters import Limits, load_adapters
        from dehvf_kit_serve.app import Service
        from dehvf_kit_serve.batching import Batches
        from dehvf_kit_serve.server import Server

        loaded = load_adapters(adapters, overrides or ())
    local = _is_local(host)
    service = Service(
        loaded,
        batches=Batches(max_batch, max_waiting),
        limits=Limits(max_images, max_tokens, fetch_images, ignore_tools),
        key=api_key,
        max_bytes=int(max_request_mb * 2**20),
        hosts=("127.0.0.1", "localhost", host) if local else ("*",),
    )
    if not local and api_key is None:
        print("warning: everybody who reaches this address can ask; set DEHVF_KIT_API_KEY", file=sys.stderr)
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{bound.getsockname()[1]}/v1  serves {', '.join(loaded)}  (ctrl-C ends it)", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it has ended
    try:
        Server(service, patience).run(sockets=[bound])
    except KeyboardInterrupt:  # uvicorn has ended by then, and raises it again
        pass
    finally:
        service.batches.close()
        bound.close()


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket on a port; 0: any that is free. Raises: DehvfError where the address cannot be used or the port is taken."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family)
    except OSError as error:
        raise DehvfError(f"--host: '{host}' cannot be used: {error.strerror}") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(place)
        bound.listen(128)
    except OSError as error:
        bound.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used on {host}: {error.strerror}"
        raise DehvfError(f"port {port} {reason}; name another with --port, or let --port 0 find one") from error
    return bound
