"""Explicit mutual information maximisation as a solo-learn method."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig
from torch import Tensor

from solo_mim.host import BaseMethod
from solo_mim.losses import (
    ExplicitMIMError,
    ExplicitMIMOptions,
    explicit_mim_terms,
    rewards_collapse,
)
from solo_mim.losses.logdet import settle_deferred
from solo_mim.methods.projecting import Projecting
from solo_mim.options import ProjectorOptions, Size


class ExplicitMIM(Projecting, BaseMethod):
    """Implements the Theorem-1 objective of explicit MIM (https://arxiv.org/abs/2409.04747).

    The estimator is this project's; see `solo_mim.losses.ExplicitMIMOptions`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(ExplicitMIMOptions, ProjectorOptions):
        """`method_kwargs` of explicit MIM: those of the loss and of the projector.

        Attributes:
            proj_output_dim: dimensions of the projected features; at most half the global batch,
                beyond which covariances are too noisy to train on. null is 128, or half the global
                batch where that is less.
        """

        proj_output_dim: Size | None = None  # type: ignore[assignment]

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Adds in place the number of dimensions where none is given."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        if cfg.method_kwargs.get("proj_output_dim") is None:
            devices = cfg.get("devices", 1)  # of a completed recipe: a number or a list
            per_node = devices if isinstance(devices, int) else len(devices)
            processes = max(1, per_node) * cfg.get("num_nodes", 1)
            global_batch = cfg.optimizer.batch_size * processes
            cfg.method_kwargs.proj_output_dim = min(128, max(1, global_batch // 2))
        return cfg

    @property
    def collapse_remedy(self) -> str:
        """What to do where `z` has collapsed, for the warning of the held-out diagnostics."""
        lower = f"Lower method_kwargs.total_noise (now {self.options.total_noise:g})"
        if self.options.reading == "two_view":
            lower += ", or set method_kwargs.reading: infomax"
        return f"{lower}; if that does not help, lower optimizer.lr"

    def on_train_start(self) -> None:
        """Warns where the batch is too small for covariances of this dimension, and of floors that
        reward collapse."""
        super().on_train_start()
        with contextlib.suppress(ExplicitMIMError):  # of a run that was broken off
            settle_deferred()
        o, views = self.options, self.cfg.data.num_large_crops
        if o.reading == "two_view" and rewards_collapse(
            o.total_noise, o.within_noise, o.between_noise, views
        ):
            rank_zero_warn(
                f"method_kwargs: with reading=two_view, total_noise={o.total_noise:g} and "
                f"within_noise={o.within_noise:g} reward dimensional collapse; lower total_noise, "
                "or set reading: infomax"
            )
        dim = self.cfg.method_kwargs.proj_output_dim
        batch_size = self.cfg.optimizer.batch_size * self.trainer.world_size
        if dim > batch_size / 2:
            rank_zero_warn(
                f"method_kwargs.proj_output_dim={dim} is more than half the global batch of "
                f"{batch_size}: covariances this noisy train badly; set it to {batch_size // 2} or "
                "less, or raise optimizer.batch_size"
            )

    def on_train_end(self) -> None:
        """Of the last step too, a determinant that failed on CUDA is an error of this run."""
        super().on_train_end()
        settle_deferred()

    def terms(self, out: dict[str, Any]) -> dict[str, Tensor | None]:
        seed = self.trainer.global_step
        return explicit_mim_terms(out["z"], seed=seed, **self.loss_kwargs)._asdict()
