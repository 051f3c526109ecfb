"""`ExplicitMIMLoss` in a lightly training loop, where lightly's VICReg example has `VICRegLoss`.

python examples/lightly_vicreg.py [EPOCHS]

Transform and projection head are lightly's. Two lines differ from its VICReg: the loss,
and the width of the head, which is to be at most half the batch.
"""

import sys

import torch
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.transforms import VICRegTransform
from PIL.Image import fromarray
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

from solo_mim.data.photo_patches import photo_patches
from solo_mim.losses import ExplicitMIMLoss


class Photographs(Dataset):
    """Views of every fourth training patch of photo_patches, with its class."""

    def __init__(self, transform: VICRegTransform) -> None:
        patches, _ = photo_patches()
        self.images, self.labels = patches.images[::4], patches.labels[::4]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int]:
        return self.transform(fromarray(self.images[index])), int(self.labels[index])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet18()
        self.backbone.fc = nn.Identity()
        self.projection_head = VICRegProjectionHead(512, 512, output_dim=64)  # of 2048 and more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection_head(self.backbone(x))


def main(epochs: int = 3) -> list[float]:
    """Mean loss of each epoch."""
    torch.manual_seed(0)
    dataset = Photographs(VICRegTransform(input_size=32, gaussian_blur=0.0))
    loader = DataLoader(dataset, batch_size=128, shuffle=True, drop_last=True)

    model = Model()
    criterion = ExplicitMIMLoss()  # VICRegLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    means = []
    for epoch in range(epochs):
        losses = []
        for (x0, x1), _ in loader:
            loss = criterion(model(x0), model(x1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
        print(f"epoch {epoch + 1}: loss {means[-1]:.3f}")
    return means


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
