"""The linear classifier against solo-learn main's, and against a loop written here."""

import importlib
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from solo_mim import host
from solo_mim.evaluation.linear import LinearModel
from solo_mim.recipe.checks import checked
from solo_mim.recipe.schema import LinearRecipe, host_config

CLASSES = 7
KWARGS = {"lars": {"eta": 0.02, "clip_lr": True}}


def configured(*overrides):
    base = {
        **{"name": "x", "pretrained_feature_extractor": "x", "max_epochs": 3},
        "backbone": {"name": "resnet18"},
        "data": {"dataset": "custom"},
        "optimizer": {"name": "sgd", "batch_size": 16, "lr": 2.0, "weight_decay": 1e-2},
        "scheduler": {"name": "warmup_cosine", "warmup_epochs": 1},
    }
    given = OmegaConf.from_dotlist(list(overrides))
    return host_config(checked(OmegaConf.merge(base, given), LinearRecipe), CLASSES, 1, 0)


class Net(nn.Sequential):
    """A convolution with batch statistics, which a frozen backbone keeps."""

    num_features = 6

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


def batches(number, seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, 8, 8, generator=generator).double(),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(number)
    ]


class ForOurs(torch.utils.data.Dataset):
    def __init__(self, found, validation=False):
        self.found, self.validation = found, validation

    def __len__(self):
        return len(self.found)

    def __getitem__(self, index):
        images, targets = self.found[index]
        return (
            [images, targets]
            if self.validation
            else [torch.arange(len(targets)), [images], targets]
        )


def fitted(model, cfg, train, val):
    trainer = pl.Trainer(
        max_epochs=cfg.max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    load = {"batch_size": None, "shuffle": False}
    trainer.fit(
        model, torch.utils.data.DataLoader(train, **load), torch.utils.data.DataLoader(val, **load)
    )
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


def pair():
    torch.manual_seed(0)
    one = Net().double()
    other = Net().double()
    other.load_state_dict(one.state_dict())
    return one, other


@pytest.fixture
def mains_model():
    """main's LinearModel, on that host."""
    if host.GENERATION != "current":
        pytest.skip("the host is not solo-learn main")
    return importlib.import_module("solo.methods.linear").LinearModel


@pytest.mark.parametrize("finetune", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize(
    "schedule",
    [[], ["scheduler.name=step", "scheduler.lr_decay_steps=[1,2]"]],
    ids=["cosine", "step"],
)
def test_weights_and_metrics_end_as_mains(mains_model, finetune, optimizer, schedule):
    rate = 1e-2 if optimizer == "adamw" else 2.0
    cfg = configured(
        f"optimizer.name={optimizer}", f"optimizer.lr={rate}", f"finetune={finetune}", *schedule
    )
    for key, value in KWARGS.get(optimizer, {}).items():
        cfg.optimizer.kwargs[key] = value
    ours_net, mains_net = pair()
    ours = LinearModel(ours_net, CLASSES, cfg).double()
    mains = mains_model(mains_net, cfg.copy()).double()
    mains.classifier.load_state_dict(ours.classifier.state_dict())
    train, val = batches(4), batches(2, seed=1, size=13)
    found = fitted(ours, cfg, ForOurs(train), ForOurs(val, validation=True))
    expected = fitted(mains, cfg, ForOurs(train, validation=True), ForOurs(val, validation=True))
    theirs = mains.state_dict()
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs[key], msg=key)
    for key in ("val_loss", "val_acc1", "val_acc5"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5)


def test_a_frozen_backbone_is_a_regression_on_its_features():
    cfg = configured("scheduler.name=none", "label_smoothing=0.1", "optimizer.name=sgd")
    net, same = pair()
    model = LinearModel(net, CLASSES, cfg).double()
    layer = nn.Linear(6, CLASSES).double()
    layer.load_state_dict(model.classifier.state_dict())
    train, val = batches(4), batches(2, seed=1)
    found = fitted(model, cfg, ForOurs(train), ForOurs(val, validation=True))
    same.eval()
    sgd = torch.optim.SGD(layer.parameters(), lr=2.0 * 16 / 256, momentum=0.9, weight_decay=1e-2)
    for _ in range(cfg.max_epochs):
        for images, targets in train:
            sgd.zero_grad()
            logs = F.log_softmax(layer(same(images).detach()), 1)
            truth = F.one_hot(targets, CLASSES) * 0.9 + 0.1 / CLASSES
            (-(truth * logs).sum(1).mean()).backward()
            sgd.step()
    torch.testing.assert_close(model.classifier.weight, layer.weight)
    for key, value in same.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), f"{key} of the frozen backbone"
    images, targets = (torch.cat(part) for part in zip(*val, strict=True))
    logits = layer(same(images))
    assert found["val_loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    top5 = (logits.topk(5).indices == targets[:, None]).any(1).double().mean()
    assert found["val_acc5"] == pytest.approx(100 * top5.item())
    assert model.images == 32


def test_top_five_of_few_classes_is_not_logged():
    cfg = configured("max_epochs=1", "scheduler.name=none")
    few = [(images, targets % 3) for images, targets in batches(2)]
    model = LinearModel(Net().double(), 3, cfg).double()
    found = fitted(model, cfg, ForOurs(few), ForOurs(few, validation=True))
    assert {"val_loss", "val_acc1"} <= set(found)
    assert "val_acc5" not in found


def test_rates_fall_from_layer_to_layer_and_optimisers_read_them():
    import timm

    cfg = configured(
        *("finetune=true", "optimizer.layer_decay=0.5", "optimizer.name=adamw"),
        "scheduler.name=none",
    )
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, img_size=32)
    model = LinearModel(backbone, CLASSES, cfg)
    groups = model.configure_optimizers().param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    top = cfg.optimizer.lr
    assert rates[id(model.classifier.weight)] == top
    first, second = (block.mlp.fc1.weight for block in backbone.blocks)
    assert rates[id(second)] == pytest.approx(rates[id(first)] * 2)
    assert rates[id(backbone.patch_embed.proj.weight)] < rates[id(first)] < top
    assert decays[id(first)] == 1e-2
    assert decays[id(backbone.blocks[0].norm1.weight)] == 0
    assert set(rates) == {id(p) for p in model.parameters()}


def test_mixed_images_carry_mixed_labels(monkeypatch):
    cfg = configured("mixup=0.8", "cutmix=1.0", "label_smoothing=0.2")
    model = LinearModel(Net(), CLASSES, cfg)
    seen = []
    monkeypatch.setattr(
        F, "cross_entropy", lambda logits, targets, **_: seen.append(targets) or logits.sum()
    )
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    ((images, targets),) = batches(1)
    before = images.float()
    model.training_step([None, [before.clone()], targets], 0)
    (mixed,) = seen
    assert mixed.shape == (16, CLASSES)
    torch.testing.assert_close(mixed.sum(1), torch.ones(16))
    assert (mixed.min(1).values >= 0.2 / CLASSES - 1e-6).all(), "smoothed"


def test_this_file_passes_on_solo_learn_main(passes_on_main):
    passes_on_main(Path(__file__))
