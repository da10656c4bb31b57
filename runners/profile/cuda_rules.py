"""What a GPU would do otherwise than the CPU, where a training step is run on tensors that hold
nothing: which functions autocast leaves in float32, and what kernels take beside their results.

The sizes are those of PyTorch's CUDA sources: the workspace of cuBLAS (`CUDABlas`,
`CublasHandlePool.cpp`), and the float32 accumulator of FlashAttention's backward pass
(`flash_api.cpp`, `mha_bwd`), of queries rounded up to 128 and heads to 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from runners.profile.ledger import Ledger

CUBLAS_WORKSPACE = 2 * 32 * 2**20
"""On Hopper, one for the thread of the forward pass and one for that of the backward pass."""
EARLIER_WORKSPACE = 2 * 8 * 2**20
"""The same on earlier GPUs."""
BLOCK = 512
"""Bytes, whose multiples the allocator gives."""
IN_FLOAT32 = {
    F.layer_norm,
    F.group_norm,
    F.softmax,
    F.log_softmax,
    F.softplus,
    F.cross_entropy,
    F.normalize,
    torch.layer_norm,
    torch.group_norm,
    torch.softmax,
    torch.log_softmax,
    torch.exp,
    torch.sum,
    torch.pow,
    torch.rsqrt,
    torch.norm,
    Tensor.softmax,
    Tensor.log_softmax,
    Tensor.exp,
    Tensor.sum,
    Tensor.pow,
    Tensor.rsqrt,
    Tensor.norm,
}
"""Of the functions that CUDA's autocast runs in float32, those that the CPU's does not."""
HALF = (torch.float16, torch.bfloat16)


class AutocastAsOnCuda(TorchFunctionMode):
    """Within this mode CPU autocast gives functions the dtypes that CUDA's would give them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function, with its arguments in float32 where CUDA has them so."""
        if func is Tensor.backward:  # in which this mode is off, and functions are replayed
            with self:
                _differentiate(args[0])
            return None
        kwargs = dict(kwargs or {})
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_float, args), tree_map(_float, kwargs)
        return func(*args, **kwargs)


def _differentiate(loss: Tensor) -> None:
    """What `loss.backward()` comes to."""
    one = torch.ones_like(loss)
    _engine_run_backward(
        (loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **rest: Any,
) -> Tensor:
    """Without dropout, for which the CPU keeps all scores: a fused kernel draws it again."""
    result: Tensor = F.scaled_dot_product_attention(
        query, key, value, attn_mask, 0.0, is_causal, **rest
    )
    return result


def _dropout(value: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """By the kernel that keeps a mask of one byte for each element."""
    if not training or p == 0:
        return value
    kept: Tensor = torch.native_dropout(value, p, True)[0]
    return kept


def _float(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in HALF
    return value.float() if is_half else value


class CudaLedger(Ledger):  # type: ignore[no-untyped-call]
    """A ledger of steps on the CPU that counts what kernels of a GPU would take for themselves."""

    def size_of(self, storage: torch.UntypedStorage) -> int:
        """Bytes of the blocks that the allocator gives for a storage."""
        return _up(storage.nbytes(), BLOCK)

    def hidden(self, func: Any, args: Any) -> int:
        """The workspace of cuBLAS, and that of an operation."""
        taken = WORKSPACES.get(func)
        return CUBLAS_WORKSPACE + (taken(*args) if taken else 0)


def _flash_backward(gradient: Tensor, query: Tensor, *rest: Any) -> int:
    """A query (B, H, S, D): its gradient in float32, and a sum for each of its rows."""
    batch, heads, length, width = query.shape
    rows = batch * heads * _up(length, 128)
    return 4 * rows * (_up(width, 32 if width <= 128 else 64) + 1)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


WORKSPACES: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _flash_backward
}
