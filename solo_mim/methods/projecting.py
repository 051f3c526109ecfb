"""What the methods of ours share: a projector whose output `z` the loss is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from solo_mim.host.checks import refuse_impossible_views
from solo_mim.options import ProjectorOptions


class Projecting:
    """Mixed in before a base class: a projector whose output is `z`."""

    Options: type = ProjectorOptions
    options: Any
    cfg: DictConfig
    features_dim: int

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)  # type: ignore[call-arg]
        self.projector = self.new_projector()

    def new_projector(self) -> nn.Sequential:
        """From the backbone's features to `z`: the layers of Barlow Twins and VICReg."""
        hidden = self.cfg.method_kwargs.proj_hidden_dim
        return nn.Sequential(
            nn.Linear(self.features_dim, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, self.cfg.method_kwargs.proj_output_dim),
        )

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Fills the base class's defaults in place; refuses views that the loss does not read."""
        any_number = ("explicit_mim", "frossl", "lejepa", "visreg")
        refuse_impossible_views(cfg, cfg.method, any_number, multi_crop=())
        return super().add_and_assert_specific_cfg(cfg)  # type: ignore[misc]

    @property
    def loss_kwargs(self) -> dict[str, Any]:
        """The options that are not the projector's."""
        of_projector = {field.name for field in fields(ProjectorOptions)}
        return {k: value for k, value in vars(self.options).items() if k not in of_projector}

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parent's parameter groups and the projector's."""
        projector = {"name": "projector", "params": self.projector.parameters()}
        return [*super().learnable_params, projector]  # type: ignore[misc]

    def forward(self, X: Tensor) -> dict[str, Any]:
        """The parent's outputs and the projected features `z`, N x proj_output_dim."""
        out = super().forward(X)  # type: ignore[misc]
        return {**out, "z": self.projector(out["feats"])}

    def terms(self, out: dict[str, Any]) -> dict[str, Tensor | None]:
        """The method's `loss` of a step's outputs, and whatever else is to be logged."""
        raise NotImplementedError

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The host's step (online probe, online kNN) and the method's loss over all views.

        Of a batch [indexes, [X], targets], [X] a list of one image batch for each view.
        """
        out = super().training_step(batch, batch_idx)  # type: ignore[misc]
        terms = {name: term for name, term in self.terms(out).items() if term is not None}
        metrics = {f"train_{self.cfg.method}_{name}": term for name, term in terms.items()}
        self.log_dict(metrics, on_epoch=True, sync_dist=True)  # type: ignore[attr-defined]
        return terms["loss"] + out["loss"]
