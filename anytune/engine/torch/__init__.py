"""The torch engine: CUDA, ROCm, XPU, MPS and CPU through PyTorch's arrays, products, graphs and collectives.

No autograd and no nn.Module. Where Triton runs, kernels/ holds the fused operations; plain.py and its neighbours are
their twins for every other device, and their reference. Import TorchEngine from .engine.
"""
