"""Layer inputs that wait for their backward in pinned host memory: long contexts on small cards.

Copies run on a stream of their own, beside the layers' work. They come back in the opposite order, each one layer ahead
of its use. Inside a recorded step the same buffers serve at every replay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .resources import Owned, page_locked

Tensor = torch.Tensor


@dataclass
class Ticket:
    """What offload() gave: the tensor's place on the host, and its copy on the device once it is on its way back."""

    number: int
    shape: tuple[int, int]
    host: Tensor
    away: torch.cuda.Event | None  # None: it has arrived
    back: Tensor | None = None
    here: torch.cuda.Event | None = None


@dataclass
class Offloader:
    """A stack of offloaded tensors; pinned buffers are kept from step to step."""

    device: torch.device
    buffers: list[Tensor] = field(default_factory=list)
    waiting: list[Ticket] = field(default_factory=list)
    leaving: Tensor | None = None  # what is being copied now must not be freed before the copy is done
    side: torch.cuda.Stream | None = None
    loose: bool = False  # whether copies began since join()
    owned: Owned = field(default_factory=Owned)

    def clear(self) -> None:
        self.buffers, self.waiting, self.leaving = [], [], None
        self.owned.free()

    def offload(self, x: Tensor) -> Ticket:
        """x [T, n], a view of rows of `stride` elements: whole rows are copied, which is one transfer."""
        rows = x.as_strided((x.shape[0], x.stride(0)), (x.stride(0), 1))
        number = len(self.waiting)
        if self.waiting:
            self._await(self.waiting[-1].away)
        self.leaving, self.loose = x, True
        self.waiting.append(Ticket(number, tuple(x.shape), *self._send(rows, number)))
        return self.waiting[-1]

    def _send(self, rows: Tensor, number: int) -> tuple[Tensor, torch.cuda.Event | None]:
        """(where the rows will be on the host, the end of the copy)."""
        self.side = self.side or torch.cuda.Stream(self.device)
        if number == len(self.buffers) or self.buffers[number].numel() < rows.numel():
            self.buffers[number : number + 1] = [self.owned.keep(page_locked(rows.numel(), rows.dtype))]
        host = self.buffers[number][: rows.numel()].view(rows.shape)
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            host.copy_(rows, non_blocking=True)
            away = torch.cuda.Event()
            away.record()
        return host, away

    def _await(self, event: torch.cuda.Event | None) -> None:
        if event is not None:
            torch.cuda.current_stream().wait_event(event)

    def prefetch(self, ticket: Ticket) -> Tensor:
        """The tensor again, on the device; the one below it on the stack is sent for."""
        if self.leaving is not None:
            self._await(self.waiting[-1].away)
            self.leaving = None
        self._call(ticket)
        if ticket.number:
            self._call(self.waiting[ticket.number - 1])
        self._await(ticket.here)
        self.waiting.pop()
        out, ticket.back = ticket.back, None
        return out[:, : ticket.shape[1]]

    def join(self) -> None:
        """All that is on its way arrives before what is launched from now on: a recording's segment ends here."""
        if self.loose:
            torch.cuda.current_stream().wait_stream(self.side)
            self.leaving, self.loose = None, False
            for ticket in self.waiting:
                ticket.away = ticket.here = None

    def _call(self, ticket: Ticket) -> None:
        """Start the way back, if it has not begun."""
        if ticket.back is not None:
            return
        self.loose = True
        ticket.back = torch.empty(ticket.host.shape, dtype=ticket.host.dtype, device=self.device)
        self._bring(ticket)

    def _bring(self, ticket: Ticket) -> None:
        self.side.wait_stream(torch.cuda.current_stream())  # the memory may still be another tensor's
        with torch.cuda.stream(self.side):
            ticket.back.copy_(ticket.host, non_blocking=True)
            ticket.here = torch.cuda.Event()
            ticket.here.record()
