"""A linear classifier trained on a backbone: solo-learn's offline protocol, on either host.

Semantics are those of main's `LinearModel`, and with equal weights and batches so are the numbers.
Not its bugs: top-5 of fewer than five classes, layer-wise rates that no optimiser reads, gradients
through a frozen backbone's validation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from omegaconf import DictConfig
from timm.data.mixup import Mixup
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from solo_mim.optim import optimisation
from solo_mim.seeding import SeededEpochs

TOP = 5  # of so few classes or fewer, being among the top of them says nothing


class LinearModel(SeededEpochs, LightningModule):
    """A linear layer on a backbone that is frozen, or fine-tuned with it.

    Logs `train_loss`, `val_loss`, `val_acc1` and, of more than five classes, `val_acc5`; accuracies
    in percent. A training batch is `[indexes, [images], targets]`, a validation batch `[images,
    targets]`.

    Args:
        backbone: with `num_features`; maps N x 3 x H x W images to N x `num_features`.
        num_classes: two or more.
        cfg: read are `optimizer`, with rates scaled to the batch, `scheduler`, `max_epochs`,
            `finetune`, `label_smoothing`, `mixup`, `cutmix`, `performance` and `seed`.

    Attributes:
        images: that the last validation counted.
    """

    images = 0

    def __init__(self, backbone: Any, num_classes: int, cfg: DictConfig):
        super().__init__()
        self.cfg = cfg
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.num_features, num_classes)
        self.backbone.requires_grad_(cfg.finetune)
        self.mix, self.label_smoothing = None, cfg.label_smoothing
        if cfg.mixup or cfg.cutmix:  # which smooths the labels itself
            kwargs = {"label_smoothing": cfg.label_smoothing, "num_classes": num_classes}
            self.mix, self.label_smoothing = Mixup(cfg.mixup, cfg.cutmix, **kwargs), 0.0
        tops = (1, TOP) if num_classes > TOP else (1,)
        accuracy = {f"acc{k}": MulticlassAccuracy(num_classes, k, "micro") for k in tops}
        self.scores: Any = nn.ModuleDict({"loss": MeanMetric(nan_strategy="disable"), **accuracy})
        self.train()

    def train(self, mode: bool = True) -> LinearModel:
        """A frozen backbone stays in evaluation mode."""
        super().train(mode)
        if not self.cfg.finetune:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits, N x classes."""
        if not self.cfg.performance.disable_channel_last:
            images = images.to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(self.cfg.finetune and torch.is_grad_enabled()):
            features = self.backbone(images)
        return self.classifier(features)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of a batch `[indexes, [images], targets]`."""
        _, (images,), targets = batch
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        loss = F.cross_entropy(self(images), targets, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        logits = self(images).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        for name, score in self.scores.items():
            score.update(*([losses] if name == "loss" else [logits, targets]))

    def on_validation_epoch_end(self) -> None:
        """Logs what the epoch's images in all processes give; each counts once."""
        counted = self.trainer.strategy.reduce(self.scores["loss"].weight.clone(), reduce_op="sum")
        self.images = round(float(counted))
        for name, score in self.scores.items():
            value = score.compute()
            self.log(f"val_{name}", value if name == "loss" else 100 * value, sync_dist=True)
            score.reset()

    def configure_optimizers(self) -> Any:
        return optimisation(self._groups(), self.cfg, self)

    def _groups(self) -> list[dict[str, Any]]:
        settings = self.cfg.optimizer
        classifier = {"name": "classifier", "params": list(self.classifier.parameters())}
        if not self.cfg.finetune:
            return [classifier]
        if not settings.layer_decay:
            backbone = {"name": "backbone", "params": list(self.backbone.parameters())}
            return [backbone, classifier]
        layers: Any = param_groups_layer_decay(
            self.backbone,
            weight_decay=settings.weight_decay,
            no_weight_decay_list=tuple(getattr(self.backbone, "no_weight_decay", set)()),
            layer_decay=settings.layer_decay,
        )
        # An optimiser of torch's reads `lr` alone.
        keys = ("params", "weight_decay")
        return [
            *({k: g[k] for k in keys} | {"lr": settings.lr * g["lr_scale"]} for g in layers),
            classifier,
        ]
