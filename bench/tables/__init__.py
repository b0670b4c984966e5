"""The docs' tables, one function each, by subject: the data of bench/results/NAME.json -> lines of Markdown."""

from __future__ import annotations

from collections.abc import Callable

from tables import cpu, gpu, hardware, platforms, quality, quantization, servers

TABLES: dict[str, Callable[[dict], list[str]]] = {
    f.__name__: f
    for f in (
        cpu.train_cpu,
        cpu.train_cpu_bf16,
        cpu.memory,
        cpu.first_step,
        cpu.decode,
        cpu.estimate,
        gpu.train_gpu,
        gpu.train_gpu_peers,
        gpu.decode_gpu,
        gpu.full_gpu,
        gpu.delta_gpu,
        gpu.moe_gpu,
        gpu.two_gpus,
        gpu.train_webgpu,
        gpu.loss_webgpu,
        quality.style,
        quality.quality,
        quality.parity,
        quality.real_models,
        quantization.quantize,
        quantization.search,
        quantization.lowering,
        quantization.adapt_rounding,
        quantization.nf4,
        servers.studio,
        servers.serve,
        hardware.hardware_engine,
        hardware.fpga_plan,
        hardware.fpga_cores,
        platforms.fits,
        platforms.aarch64,
        platforms.onefile,
    )
}
SOURCES = {"train_gpu_peers": "train_gpu"}  # short forms of other tables, without their notes
