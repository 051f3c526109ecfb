"""Optimisers and schedules of solo-learn main, for the released generation and for classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR


class LARS(torch.optim.SGD):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888) on torch's SGD.

    Each weight's gradient g becomes `eta |w| / (|g| + weight_decay |w| + eps) * (g + weight_decay
    w)` before the momentum step. solo-learn 1.0.2 wraps an SGD, and under lightning 2 scales the
    gradients of the step before and only then runs the closure. Here the closure runs first.

    Args:
        eta: trust coefficient.
        clip_lr: limits the local rate to the global one (as LARC does), `min(local / lr, 1)`.
        exclude_bias_n_norm: one-dimensional parameters are stepped by SGD without weight decay.
        eps: keeps the ratio finite.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        clip_lr: bool = False,
        exclude_bias_n_norm: bool = False,
        eps: float = 1e-8,
    ):
        if not eta > 0:
            raise ValueError(f"LARS needs eta > 0, not {eta}")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        # In the groups, as main has them: there its LARS finds them in a checkpoint of ours.
        own: dict[str, Any] = {"eta": eta, "clip_lr": clip_lr, "eps": eps}
        own["exclude_bias_n_norm"] = exclude_bias_n_norm
        self.defaults.update(own)
        for group in self.param_groups:
            group.update(own)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Runs the closure with gradients enabled, scales every gradient, takes SGD's step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        weight_decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and (p.ndim != 1 or not group["exclude_bias_n_norm"]):
                    _scale(p, group)
            group["weight_decay"] = 0.0  # in the scaled gradient already
        super().step()
        for group, weight_decay in zip(self.param_groups, weight_decays, strict=True):
            group["weight_decay"] = weight_decay
        return loss


def _scale(p: torch.Tensor, group: dict[str, Any]) -> None:
    """Replaces the gradient of `p` by the layer-wise scaled one, weight decay included."""
    weight_decay = group["weight_decay"]
    p_norm, g_norm = p.norm(), p.grad.norm()  # type: ignore[union-attr]
    local = group["eta"] * p_norm / (g_norm + weight_decay * p_norm + group["eps"])
    if group["clip_lr"]:
        local = (local / group["lr"]).clamp(max=1.0)
    # A zero weight or gradient has no ratio: that parameter takes SGD's step, without weight decay.
    undefined = (p_norm == 0) | (g_norm == 0)
    scaled = local * (p.grad + weight_decay * p)
    p.grad.copy_(torch.where(undefined, p.grad, scaled))  # type: ignore[arg-type,union-attr]


OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "lars": LARS,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class _WarmupCosine(LambdaLR):
    """A LambdaLR that also goes on from the state of main's schedule, which has no lambdas."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = self.state_dict()
        super().load_state_dict({key: state_dict.get(key, own[key]) for key in own})


def warmup_cosine(
    optimizer: torch.optim.Optimizer,
    warmup_steps: float,
    max_steps: float,
    warmup_start_lr: float,
    min_lr: float,
) -> LambdaLR:
    """Linear warm-up from `warmup_start_lr` to each group's rate, then a cosine to `min_lr`."""

    def factor(base: float) -> Callable[[int], float]:
        def at(step: int) -> float:
            if base == 0:
                return 1.0
            if step < warmup_steps:
                lr = warmup_start_lr + step * (base - warmup_start_lr) / max(1.0, warmup_steps - 1)
            else:
                progress = (step - warmup_steps) / max(1.0, max_steps - warmup_steps)
                lr = min_lr + (base - min_lr) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
            return lr / base

        return at

    return _WarmupCosine(optimizer, [factor(group["lr"]) for group in optimizer.param_groups])


def optimisation(
    groups: list[dict[str, Any]], cfg: DictConfig, model: Any, scale: float = 1
) -> Any:
    """Optimiser and schedule as `cfg.optimizer` and `cfg.scheduler` say, for lightning.

    The trainer of the LightningModule `model` is asked for the number of steps. Groups with
    `static_lr` keep their rate; `scale` multiplies every rate but a group's own.
    """
    settings, of_rates = cfg.optimizer, cfg.scheduler
    if settings.exclude_bias_n_norm_wd:
        groups = without_decay_on_bias_and_norm(groups)
    static = {i for i, group in enumerate(groups) if group.pop("static_lr", False)}
    lr, decay = settings.lr * scale, settings.weight_decay
    kwargs: Any = OmegaConf.to_container(settings.kwargs)
    optimizer = OPTIMIZERS[settings.name](groups, lr=lr, weight_decay=decay, **kwargs)
    if of_rates.name == "none":
        return optimizer
    interval = "epoch" if of_rates.name == "step" else of_rates.interval
    if of_rates.name == "step":
        scheduler: LRScheduler = MultiStepLR(optimizer, list(of_rates.lr_decay_steps))
    else:
        per_step = interval == "step"
        steps = model.trainer.estimated_stepping_batches if per_step else cfg.max_epochs
        scheduler = warmup_cosine(
            optimizer,
            warmup_steps=of_rates.warmup_epochs * steps / cfg.max_epochs,
            max_steps=steps,
            warmup_start_lr=of_rates.warmup_start_lr * scale,
            min_lr=of_rates.min_lr * scale,
        )
    if static:
        hold_rates(scheduler, dict.fromkeys(static, lr))
    entry = {"scheduler": scheduler, "interval": interval, "frequency": 1}
    return {"optimizer": optimizer, "lr_scheduler": entry}


def hold_rates(scheduler: LRScheduler, rates: dict[int, float]) -> None:
    """Keeps parameter groups, by index, at their rate (SimSiam's predictor) from the first step on.

    Main binds a partial of the schedule's own method to it. That lands in the state of the
    schedule, which then neither resumes (it recurses) nor loads with weights_only=True, and the
    first step is taken before it holds.
    """
    scheduled = type(scheduler)

    class Held(scheduled):  # type: ignore[misc,valid-type]
        def get_lr(self) -> list[float]:
            return [rates.get(i, rate) for i, rate in enumerate(super().get_lr())]

    scheduler.__class__ = Held
    for i, rate in rates.items():
        scheduler.optimizer.param_groups[i]["lr"] = rate
        scheduler._last_lr[i] = rate


def without_decay_on_bias_and_norm(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Splits each parameter group in two; one-dimensional parameters get weight decay 0."""
    split = []
    for group in groups:
        params = list(group["params"])
        named = {"name": f"{group['name']}_no_decay"} if "name" in group else {}
        split += [
            {**group, "params": [p for p in params if p.ndim > 1]},
            {**group, **named, "params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        ]
    return [group for group in split if group["params"]]
