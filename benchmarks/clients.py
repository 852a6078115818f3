"""Many clients of a service at a time, a thread and a connection each, by the standard library: they take little."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any, TypeVar

Found = TypeVar("Found")

PATIENCE = 300
"""Seconds after which a client gives up."""


class Client:
    """A connection that stays open. Raises SystemExit for every answer that is an error."""

    def __init__(self, port: int, key: str = "") -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer."""
        return json.loads(self.open(method, path, body).read())

    def open(self, method: str, path: str, body: Any = None) -> HTTPResponse:
        given = None if body is None else json.dumps(body).encode()
        return self.send(method, path, given, {"Content-Type": "application/json"} if given else {})

    def send(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None, headers: dict[str, str]
    ) -> HTTPResponse:
        self._connection.request(method, path, body, {**self._headers, **headers})
        response = self._connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"{method} {path} is answered with {response.status}: {response.read().decode()}")
        return response

    def upload(self, name: str, parts: Iterable[bytes], size: int) -> Any:
        """POST /files, of so many bytes, which are made as they are sent."""
        edge = "edge-of-a-part"
        head = (
            f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{edge}--\r\n".encode()

        def body() -> Iterable[bytes]:
            yield head
            yield from parts
            yield tail

        headers = {
            "Content-Type": f"multipart/form-data; boundary={edge}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        return json.loads(self.send("POST", "/v1/files", body(), headers).read())


def together(count: int, act: Callable[[int], list[Found]]) -> tuple[list[Found], float]:
    """What so many clients found that began at once, and the seconds until the last of them was ready."""
    ready = threading.Barrier(count + 1)

    def client(number: int) -> list[Found]:
        ready.wait()
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        going = [pool.submit(client, number) for number in range(count)]
        ready.wait()
        began = time.perf_counter()
        found = [one for each in going for one in each.result()]
        return found, time.perf_counter() - began


@dataclass(frozen=True)
class Told:
    """An answer to a chat: how many tokens it has, and the seconds until its first text and until its end."""

    tokens: int
    first: float
    whole: float


def chat(client: Client, body: dict[str, Any]) -> Told:
    """Ask for an answer in a stream, and hear all of it."""
    began = time.perf_counter()
    response = client.open("POST", "/v1/chat/completions", {**body, "stream": True})
    first, tokens = 0.0, 0
    while line := response.readline():
        if not line.startswith(b"data: {"):
            continue
        if b'"usage":{' in line or not first:
            said = json.loads(line[6:])
            if "error" in said:
                raise SystemExit(f"A stream broke off: {line.decode()}")
            first = first or (time.perf_counter() - began if _has_text(said) else 0.0)
            tokens = (said.get("usage") or {}).get("completion_tokens", tokens)
    return Told(tokens, first, time.perf_counter() - began)


def _has_text(said: dict[str, Any]) -> bool:
    return any(choice["delta"].get("content") for choice in said["choices"])


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not pass."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
