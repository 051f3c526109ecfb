"""What the methods of ours share: a projector whose output `z` the loss is of."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from solo_mim.host.checks import refuse_impossible_views
from solo_mim.options import ProjectorOptions


def projector(features: int, hidden: int, output: int) -> nn.Sequential:
    """The three layers of Barlow Twins and VICReg in solo-learn."""
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, output),
    )


class Projecting:
    """Mixed in before a base class: a projector whose output is `z`."""

    Options: type = ProjectorOptions
    options: Any
    features_dim: int
    projector: nn.Module

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)  # type: ignore[call-arg]
        self.projector = self.new_projector()

    def new_projector(self) -> nn.Module:
        """From the backbone's features to `z`."""
        options = self.options
        return projector(self.features_dim, options.proj_hidden_dim, options.proj_output_dim)

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Fills the base class's defaults in place; refuses views that the loss does not read."""
        any_number = ("explicit_mim", "frossl", "lejepa", "visreg")
        refuse_impossible_views(cfg, cfg.method, any_number, multi_crop=())
        return super().add_and_assert_specific_cfg(cfg)  # type: ignore[misc]

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parent's parameter groups and the projector's."""
        return [
            *super().learnable_params,  # type: ignore[misc]
            {"name": "projector", "params": self.projector.parameters()},
        ]

    def forward(self, X: Tensor) -> dict[str, Any]:
        """The parent's outputs and the projected features `z`, N x proj_output_dim."""
        out = super().forward(X)  # type: ignore[misc]
        return {**out, "z": self.projector(out["feats"])}

    def _logged(self, name: str, terms: Any) -> Tensor:
        """The `loss` of named terms, all of them logged."""
        metrics = {
            f"train_{name}_{term}": value
            for term, value in terms._asdict().items()
            if value is not None
        }
        self.log_dict(metrics, on_epoch=True, sync_dist=True)  # type: ignore[attr-defined]
        return terms.loss
