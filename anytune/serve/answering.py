"""From a call to an HTTP answer: whole, or as server-sent events. A client that goes away ends its answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from anytune.errors import UserError
from anytune.http.errors import log, without_paths
from anytune.serve import forms
from anytune.serve.answer import Answer, Event
from anytune.serve.bodies import Chat, Completion, Generation
from anytune.serve.service import Call, Service
from anytune.serve.shapes import ChatShape, Shape, TextShape

ALIVE = 15.0  # seconds after which a comment keeps an idle connection open


class Failed(UserError):
    """An answer ended in an error that is not the client's fault."""


async def chat(service: Service, body: Chat, request: Request) -> Response:
    def shape(call: Call) -> Shape:
        return ChatShape(service.tokenizer, body, call)

    return await _answer(service, body, request, service.chat, shape)


async def completion(service: Service, body: Completion, request: Request) -> Response:
    def shape(call: Call) -> Shape:
        return TextShape(service.tokenizer, body, call)

    return await _answer(service, body, request, service.completion, shape)


async def _answer(service: Service, body: Generation, request: Request, start: Callable, shape: Callable) -> Response:
    loop, events = asyncio.get_running_loop(), asyncio.Queue()

    def deliver(number: int, event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, (number, event))

    call, answers = await asyncio.to_thread(start, body, deliver)
    flow = _flow(service, answers, events)
    made = shape(call)
    if body.stream:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(
            _stream(flow, made, call, answers, body), media_type="text/event-stream", headers=headers
        )
    gone = asyncio.ensure_future(_gone(request))
    try:
        return Response(forms.encoded(await _whole(flow, made, call, answers, gone)), media_type="application/json")
    finally:
        gone.cancel()
        await flow.aclose()


async def _flow(
    service: Service, answers: list[Answer], events: asyncio.Queue
) -> AsyncIterator[tuple[int, Event] | None]:
    """Events until the last of each answer; None now and then while nothing comes. Closed early, it cancels them."""
    left = len(answers)
    try:
        while left:
            try:
                if events.empty():
                    async with asyncio.timeout(ALIVE):  # wait_for() would make a task for each token
                        number, event = await events.get()
                else:
                    number, event = events.get_nowait()
            except TimeoutError:
                yield None
                continue
            left -= event.last
            yield number, event
    finally:
        for answer in answers if left else ():
            service.scheduler.cancel(answer)


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(flow: AsyncIterator, shape: Shape, call: Call, answers: list[Answer], gone: asyncio.Future) -> Any:
    step = None
    while True:
        step = asyncio.ensure_future(anext(flow, False))
        await asyncio.wait({step, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not step.done():  # nobody waits for the answer
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
            return {}
        if (item := step.result()) is False:
            return shape.whole() | {"usage": _usage(call, answers)}
        if item is not None:
            if item[1].error is not None:
                raise _error(item[1].error)
            shape.add(*item)


async def _stream(
    flow: AsyncIterator, shape: Shape, call: Call, answers: list[Answer], body: Generation
) -> AsyncIterator[bytes]:
    try:
        for value in shape.begin():
            yield forms.event(value)
        async for item in flow:
            if item is None:
                yield b": waiting\n\n"
                continue
            number, event = item
            if event.error is not None:
                yield forms.event(forms.error(str(_error(event.error)), "server_error"))
                return
            for value in shape.chunks(number, event):
                yield forms.event(value)
        if body.include_usage:
            yield forms.event(shape.usage(_usage(call, answers)))
        yield b"data: [DONE]\n\n"
    finally:
        await flow.aclose()


def _usage(call: Call, answers: list[Answer]) -> dict[str, Any]:
    return forms.usage(answers, [answer for answer in answers if answer.request.number == 0])


def _error(error: Exception) -> Exception:
    if isinstance(error, UserError):
        return UserError(without_paths(" ".join(str(error).split())))
    if isinstance(error, MemoryError):
        return Failed("Out of memory: request less at once, or start the server with a smaller --parallel or -c.")
    log.error("an answer failed", exc_info=error)
    return Failed("Internal error; the server's log has the details.")
