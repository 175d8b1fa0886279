"""The package flash-attn as a backend of attention."""

import functools
import importlib.util

import torch

from .attention import AttentionRequest, AttentionResult


class FlashAttn:
    """``flash_attn_func``."""

    name = "flash_attn"

    def refusal(self, request: AttentionRequest) -> str | None:
        """It serves causal and full attention in half precision on a GPU."""
        if not _is_installed():
            return "needs the package flash-attn (pip install flash-attn)"
        if request.query.device.type != "cuda" or request.query.dtype not in (torch.float16, torch.bfloat16):
            return f"needs fp16 or bf16 on a GPU, not {request.query.dtype} on {request.query.device.type}"
        if request.mask.bias is not None or request.mask.key_padding_mask is not None:
            return "knows no bias and no padding"
        if request.mask.block:
            return "knows no blockwise causal attention"
        if request.need_log_sum_exp:
            return "gives no differentiable log-sum-exp"
        return None

    def run(self, request: AttentionRequest) -> AttentionResult:
        """Without log-sum-exp."""
        from flash_attn import flash_attn_func

        output = flash_attn_func(
            request.query,
            request.key,
            request.value,
            dropout_p=request.dropout,
            softmax_scale=request.scale,
            causal=request.mask.causal,
        )
        return output, None


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None
