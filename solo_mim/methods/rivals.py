"""CorInfoMax, MEC, FroSSL, LeJEPA and VISReg as solo-learn methods: the rivals of explicit MIM that
it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from solo_mim.errors import ConfigError
from solo_mim.host import BaseMethod, BaseMomentumMethod
from solo_mim.losses.rivals import (
    CorInfoMaxLoss,
    frossl_loss_func,
    lejepa_loss_func,
    mec_loss_func,
    visreg_loss_func,
)
from solo_mim.methods.projecting import Projecting, projector


class CorInfoMax(Projecting, BaseMethod):
    """Implements CorInfoMax (https://arxiv.org/abs/2209.07999), `solo_mim.losses.CorInfoMaxLoss`.

    method_kwargs:
        proj_hidden_dim (int): number of neurons in the hidden layers of the projector.
        proj_output_dim (int): number of dimensions of the projected features.
        alpha (float): weight of the attraction; default 250, the paper's for CIFAR-10.
        eps (float): ridge of the covariances; default 1e-8.
        forgetting (float): share of the past in the covariances; default 0.01.
        normalisation (str): "l2" (default, the paper's) or "standardise".
    """

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        proj_hidden_dim: int = cfg.method_kwargs.proj_hidden_dim
        proj_output_dim: int = cfg.method_kwargs.proj_output_dim
        alpha: float = cfg.method_kwargs.get("alpha", 250.0)
        eps: float = cfg.method_kwargs.get("eps", 1e-8)
        forgetting: float = cfg.method_kwargs.get("forgetting", 0.01)
        normalisation: str = cfg.method_kwargs.get("normalisation", "l2")
        self.projector = projector(self.features_dim, proj_hidden_dim, proj_output_dim)
        try:
            self.loss = CorInfoMaxLoss(proj_output_dim, alpha, eps, forgetting, normalisation)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"method_kwargs: {error}") from error

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The host's step and the CorInfoMax loss of two views."""
        out = super().training_step(batch, batch_idx)
        return self._logged("corinfomax", self.loss(*out["z"])) + out["loss"]


class FroSSL(Projecting, BaseMethod):
    """Implements FroSSL (https://arxiv.org/abs/2310.02903), `solo_mim.losses.frossl_loss_func`.

    method_kwargs:
        proj_hidden_dim (int): number of neurons in the hidden layers of the projector.
        proj_output_dim (int): number of dimensions of the projected features.
        invariance_weight (float): weight of the invariance; default 1, the paper's.
    """

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.invariance_weight: float = cfg.method_kwargs.get("invariance_weight", 1.0)
        if self.invariance_weight < 0:
            raise ConfigError("method_kwargs.invariance_weight must not be negative")
        proj_hidden_dim: int = cfg.method_kwargs.proj_hidden_dim
        proj_output_dim: int = cfg.method_kwargs.proj_output_dim
        self.projector = projector(self.features_dim, proj_hidden_dim, proj_output_dim)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The host's step and the FroSSL loss over all views."""
        out = super().training_step(batch, batch_idx)
        terms = frossl_loss_func(out["z"], self.invariance_weight)
        return self._logged("frossl", terms) + out["loss"]


class MEC(Projecting, BaseMomentumMethod):
    """Implements MEC (https://arxiv.org/abs/2210.11464), `solo_mim.losses.mec_loss_func`.

    method_kwargs:
        proj_hidden_dim (int): number of neurons in the hidden layers of the projector.
        proj_output_dim (int): number of dimensions of the projected features.
        pred_hidden_dim (int): number of neurons in the hidden layer of the predictor.
        eps (float): distortion; 1 / lambda is N eps / proj_output_dim. Default 64, the paper's
            for 2048 dimensions and batches of 1024.
        warmup_share (float): of the steps, over which 1 / lambda comes down from eight times
            its value; default 0.1, the paper's 10 of 100 epochs.
        order (int): of the Taylor series; default 4.
    """

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        proj_hidden_dim: int = cfg.method_kwargs.proj_hidden_dim
        proj_output_dim: int = cfg.method_kwargs.proj_output_dim
        pred_hidden_dim: int = cfg.method_kwargs.pred_hidden_dim
        self.eps: float = cfg.method_kwargs.get("eps", 64.0)
        self.warmup_share: float = cfg.method_kwargs.get("warmup_share", 0.1)
        self.order: int = cfg.method_kwargs.get("order", 4)
        if not self.eps > 0 or self.order < 1 or not 0 <= self.warmup_share <= 1:
            raise ConfigError(
                "method_kwargs: MEC needs eps above 0, an order of 1 or more, and a warmup_share "
                "from 0 to 1"
            )

        def normalised() -> nn.Sequential:
            layers = projector(self.features_dim, proj_hidden_dim, proj_output_dim)
            return layers.append(nn.BatchNorm1d(proj_output_dim, affine=False))

        self.projector, self.momentum_projector = normalised(), normalised()
        for online, momentum in zip(
            self.projector.parameters(), self.momentum_projector.parameters(), strict=True
        ):
            momentum.data.copy_(online.data)
            momentum.requires_grad = False
        self.predictor = nn.Sequential(
            nn.Linear(proj_output_dim, pred_hidden_dim, bias=False),
            nn.BatchNorm1d(pred_hidden_dim),
            nn.ReLU(),
            nn.Linear(pred_hidden_dim, proj_output_dim),
        )

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parent's parameter groups, the projector's and the predictor's."""
        return [
            *super().learnable_params,
            {"name": "predictor", "params": self.predictor.parameters()},
        ]

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """The parent's pairs and the projectors."""
        return [*super().momentum_pairs, (self.projector, self.momentum_projector)]

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> dict[str, Any]:
        """The parent's outputs and the momentum projector's `z`."""
        out = super().momentum_forward(X)
        return {**out, "z": self.momentum_projector(out["feats"])}

    def inverse_lambda(self) -> float:
        """1 / lambda of this step."""
        samples = self.cfg.optimizer.batch_size * self.trainer.world_size
        final = samples * self.eps / self.cfg.method_kwargs.proj_output_dim
        steps = self.warmup_share * self.trainer.estimated_stepping_batches
        left = 1 - self.trainer.global_step / steps if steps else 0.0
        return final * (1 + 7 * max(0.0, left))

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The host's step and the MEC loss of two views."""
        out = super().training_step(batch, batch_idx)
        predictions = [self.predictor(z) for z in out["z"]]
        loss = mec_loss_func(predictions, out["momentum_z"], self.inverse_lambda(), self.order)
        self.log("train_mec_loss", loss, on_epoch=True, sync_dist=True)
        return loss + out["loss"]


class LeJEPA(Projecting, BaseMethod):
    """Implements LeJEPA (https://arxiv.org/abs/2511.08544), `solo_mim.losses.lejepa_loss_func`.

    method_kwargs:
        proj_hidden_dim (int): number of neurons in the hidden layers of the projector.
        proj_output_dim (int): number of dimensions of the projected features.
        lamb (float): weight of SIGReg, from 0 to 1; default 0.05, the paper's.
        num_slices (int): random directions of each step; default 1024, the paper's.
        t_max (float): end of the integral of the Epps-Pulley statistic; default 5, the paper's.
        n_points (int): of that integral, odd; default 17, the paper's.
    """

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        lamb: float = cfg.method_kwargs.get("lamb", 0.05)
        num_slices: int = cfg.method_kwargs.get("num_slices", 1024)
        t_max: float = cfg.method_kwargs.get("t_max", 5.0)
        n_points: int = cfg.method_kwargs.get("n_points", 17)
        if (
            not 0 <= lamb <= 1
            or num_slices < 1
            or not t_max > 0
            or n_points < 3
            or not n_points % 2
        ):
            raise ConfigError(
                "method_kwargs: LeJEPA needs lamb from 0 to 1, num_slices of 1 or more, t_max "
                "above 0, and n_points odd and 3 or more"
            )
        self.loss_options: dict[str, Any] = {
            "lamb": lamb,
            "num_slices": num_slices,
            "t_max": t_max,
            "n_points": n_points,
        }
        self.projector = projector(
            self.features_dim, cfg.method_kwargs.proj_hidden_dim, cfg.method_kwargs.proj_output_dim
        )

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The host's step and the LeJEPA loss over all views, along the directions of this step."""
        out = super().training_step(batch, batch_idx)
        terms = lejepa_loss_func(out["z"], **self.loss_options, seed=self.trainer.global_step)
        return self._logged("lejepa", terms) + out["loss"]


class VISReg(Projecting, BaseMethod):
    """Implements VISReg (https://arxiv.org/abs/2606.02572), `solo_mim.losses.visreg_loss_func`.

    method_kwargs:
        proj_hidden_dim (int): number of neurons in the hidden layers of the projector.
        proj_output_dim (int): number of dimensions of the projected features.
        lamb (float): weight of the regularisation, from 0 to 1; default 0.9, the authors' for
            ImageNet.
        num_projections (int): random directions of each step; default 4096, the authors'.
    """

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        lamb: float = cfg.method_kwargs.get("lamb", 0.9)
        num_projections: int = cfg.method_kwargs.get("num_projections", 4096)
        if not 0 <= lamb <= 1 or num_projections < 1:
            raise ConfigError(
                "method_kwargs: VISReg needs lamb from 0 to 1 and num_projections of 1 or more"
            )
        self.loss_options: dict[str, Any] = {"lamb": lamb, "num_projections": num_projections}
        self.projector = projector(
            self.features_dim, cfg.method_kwargs.proj_hidden_dim, cfg.method_kwargs.proj_output_dim
        )

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The host's step and the VISReg loss over all views, along the directions of this step."""
        out = super().training_step(batch, batch_idx)
        terms = visreg_loss_func(out["z"], **self.loss_options, seed=self.trainer.global_step)
        return self._logged("visreg", terms) + out["loss"]
