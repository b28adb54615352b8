"""The cross-entropy after an LM's head, computed on a few rows at a time to save the memory of the logits."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

ROWS = 128  # small enough that the allocator reuses the memory, large enough for fast matrix products


def lm_head(lm: Any) -> Callable[[Float[Tensor, "rows lm_dim"]], Float[Tensor, "rows vocabulary"]]:
    """The head of a Hugging Face causal LM: output embeddings, then scale and soft cap if it has them."""
    config, output = lm.config, lm.get_output_embeddings()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def logits_of(hidden: Tensor) -> Tensor:
        logits: Tensor = output(hidden)
        if scale != 1.0:
            logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return logits_of


def head_loss(
    lm: Any, hidden: Float[Tensor, "rows lm_dim"], targets: Int[Tensor, " rows"], *, rows: int = ROWS
) -> Float[Tensor, ""]:
    """Summed negative log-likelihood of `targets` after the LM's head.

    The forward pass also computes the gradients, chunk by chunk, and frees the logits of each chunk.

    Args:
        lm: A Hugging Face causal LM.
        hidden: Output of its decoder at the positions that predict a target.
        targets: Token ids.
        rows: Rows of a chunk.
    """
    weights = [p for p in lm.get_output_embeddings().parameters() if p.requires_grad]
    loss: Tensor = _HeadLoss.apply(hidden, targets, lm_head(lm), rows, *weights)  # type: ignore[no-untyped-call]
    return loss


def logits_loss(logits: Float[Tensor, "rows vocabulary"], targets: Int[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Summed negative log-likelihood of `targets`."""
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], rows: int, *weights: Tensor
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        slopes: list[Tensor] = []
        sums = [torch.zeros_like(weight) for weight in weights]
        learns = any(ctx.needs_input_grad)
        for part, labels in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
            with torch.set_grad_enabled(learns):
                leaf = part.detach().requires_grad_(learns)
                logits = head(leaf).float()
            likelihoods = logits.detach().log_softmax(dim=-1)
            at = (torch.arange(len(labels), device=labels.device), labels)
            total -= likelihoods[at].sum()
            if learns:
                slope = likelihoods.exp_()  # gradient of the loss by the logits: probabilities minus one-hot targets
                slope[at] -= 1
                by_hidden, *by_weights = torch.autograd.grad(logits, [leaf, *weights], slope)
                slopes.append(by_hidden)
                for kept, by_weight in zip(sums, by_weights, strict=True):
                    kept += by_weight
        if slopes:
            ctx.save_for_backward(torch.cat(slopes), *sums)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope, *sums = (saved * grads[0].to(saved.dtype) for saved in ctx.saved_tensors)
        return slope, None, None, None, *sums
