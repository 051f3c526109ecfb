# Copyright 2023 solo-learn development team.

# Permission is hereby granted, free of charge, to any person obtaining a copy of
# this software and associated documentation files (the "Software"), to deal in
# the Software without restriction, including without limitation the rights to use,
# copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
# Software, and to permit persons to whom the Software is furnished to do so,
# subject to the following conditions:

# The above copyright notice and this permission notice shall be included in all copies
# or substantial portions of the Software.

# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED,
# INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR
# PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE
# FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
# OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
# DEALINGS IN THE SOFTWARE.


from typing import Any, Dict, List, Optional, Sequence

import omegaconf
import torch
import torch.nn as nn
from solo.losses.explicit_mim import explicit_mim_loss_func
from solo.methods.base import BaseMethod
from solo.utils.misc import omegaconf_select


class ExplicitMIM(BaseMethod):
    def __init__(self, cfg: omegaconf.DictConfig):
        """Implements explicit MIM (https://arxiv.org/abs/2409.04747)

        Extra cfg settings:
            method_kwargs:
                proj_output_dim (int): number of dimensions of the projected features, at most half
                    the total batch size: smaller batches cannot estimate the covariances.
                proj_hidden_dim (int): number of neurons in the hidden layers of the projector.
                reading (str): information to maximize: "infomax", between features and image, or
                    "two_view", between views.
                within_noise (Optional[float]): floor of the covariance within images.
                total_noise (Optional[float]): floor of the total covariance, at most within_noise.
        """

        super().__init__(cfg)

        self.reading: str = cfg.method_kwargs.reading
        self.within_noise: Optional[float] = cfg.method_kwargs.within_noise
        self.total_noise: Optional[float] = cfg.method_kwargs.total_noise

        proj_hidden_dim: int = cfg.method_kwargs.proj_hidden_dim
        proj_output_dim: int = cfg.method_kwargs.proj_output_dim

        # projector
        self.projector = nn.Sequential(
            nn.Linear(self.features_dim, proj_hidden_dim),
            nn.BatchNorm1d(proj_hidden_dim),
            nn.ReLU(),
            nn.Linear(proj_hidden_dim, proj_hidden_dim),
            nn.BatchNorm1d(proj_hidden_dim),
            nn.ReLU(),
            nn.Linear(proj_hidden_dim, proj_output_dim),
        )

    @staticmethod
    def add_and_assert_specific_cfg(cfg: omegaconf.DictConfig) -> omegaconf.DictConfig:
        """Adds method specific default values/checks for config.

        Args:
            cfg (omegaconf.DictConfig): DictConfig object.

        Returns:
            omegaconf.DictConfig: same as the argument, used to avoid errors.
        """

        cfg = super(ExplicitMIM, ExplicitMIM).add_and_assert_specific_cfg(cfg)

        assert not omegaconf.OmegaConf.is_missing(cfg, "method_kwargs.proj_output_dim")
        assert not omegaconf.OmegaConf.is_missing(cfg, "method_kwargs.proj_hidden_dim")

        # any number of large crops; small ones are not exchangeable with them
        assert cfg.data.num_large_crops >= 2
        assert cfg.data.num_small_crops == 0

        cfg.method_kwargs.reading = omegaconf_select(cfg, "method_kwargs.reading", "infomax")
        cfg.method_kwargs.within_noise = omegaconf_select(cfg, "method_kwargs.within_noise", None)
        cfg.method_kwargs.total_noise = omegaconf_select(cfg, "method_kwargs.total_noise", None)

        return cfg

    @property
    def learnable_params(self) -> List[dict]:
        """Adds projector parameters to the parent's learnable parameters.

        Returns:
            List[dict]: list of learnable parameters.
        """

        extra_learnable_params = [{"name": "projector", "params": self.projector.parameters()}]
        return super().learnable_params + extra_learnable_params

    def forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the backbone and the projector.

        Args:
            X (torch.Tensor): a batch of images in the tensor format.

        Returns:
            Dict[str, Any]: a dict containing the outputs of the parent and the projected features.
        """

        out = super().forward(X)
        z = self.projector(out["feats"])
        out.update({"z": z})
        return out

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Training step for explicit MIM reusing BaseMethod training step.

        Args:
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y], where
                [X] is a list of size num_crops containing batches of images.
            batch_idx (int): index of the batch.

        Returns:
            torch.Tensor: total loss composed of explicit MIM loss and classification loss.
        """

        out = super().training_step(batch, batch_idx)
        class_loss = out["loss"]

        # ------- explicit mim loss -------
        terms = explicit_mim_loss_func(
            out["z"],
            reading=self.reading,
            within_noise=self.within_noise,
            total_noise=self.total_noise,
        )

        metrics = {f"train_explicit_mim_{name}": term for name, term in terms.items()}
        self.log_dict(metrics, on_epoch=True, sync_dist=True)

        return terms["loss"] + class_loss
