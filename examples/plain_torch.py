"""`ExplicitMIMLoss` in a training loop of plain torch, on real photographs, in seconds on a CPU.

python examples/plain_torch.py [EPOCHS]
"""

import sys

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from solo_mim.data.photo_patches import photo_patches
from solo_mim.losses import ExplicitMIMLoss

CROP, FLIP = v2.RandomResizedCrop(32, (0.2, 1.0)), v2.RandomHorizontalFlip()
AUGMENT = v2.Compose([CROP, FLIP, v2.ColorJitter(0.4, 0.4)])
Images = tuple[Tensor, Tensor]  # N x 3 x 32 x 32 from 0 to 1, N classes


@torch.no_grad()
def top1(backbone: nn.Module, known: Images, asked: Images) -> float:
    """Percentage of images whose nearest neighbour among the known has their class."""
    a, b = (nn.functional.normalize(backbone.eval()(x)) for x in (asked[0], known[0]))
    return 100 * (known[1][(a @ b.T).argmax(1)] == asked[1]).double().mean().item()


def main(epochs: int = 2) -> tuple[float, float]:
    """Top-1 (%) of held-out patches by nearest neighbour, before and after training."""
    torch.manual_seed(0)
    parts = [(torch.tensor(part.images), torch.tensor(part.labels)) for part in photo_patches()]
    train, test = ((images.permute(0, 3, 1, 2) / 255, labels) for images, labels in parts)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    hidden = nn.Sequential(nn.Linear(128, 256), nn.BatchNorm1d(256), nn.ReLU())
    model = nn.Sequential(backbone, hidden, nn.Linear(256, 64))
    criterion, optimiser = ExplicitMIMLoss(), torch.optim.AdamW(model.parameters(), lr=1e-3)
    untrained = top1(backbone, train, test)
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(train[0])).split(256)[:-1]:
            views = (torch.stack([AUGMENT(image) for image in train[0][rows]]) for _ in range(2))
            loss = criterion(*(model(view) for view in views))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    trained = top1(backbone, train, test)
    print(f"nearest neighbour, top-1 (%): untrained {untrained:.1f}, trained {trained:.1f}")
    return untrained, trained


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
