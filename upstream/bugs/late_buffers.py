"""SwAV with a queue and DeepCluster V2 cannot be resumed: "Unexpected key(s) in state_dict".

    PYTHONPATH=CHECKOUT python late_buffers.py [swav | deepclusterv2 | all4one]

SwAV and DeepCluster V2 register buffers when training starts, which is after a checkpoint with them
is loaded; once there, they would be overwritten. All4One's positional encoding is None until the
first step, and a tensor in the checkpoint.
"""

import sys
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch
from resuming import SaveFirstEpoch, fit

KWARGS = {
    "swav": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "num_prototypes": 10,
        "queue_size": 16,
        "sk_iters": 3,
        "sk_epsilon": 0.05,
        "temperature": 0.1,
        "freeze_prototypes_epochs": 1,
        "epoch_queue_starts": 0,
    },
    "deepclusterv2": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "num_prototypes": [4],
        "kmeans_iters": 2,
        "temperature": 0.1,
    },
    "all4one": {
        "temperature": 0.2,
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "pred_hidden_dim": 32,
        "queue_size": 64,
    },
}
BUFFER = {"swav": "queue", "deepclusterv2": "local_memory_embeddings"}


class StateAtStart(pl.Callback):
    """The model's state when the first batch of this training begins."""

    def on_train_epoch_start(self, trainer, model):
        if not hasattr(self, "state"):
            self.state = {key: value.clone() for key, value in model.state_dict().items()}


if __name__ == "__main__":
    for method in sys.argv[1:] or KWARGS:
        with tempfile.TemporaryDirectory() as name:
            checkpoint = Path(name) / "first.ckpt"
            fit(method, KWARGS[method], SaveFirstEpoch(checkpoint))
            saved = torch.load(checkpoint, weights_only=False)["state_dict"]
            start = StateAtStart()
            fit(method, KWARGS[method], start, resume=checkpoint)
        if method in BUFFER:
            assert torch.equal(start.state[BUFFER[method]], saved[BUFFER[method]]), "overwritten"
        print(f"{method} resumes")
