"""ComfyUI's server: events to the page, and routes for requests from the page."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...guidance.adm.released import released_classes
from ...guidance.checkpoints.checkpoint import CheckpointError, read_checkpoint
from ...guidance.core.labels import class_names, distinct_names
from .paths import (
    CLASSIFIERS,
    DIFFUSION_MODELS,
    fingerprint,
    image_classifier_names,
    image_classifier_path,
    model_names,
    model_path,
)

IMAGE_CLASSIFIERS = "image_classifiers"  # not a folder: the image classifiers in CLASSIFIERS
MOST_BYTES = 2**18  # of a request to preview a schedule
FAULT = "classifier_guidance.fault"
Classes = tuple[tuple[str, ...], bool]  # of a file: what to choose from, and whether it has names


def _server() -> Any:
    """ComfyUI's server, or None outside of ComfyUI's process."""
    prompt_server = getattr(sys.modules.get("server"), "PromptServer", None)
    return getattr(prompt_server, "instance", None)


def send_event(event: str, about: dict[str, Any]) -> None:
    """Sends an event to the page that queued the current prompt, if there is a server."""
    server = _server()
    if server is not None:
        server.send_sync(event, about, server.client_id)


def show_on_node(text: str, node: str | None) -> None:
    """Writes a warning into the log and, where the page knows the node, on the node."""
    logging.warning("Classifier Guidance: %s", text)
    send = getattr(_server(), "send_progress_text", None)
    if send is not None and node is not None:
        send(text, node)


@contextlib.contextmanager
def faults_of(node: str | None) -> Iterator[None]:
    """The page shows a ValueError raised in this context on the node whose input is wrong.

    ComfyUI itself only knows the node that runs: the sampler.
    """
    try:
        yield
    except ValueError as error:
        if node is not None:
            send_event(FAULT, {"node": node, "text": str(error)})
        raise


def add_routes(draw_schedule: Callable[[str], dict[str, Any]]) -> None:
    """GET /classifier_guidance/classes?kind=classifiers&name=...: the classes of a file.

    {"classes": their names or numbers, "named": whether they have names}.

    POST /classifier_guidance/schedule: the result of draw_schedule for the text of the request.
    """
    server = _server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.get("/classifier_guidance/classes")
    async def classes(request: Any) -> Any:
        kind, name = request.query.get("kind", ""), request.query.get("name", "")
        # listing folders and reading files must not block the server
        known = await asyncio.to_thread(classes_of, kind, name)
        offered, named = known or ((), False)
        answer = {"classes": offered, "named": named}
        return web.json_response(answer, status=404 if known is None else 200)

    @server.routes.post("/classifier_guidance/schedule")
    async def schedule(request: Any) -> Any:
        text = await _text_of(request, MOST_BYTES)
        if text is None:
            return web.json_response({"error": f"A schedule has at most {MOST_BYTES} bytes."})
        return web.json_response(await asyncio.to_thread(draw_schedule, text))


async def _text_of(request: Any, most: int) -> str | None:
    """The text of the request, or None if it has more than `most` bytes."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > most:
            return None
    return body.decode("utf-8", "replace")


def classes_of(kind: str, name: str) -> Classes | None:
    """The names of a file's classes, or their numbers; empty if the file cannot be used.

    None for a file that no loader offers, unless it is called like one of OpenAI's: a workflow can
    be prepared before the file is there.
    """
    if kind == IMAGE_CLASSIFIERS:
        offered, path_of = image_classifier_names(), image_classifier_path
    elif kind in (CLASSIFIERS, DIFFUSION_MODELS):
        offered, path_of = model_names(kind), functools.partial(model_path, kind)
    else:
        return None
    if name not in offered:
        count = released_classes(name)
        return None if count is None else _offered(count, None)
    try:
        return _classes_of(kind, path_of(name), fingerprint(path_of, name))
    except CheckpointError:
        return (), False


@functools.lru_cache(maxsize=64)
def _classes_of(kind: str, path: Path, version: str) -> Classes:
    """version: the file's fingerprint, so that a replaced file is read again."""
    if kind == IMAGE_CLASSIFIERS:
        from ...guidance.checkpoints.image_classifiers import classes_of_image_classifier

        count, labels = classes_of_image_classifier(path)
    else:
        about = read_checkpoint(path).description
        count, labels = about.layout.class_count or 0, about.labels
    return _offered(count, labels)


def _offered(count: int, labels: tuple[str, ...] | None) -> Classes:
    names = class_names(count, labels)
    return (distinct_names(names), True) if names else (tuple(map(str, range(count))), False)
