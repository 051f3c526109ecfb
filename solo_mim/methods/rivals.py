"""CorInfoMax, MEC, FroSSL, LeJEPA and VISReg as solo-learn methods: the rivals of explicit MIM that
it lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from solo_mim.host import BaseMethod, BaseMomentumMethod
from solo_mim.losses.rivals import (
    CorInfoMaxLoss,
    frossl_loss_func,
    lejepa_loss_func,
    mec_loss_func,
    visreg_loss_func,
)
from solo_mim.methods.projecting import Projecting
from solo_mim.options import Positive, ProjectorOptions, Share, Size, Weight


class CorInfoMax(Projecting, BaseMethod):
    """Implements CorInfoMax (arXiv 2209.07999), `solo_mim.losses.CorInfoMaxLoss`."""

    @dataclass(frozen=True, kw_only=True)
    class Options(ProjectorOptions):
        """`method_kwargs` of CorInfoMax.

        Attributes:
            alpha: weight of the attraction; the default is the paper's for CIFAR-10.
            eps: ridge of the covariances.
            forgetting: share of the past in the covariances.
            normalisation: of the projected features; "l2" is the paper's.
        """

        alpha: Weight = 250.0
        eps: Weight = 1e-8
        forgetting: Share = 0.01
        normalisation: Literal["l2", "standardise"] = "l2"

        def __post_init__(self) -> None:
            if self.forgetting == 1:
                raise ValueError("forgetting must be below 1, else no batch counts")

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.loss = CorInfoMaxLoss(self.options.proj_output_dim, **self.loss_kwargs)

    def terms(self, out: dict[str, Any]) -> dict[str, Tensor | None]:
        return self.loss(*out["z"])._asdict()


class FroSSL(Projecting, BaseMethod):
    """Implements FroSSL (https://arxiv.org/abs/2310.02903), `solo_mim.losses.frossl_loss_func`."""

    @dataclass(frozen=True, kw_only=True)
    class Options(ProjectorOptions):
        """`method_kwargs` of FroSSL.

        Attributes:
            invariance_weight: of the invariance; 1 is the paper's.
        """

        invariance_weight: Weight = 1.0

    def terms(self, out: dict[str, Any]) -> dict[str, Tensor | None]:
        return frossl_loss_func(out["z"], **self.loss_kwargs)._asdict()


class MEC(Projecting, BaseMomentumMethod):
    """Implements MEC (https://arxiv.org/abs/2210.11464), `solo_mim.losses.mec_loss_func`."""

    @dataclass(frozen=True, kw_only=True)
    class Options(ProjectorOptions):
        """`method_kwargs` of MEC.

        Attributes:
            pred_hidden_dim: neurons in the hidden layer of the predictor.
            eps: distortion; 1 / lambda is N eps / proj_output_dim. 64 is the paper's for 2048
                dimensions and batches of 1024.
            warmup_share: of the steps, over which 1 / lambda comes down from eight times its value;
                the paper has 10 of 100 epochs.
            order: of the Taylor series.
        """

        pred_hidden_dim: Size
        eps: Positive = 64.0
        warmup_share: Share = 0.1
        order: Size = 4

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        hidden, output = self.options.pred_hidden_dim, self.options.proj_output_dim
        self.momentum_projector = self.new_projector().requires_grad_(False)
        self.momentum_projector.load_state_dict(self.projector.state_dict())
        self.predictor = nn.Sequential(
            nn.Linear(output, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, output),
        )

    def new_projector(self) -> nn.Sequential:
        """With normalised outputs."""
        norm = nn.BatchNorm1d(self.options.proj_output_dim, affine=False)
        return super().new_projector().append(norm)

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parent's parameter groups, the projector's and the predictor's."""
        predictor = {"name": "predictor", "params": self.predictor.parameters()}
        return [*super().learnable_params, predictor]

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
        final = samples * self.options.eps / self.options.proj_output_dim
        steps = self.options.warmup_share * self.trainer.estimated_stepping_batches
        left = 1 - self.trainer.global_step / steps if steps else 0.0
        return final * (1 + 7 * max(0.0, left))

    def terms(self, out: dict[str, Any]) -> dict[str, Tensor | None]:
        predictions = [self.predictor(z) for z in out["z"]]
        order = self.options.order
        loss = mec_loss_func(predictions, out["momentum_z"], self.inverse_lambda(), order)
        return {"loss": loss}


class LeJEPA(Projecting, BaseMethod):
    """Implements LeJEPA (https://arxiv.org/abs/2511.08544), `solo_mim.losses.lejepa_loss_func`."""

    @dataclass(frozen=True, kw_only=True)
    class Options(ProjectorOptions):
        """`method_kwargs` of LeJEPA; the defaults are the paper's.

        Attributes:
            lamb: weight of SIGReg.
            num_slices: random directions of each step.
            t_max: end of the integral of the Epps-Pulley statistic.
            n_points: of that integral, odd and 3 or more.
        """

        lamb: Share = 0.05
        num_slices: Size = 1024
        t_max: Positive = 5.0
        n_points: Size = 17

        def __post_init__(self) -> None:
            if self.n_points < 3 or not self.n_points % 2:
                raise ValueError(f"n_points must be odd and 3 or more, not {self.n_points}")

    def terms(self, out: dict[str, Any]) -> dict[str, Tensor | None]:
        seed = self.trainer.global_step
        return lejepa_loss_func(out["z"], seed=seed, **self.loss_kwargs)._asdict()


class VISReg(Projecting, BaseMethod):
    """Implements VISReg (https://arxiv.org/abs/2606.02572), `solo_mim.losses.visreg_loss_func`."""

    @dataclass(frozen=True, kw_only=True)
    class Options(ProjectorOptions):
        """`method_kwargs` of VISReg; the defaults are the authors' for ImageNet.

        Attributes:
            lamb: weight of the regularisation.
            num_projections: random directions of each step.
        """

        lamb: Share = 0.9
        num_projections: Size = 4096

    def terms(self, out: dict[str, Any]) -> dict[str, Tensor | None]:
        seed = self.trainer.global_step
        return visreg_loss_func(out["z"], seed=seed, **self.loss_kwargs)._asdict()
