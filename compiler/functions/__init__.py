"""What stems, heads and residual functions are made of, as `torch.nn` modules."""

from compiler.functions.build import build_function, build_layers, build_map

__all__ = ["build_function", "build_layers", "build_map"]
