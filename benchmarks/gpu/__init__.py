"""CUDA, checked and measured: `python -m benchmarks.gpu`."""
