"""One GPU through wgpu: limits, buffers, pipelines, submits and transfers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.memory import parse_bytes

from .failures import DeviceError, failures
from .kernel import Kernel

ALIGN = 256  # bytes: where a binding may begin, on every device
WORKGROUPS = 65535  # of a dispatch in one dimension, on every device
WORDS = 64  # uint32 of parameters per dispatch: one aligned slot
SLACK = 16  # bytes behind a buffer: unaligned words are read in pairs
PIECE = 32 << 20  # bytes written before staging memory is freed, or read at a time
CACHED_GROUPS = 1 << 16


class Buffer:
    """Device memory of `size` bytes. `serial` is never used twice; owned: nobody else will get this memory while it
    lives."""

    __slots__ = ("device", "raw", "size", "serial", "owned", "__weakref__")

    def __init__(self, device: Device, raw, size: int, serial: int, owned: bool):
        self.device, self.raw, self.size, self.serial, self.owned = device, raw, size, serial, owned

    def __del__(self) -> None:
        self.device._drop(self)


class Device:
    """An open adapter.

    max_binding: bytes of one binding at most (None: ANYTUNE_MAX_BINDING, else what the device allows). trusted: shader
    modules without bounds checks (None: yes, unless ANYTUNE_WEBGPU_CHECKED is set).
    """

    def __init__(self, adapter, max_binding: int | None = None, trusted: bool | None = None):
        import wgpu

        self.wgpu, self.info = wgpu, dict(adapter.info)
        limits = adapter.limits
        asked = {name: limits[name] for name in ("max-buffer-size", "max-storage-buffer-binding-size")}
        with failures():
            try:
                self.raw = adapter.request_device_sync(required_limits=asked)
            except RuntimeError as error:
                raise UserError(f"the device {self.name} cannot be opened: {error}") from None
        self.queue = self.raw.queue
        if max_binding is None and os.environ.get("ANYTUNE_MAX_BINDING"):
            max_binding = parse_bytes(os.environ["ANYTUNE_MAX_BINDING"])
        allowed = int(limits["max-storage-buffer-binding-size"])
        self.max_binding = min(allowed, max_binding or allowed) // ALIGN * ALIGN
        if self.max_binding < 4096:
            raise UserError(
                f"bindings of {self.max_binding} bytes are too small: at least 4096 are needed "
                "(--max-binding, ANYTUNE_MAX_BINDING)"
            )
        self.max_buffer = int(limits["max-buffer-size"]) - SLACK
        self.trusted = trusted if trusted is not None else not os.environ.get("ANYTUNE_WEBGPU_CHECKED")
        self.live = self.peak = self._serials = self._staged = 0
        self._pipelines: dict[str, tuple] = {}
        self._groups: dict[tuple, Any] = {}
        self._dropped: list = []

    @property
    def name(self) -> str:
        return self.info.get("device") or self.info.get("description") or "unnamed"

    @property
    def software(self) -> bool:
        return self.info.get("adapter_type") == "CPU"

    # ---- memory
    def buffer(self, size: int, owned: bool = True) -> Buffer:
        """New memory, zeroed. Raises DeviceError (memory) if the device has no more, or allows none that large."""
        size = -(-max(size, 4) // 4) * 4
        if size > self.max_buffer:
            raise DeviceError(
                "memory",
                f"a buffer of {size >> 20} MiB exceeds the {self.max_buffer >> 20} MiB that {self.name} allows per "
                "buffer",
            )
        usage = self.wgpu.BufferUsage
        with failures():
            raw = self.raw.create_buffer(size=size + SLACK, usage=usage.STORAGE | usage.COPY_DST | usage.COPY_SRC)
        self.live += size
        self.peak = max(self.peak, self.live)
        self._serials += 1
        return Buffer(self, raw, size, self._serials, owned)

    def uniforms(self, slots: int):
        """A buffer for `slots` sets of parameters."""
        usage = self.wgpu.BufferUsage
        with failures():
            return self.raw.create_buffer(size=slots * WORDS * 4, usage=usage.UNIFORM | usage.COPY_DST)

    def _drop(self, buffer: Buffer) -> None:
        self.live -= buffer.size
        self._dropped.append(buffer.raw)

    def free_dropped(self) -> None:
        """Free the memory of dropped buffers. Every command that names them must have been submitted."""
        dropped, self._dropped = self._dropped, []
        if not dropped:
            return
        for raw in dropped:
            raw.destroy()
        if len(self._groups) > CACHED_GROUPS:
            self._groups.clear()
        self.raw._poll()

    def forget_groups(self) -> None:
        self._groups.clear()

    def write(self, raw, at: int, values: np.ndarray) -> None:
        """Bytes of `values` (a multiple of four) to byte `at` of a raw buffer, in the order of submits."""
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        with failures():
            for low in range(0, flat.size, PIECE):
                piece = flat[low : low + PIECE]
                self.queue.write_buffer(raw, at + low, piece)
                self._staged += piece.size
                if self._staged >= PIECE:
                    self.queue.submit([])
                    self.raw._poll_wait()
                    self._staged = 0

    def read(self, raw, at: int, size: int) -> np.ndarray:
        """uint8 [size] of a raw buffer, once the device is done, through little staging memory. size: a multiple of
        four."""
        out = np.empty(size, np.uint8)
        with failures():
            for low in range(0, size, PIECE):
                piece = min(PIECE, size - low)
                out[low : low + piece] = np.frombuffer(self.queue.read_buffer(raw, at + low, piece), np.uint8)
        return out

    # ---- kernels
    def pipeline(self, kernel: Kernel, all_writable: bool = False) -> tuple:
        """(the pipeline's handle, its bind group layout, objects to keep) of a kernel."""
        text = kernel.text(all_writable)
        known = self._pipelines.get(text)
        if known is None:
            known = self._pipelines[text] = self._compile(kernel, text, all_writable)
        return known

    def _compile(self, kernel: Kernel, text: str, all_writable: bool) -> tuple:
        entries = [{"binding": 0, "visibility": self.wgpu.ShaderStage.COMPUTE, "buffer": {"type": "uniform"}}]
        for number, (_, writable, _) in enumerate(kernel.arrays, 1):
            kind = "storage" if writable or all_writable else "read-only-storage"
            entries.append({"binding": number, "visibility": self.wgpu.ShaderStage.COMPUTE, "buffer": {"type": kind}})
        with failures():
            layout = self.raw.create_bind_group_layout(entries=entries)
            module = self._module(text)
            whole = self.raw.create_pipeline_layout(bind_group_layouts=[layout])
            made = self.raw.create_compute_pipeline(layout=whole, compute={"module": module, "entry_point": "main"})
        return made._internal, layout, (kernel.name, made, module, whole)

    def _module(self, text: str):
        if not self.trusted:
            return self.raw.create_shader_module(code=text)
        from wgpu.backends.wgpu_native import _api

        source = _api.new_struct_p("WGPUShaderSourceWGSL *", code=_api.to_c_string_view(text))
        source[0].chain.next = _api.ffi.NULL
        source[0].chain.sType = _api.lib.WGPUSType_ShaderSourceWGSL
        described = _api.new_struct_p(
            "WGPUShaderModuleDescriptor *",
            label=_api.to_c_string_view(""),
            nextInChain=_api.ffi.cast("WGPUChainedStruct *", source),
        )
        made = _api.libf.wgpuDeviceCreateShaderModuleTrusted(self.raw._internal, described, 0)
        return _api.GPUShaderModule("", made, self.raw)

    def bind_group(self, layout, key: tuple, uniforms, slot: int, bindings: list) -> tuple:
        """(its handle, the object). bindings: (buffer, first byte, bytes) each; key names all of it."""
        known = self._groups.get(key)
        if known is None:
            entries = [{"binding": 0, "resource": {"buffer": uniforms, "offset": slot * WORDS * 4, "size": WORDS * 4}}]
            entries += [
                {"binding": n, "resource": {"buffer": b.raw, "offset": at, "size": size}}
                for n, (b, at, size) in enumerate(bindings, 1)
            ]
            with failures():
                made = self.raw.create_bind_group(layout=layout, entries=entries)
            known = self._groups[key] = (made._internal, made)
        return known

    # ---- submits
    def submit(self, commands: list) -> None:
        """Encode (pipeline, group, x, y, z, …) dispatches as one pass, and submit it."""
        from wgpu.backends.wgpu_native._api import ffi, lib

        with failures():
            encoder = self.raw.create_command_encoder()
            work = encoder.begin_compute_pass()
            handle, last = work._internal, None
            pipeline, group = lib.wgpuComputePassEncoderSetPipeline, lib.wgpuComputePassEncoderSetBindGroup
            dispatch = lib.wgpuComputePassEncoderDispatchWorkgroups
            for command in commands:  # straight to the library: the wrapped calls cost several times as much
                if command[0] != last:
                    last = command[0]
                    pipeline(handle, last)
                group(handle, 0, command[1], 0, ffi.NULL)
                dispatch(handle, command[2], command[3], command[4])
            work.end()
            self.queue.submit([encoder.finish()])

    def wait(self) -> None:
        """Until all that was submitted is done."""
        with failures():
            self.raw._poll_wait()

    def staging_buffer(self):
        """A small buffer that numbers are read back through."""
        usage = self.wgpu.BufferUsage
        with failures():
            return self.raw.create_buffer(size=16, usage=usage.MAP_READ | usage.COPY_DST)

    def post(self, source: Buffer, at: int, size: int, staging_buffer) -> None:
        with failures():
            encoder = self.raw.create_command_encoder()
            encoder.copy_buffer_to_buffer(source.raw, at, staging_buffer, 0, size)
            self.queue.submit([encoder.finish()])

    def read_staging_buffer(self, staging_buffer, size: int) -> np.ndarray:
        """float32 [size / 4], once the device got there."""
        with failures():
            try:
                staging_buffer.map_async("READ_NOSYNC").sync_wait()
                values = np.frombuffer(staging_buffer.read_mapped(0, size), np.float32).copy()
                staging_buffer.unmap()
            except RuntimeError as error:  # a buffer of a lost device cannot be mapped
                raise DeviceError("lost", str(error)) from None
        return values
