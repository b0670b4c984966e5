"""The backend on this package's own engines: any adapter at any time, on whatever device the model was loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from anytune.errors import check_numbers
from anytune.model.lora import check_adapted
from anytune.serve.backend import Mix, Piece

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model
    from anytune.model.decoder import Decoder


class EngineBackend:
    """One decoder's caches for all slots, and for each mix the weights with its pairs beside them, arranged when it is
    first asked for."""

    def __init__(self, model: Model, slots: int, context: int):
        self.model, self.slots = model, slots
        self.name = model.engine.name
        self.decoder = model.decoder(batch=slots, context=context)
        self.context, self.lengths = self.decoder.context, self.decoder.lengths
        self.adapters: dict[str, Adapter] = {}
        self.decoders: dict[Mix, Decoder] = {(): self.decoder}  # all of the same slots

    def feed(self, pieces: Sequence[Piece]) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for mix in dict.fromkeys(piece.mix for piece in pieces):
            tokens: list[Sequence[int]] = [[] for _ in range(self.slots)]
            wanted = []
            for piece in pieces:
                if piece.mix == mix:
                    tokens[piece.slot] = piece.ids
                    wanted += [piece.slot] if piece.wanted else []
            rows = self._with(mix).feed(tokens)
            found |= {slot: rows[slot] for slot in wanted}
        return found

    def truncate(self, slot: int, length: int) -> None:
        # a recurrent state is computed again from the start: by the scheduler, a piece at a time, between answers
        whole = self.decoder.rewinds or length >= self.lengths[slot]
        self.decoder.truncate(slot, length if whole else 0)

    def add(self, digest: str, adapter: Adapter) -> None:
        adapter.check(self.model.gguf)
        check_adapted(adapter)
        self.adapters[digest] = adapter

    def remove(self, digest: str) -> None:
        self.adapters.pop(digest, None)
        self.decoders = {mix: held for mix, held in self.decoders.items() if digest not in dict(mix)}

    def embed(self, ids: Sequence[int], mix: Mix, slot: int) -> np.ndarray:
        from anytune.likelihood.windows import Forward

        forward = Forward(self.model, len(ids), self._mixed(mix))
        hidden = self.model.engine.host(forward.hidden([list(ids)]))
        check_numbers(hidden, "hidden states")
        return hidden.sum(axis=0)

    def close(self) -> None:
        self.model.close()

    def _with(self, mix: Mix) -> Decoder:
        if mix not in self.decoders:
            self.decoders[mix] = self.decoder.beside(self._mixed(mix))
        return self.decoders[mix]

    def _mixed(self, mix: Mix) -> Adapter | None:
        if not mix:
            return None
        from anytune.export.adapters import combine

        return combine([(replace(self.adapters[digest], chat_template=None), scale) for digest, scale in mix])
