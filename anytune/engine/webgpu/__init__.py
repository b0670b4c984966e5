"""The WebGPU engine: any GPU with a Vulkan, Metal or DX12 driver, through wgpu-py and hand-written WGSL.

Weights stay the file's bytes on the device and are dequantized inside the products' tile loads. kernels/ holds the
WGSL as Python templates, each named after the operation of base.py that it is; adapters.py, device.py and failures.py
are the only files that import wgpu. Import WebGpuEngine from .engine.
"""
