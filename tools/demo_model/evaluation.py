"""The figures of the model cards: bf16 weights, executed in float32 on the CPU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from demo_model.architecture import END_ID, END_OF_TEXT_ID


@torch.no_grad()
def window_logits(model: LlamaForCausalLM, windows_NS: torch.Tensor) -> torch.Tensor:
    """Float32 logits [windows, positions, vocabulary] of int64 token windows."""
    return torch.cat([model(window, use_cache=False).logits for window in windows_NS.split(4)])


def perplexity(logits_NSV: torch.Tensor, windows_NS: torch.Tensor) -> float:
    """exp of the mean cross entropy over all tokens but the first of each window."""
    predicted = logits_NSV[:, :-1].flatten(0, 1)
    return math.exp(F.cross_entropy(predicted, windows_NS[:, 1:].flatten()).item())


def agreement(logits_NSV: torch.Tensor, other_NSV: torch.Tensor) -> float:
    """The share of positions at which both models' likeliest next token is the same."""
    return (logits_NSV.argmax(-1) == other_NSV.argmax(-1)).float().mean().item()


@torch.no_grad()
def continuation(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, new_tokens: int) -> str:
    """The greedy continuation of `prompt`, without the special token that may end it."""
    encoded = torch.tensor([tokenizer.encode(prompt).ids])
    output = model.generate(
        encoded,
        attention_mask=torch.ones_like(encoded),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=[END_OF_TEXT_ID, END_ID],
        pad_token_id=END_OF_TEXT_ID,
    )
    return str(tokenizer.decode(output[0, encoded.shape[1] :].tolist()))
