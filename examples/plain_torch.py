"""`ExplicitMIMLoss` in a training loop of plain torch, on real photographs, in seconds on a CPU.

python examples/plain_torch.py [EPOCHS]
"""

import sys

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from solo_mim.data.photo_patches import photo_patches
from solo_mim.losses import ExplicitMIMLoss

AUGMENTATION = v2.Compose(
    [v2.RandomResizedCrop(32, (0.2, 1.0)), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4)]
)


def block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def top1(backbone: nn.Module, known: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> float:
    """Percentage of images whose nearest neighbour among the known has their label."""
    with torch.no_grad():
        a, b = (nn.functional.normalize(backbone.eval()(x)) for x in (asked[0], known[0]))
    return 100 * (known[1][(a @ b.T).argmax(1)] == asked[1]).double().mean().item()


def main(epochs: int = 2) -> tuple[float, float]:
    """Top-1 (%) of held-out patches by nearest neighbour, before and after training."""
    torch.manual_seed(0)
    train, test = (
        (torch.tensor(part.images).permute(0, 3, 1, 2) / 255, torch.tensor(part.labels))
        for part in photo_patches()
    )
    pooling = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = nn.Sequential(block(3, 32), block(32, 64), block(64, 128), *pooling)
    projector = nn.Sequential(
        nn.Linear(128, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64)
    )
    criterion = ExplicitMIMLoss()
    optimiser = torch.optim.AdamW([*backbone.parameters(), *projector.parameters()], lr=1e-3)
    untrained = top1(backbone, train, test)
    for epoch in range(epochs):
        backbone.train()
        for rows in torch.randperm(len(train[0])).split(256)[:-1]:
            z1, z2 = (
                projector(backbone(torch.stack([AUGMENTATION(image) for image in train[0][rows]])))
                for _ in range(2)
            )
            loss = criterion(z1, z2)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    trained = top1(backbone, train, test)
    print(f"nearest neighbour, top-1 (%): untrained {untrained:.1f}, trained {trained:.1f}")
    return untrained, trained


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
