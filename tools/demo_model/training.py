"""The training loop: random crops of the stream, AdamW, warm-up, plateau, linear decay to zero."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from demo_model.architecture import add_dropout
from demo_model.data import Streams, windows
from demo_model.tokenizer import CONTEXT

WARMUP = 0.02  # shares of all steps
DECAY = 0.4
REPORTS = 20


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train."""

    tokens: int
    batch: int = 64  # sequences of CONTEXT tokens
    learning_rate: float = 3e-3
    weight_decay: float = 0.5
    dropout: float = 0.15
    seed: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps; at least one."""
        return max(1, self.tokens // (self.batch * CONTEXT))

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        left = (self.steps - step) / self.steps
        return self.learning_rate * min(1.0, (step + 1) / (WARMUP * self.steps), left / DECAY)


def train(
    model: LlamaForCausalLM,
    streams: Streams,
    schedule: Schedule,
    device: torch.device,
    say: Callable[[str], None],
    teacher: LlamaForCausalLM | None = None,
) -> dict[str, torch.Tensor]:
    """Train `model` and return its weights where the validation loss was least.

    With a `teacher`, the loss is the divergence from the teacher's distribution instead of the cross entropy
    with the text: a draft model earns its keep by agreeing with its target, not by being right.
    """
    model.to(device).train()
    add_dropout(model, schedule.dropout)
    optimizer = torch.optim.AdamW(_groups(model, schedule.weight_decay), betas=(0.9, 0.95), fused=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    loss_of = torch.compile(_loss, dynamic=False) if device.type == "cuda" else _loss

    tokens = torch.from_numpy(streams.train.astype("int32")).to(device)
    validation = windows(streams.validation, CONTEXT).to(device)
    generator = torch.Generator().manual_seed(schedule.seed)
    offsets = torch.arange(CONTEXT + 1, device=device)
    best, best_loss = {}, math.inf
    began = time.monotonic()
    for step in range(schedule.steps):
        starts = torch.randint(len(tokens) - CONTEXT, (schedule.batch, 1), generator=generator).to(device)
        crops = tokens[starts + offsets].long()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        with autocast:
            loss = loss_of(model, teacher, crops)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) * REPORTS // schedule.steps > step * REPORTS // schedule.steps:
            measured = validation_loss(model, validation, autocast)
            if measured < best_loss:
                best_loss = measured
                best = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
            done = (step + 1) * schedule.batch * CONTEXT
            say(
                f"step {step + 1}/{schedule.steps}  loss {loss.item():.3f}  validation perplexity"
                f" {math.exp(measured):.3f}  {done / (time.monotonic() - began):,.0f} tokens/s"
            )
    return best


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, validation: torch.Tensor, autocast: torch.autocast) -> float:
    """Mean cross entropy over int64 windows [count, length], in nats a token."""
    model.eval()
    total = 0.0
    for window in validation.split(8):
        with autocast:
            logits = model(window, use_cache=False).logits
        total += F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), window[:, 1:].flatten(), reduction="sum"
        ).item()
    model.train()
    return total / (validation.numel() - len(validation))


def _loss(model: LlamaForCausalLM, teacher: LlamaForCausalLM | None, crops_BS: torch.Tensor) -> torch.Tensor:
    """Mean loss in nats a token: cross entropy, or with a teacher the divergence from its distribution."""
    inputs, following = crops_BS[:, :-1], crops_BS[:, 1:].flatten()
    logits = model(inputs, use_cache=False).logits.flatten(0, 1).float()
    if teacher is None:
        return F.cross_entropy(logits, following)
    with torch.no_grad():
        target = teacher(inputs, use_cache=False).logits.flatten(0, 1).float()
    return F.kl_div(
        F.log_softmax(logits, -1), F.log_softmax(target, -1), reduction="batchmean", log_target=True
    )


def _groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay, norms do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
