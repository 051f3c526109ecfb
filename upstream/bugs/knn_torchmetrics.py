"""`knn_eval.enabled=True` crashes with torchmetrics >= 0.12, which dropped `compute_on_step`.

    PYTHONPATH=CHECKOUT python knn_torchmetrics.py

requirements.txt keeps such a torchmetrics away for this alone; other packages ask for it.
"""

import torch
import torchmetrics
from solo.utils.knn import WeightedKNNClassifier

if __name__ == "__main__":
    print("torchmetrics", torchmetrics.__version__)
    knn = WeightedKNNClassifier(k=5)
    features, targets = torch.randn(64, 16), torch.arange(64) % 8
    for part in range(2):  # called as a module, as the training and validation steps do
        half = slice(32 * part, 32 * (part + 1))
        knn(train_features=features[half], train_targets=targets[half])
        knn(test_features=features[half], test_targets=targets[half])
    acc1, _ = knn.compute()
    print(f"top-1 of images among themselves {acc1:.1f}")
    assert acc1 == 100.0
