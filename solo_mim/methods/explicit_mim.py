"""Explicit mutual information maximisation as a solo-learn method."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig
from torch import Tensor

from solo_mim.errors import ConfigError, nearest
from solo_mim.host import BaseMethod
from solo_mim.losses import (
    ExplicitMIMError,
    ExplicitMIMOptions,
    explicit_mim_terms,
    rewards_collapse,
)
from solo_mim.losses.logdet import settle_deferred
from solo_mim.methods.projecting import Projecting, projector

# The loss's options, which `method_kwargs` sets.
DEFAULTS: dict[str, Any] = asdict(ExplicitMIMOptions())


class ExplicitMIM(Projecting, BaseMethod):
    """Implements the Theorem-1 objective of explicit MIM (https://arxiv.org/abs/2409.04747).

    The estimator is this project's; see `solo_mim.losses.ExplicitMIMOptions`.

    method_kwargs:
        proj_hidden_dim (int): number of neurons in the hidden layers of the projector.
        proj_output_dim (int): number of dimensions of the projected features; should be at most
            half the global batch size, beyond which the covariances are too noisy to train on.
            None (default) is 128, or half the global batch where that is less.
        reading (str): "infomax" (default) or "two_view".
        within (str): structure of the within-image covariance, "full", "diagonal", "isotropic" or
            "linear".
        within_noise (float): power of the noise channel in the within-image term.
        total_noise (float): floor of the total term, in (0, within_noise].
        between_noise (float): floor of the between term, "two_view" only.
        normalisation (str): "standardise" (over all views) or "l2" (per sample).
        gaussianity (float): weight of the term that makes the embeddings Gaussian; 0 is off.
    """

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)

        self.loss_kwargs: dict[str, Any] = {key: cfg.method_kwargs[key] for key in DEFAULTS}

        proj_hidden_dim: int = cfg.method_kwargs.proj_hidden_dim
        proj_output_dim: int = cfg.method_kwargs.proj_output_dim
        self.projector = projector(self.features_dim, proj_hidden_dim, proj_output_dim)

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Adds method specific default values/checks for config.

        Args:
            cfg: the run's configuration.

        Returns:
            The same object, with defaults filled in.

        Raises:
            ConfigError: a required key is missing or a value is impossible; names the key.
        """
        cfg = super().add_and_assert_specific_cfg(cfg)
        kwargs = cfg.method_kwargs
        if kwargs.get("proj_hidden_dim") is None:
            raise ConfigError("method=explicit_mim needs method_kwargs.proj_hidden_dim")
        if kwargs.get("proj_output_dim") is None:
            global_batch = cfg.optimizer.batch_size * _processes(cfg)
            kwargs.proj_output_dim = min(128, max(1, global_batch // 2))
        options = (*DEFAULTS, "double_precision")  # which only warns
        known = ("proj_hidden_dim", "proj_output_dim", *options)
        for key in kwargs:
            if key not in known:
                raise ConfigError(f"unknown key 'method_kwargs.{key}'{nearest(str(key), known)}")
        given = {key: kwargs.pop(key) for key in options if key in kwargs}
        try:
            with warnings.catch_warnings(record=True) as renamed:
                warnings.simplefilter("always")
                kwargs.update(asdict(ExplicitMIMOptions.named(given)))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"method_kwargs: {error}") from error
        for warning in renamed:
            rank_zero_warn(f"method_kwargs: {warning.message}")
        return cfg

    @property
    def collapse_remedy(self) -> str:
        """What to do where `z` has collapsed, for the warning of the held-out diagnostics."""
        lower = f"Lower method_kwargs.total_noise (now {self.loss_kwargs['total_noise']:g})"
        if self.loss_kwargs["reading"] == "two_view":
            lower += ", or set method_kwargs.reading: infomax"
        return f"{lower}; if that does not help, lower optimizer.lr"

    def on_train_start(self) -> None:
        """Warns where the batch is too small for covariances of this dimension, and of floors that
        reward collapse."""
        super().on_train_start()
        with contextlib.suppress(ExplicitMIMError):  # of a run that was broken off
            settle_deferred()
        kwargs = self.loss_kwargs
        floors = kwargs["total_noise"], kwargs["within_noise"], kwargs["between_noise"]
        if kwargs["reading"] == "two_view" and rewards_collapse(
            *floors, self.cfg.data.num_large_crops
        ):
            rank_zero_warn(
                f"method_kwargs: with reading=two_view, total_noise={floors[0]:g} and "
                f"within_noise={floors[1]:g} reward dimensional collapse; lower total_noise, or "
                "set reading: infomax"
            )
        dim: int = self.cfg.method_kwargs.proj_output_dim
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

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The host's step (online probe, online kNN) and the explicit MIM loss over all views.

        Args:
            batch: [indexes, [X], targets], [X] a list of one image batch for each view.
            batch_idx: index of the batch.

        Returns:
            Sum of explicit MIM loss and probe loss.
        """
        out = super().training_step(batch, batch_idx)
        terms = explicit_mim_terms(out["z"], seed=self.trainer.global_step, **self.loss_kwargs)
        return self._logged("explicit_mim", terms) + out["loss"]


def _processes(cfg: DictConfig) -> int:
    """Among which a batch is shared, of a completed configuration: a number or a list."""
    devices = cfg.get("devices", 1)
    count = devices if isinstance(devices, int) else len(devices)
    return max(1, count) * cfg.get("num_nodes", 1)
