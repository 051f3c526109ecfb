"""Training on views by DALI, as a person starts it."""

import json

import pytest
from PIL import Image

from solo_mim.data.photo_patches import photo_patches


@pytest.mark.parametrize("method", ["explicit_mim", "deepclusterv2"])
def test_a_run_on_dalis_views(method, solo_mim, tmp_path, monkeypatch):
    """DeepClusterV2 goes by the images' own indexes, which solo-learn's DALI loaders lack."""
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed (extra dali)")
    monkeypatch.chdir(tmp_path)
    images = photo_patches()[0].images
    for number in range(40):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number * 100]).save(folder / f"{number}.jpg")
    prototypes = ["method_kwargs.num_prototypes=[4,4]"] if method == "deepclusterv2" else []
    said = solo_mim(
        *("pretrain", f"method={method}", "data=image_folder", "data.format=dali", *prototypes),
        *("data.train_path=images", "data.validation_split=8", "data.num_workers=1"),
        *("+budget=cpu", "max_epochs=2", "optimizer.batch_size=8", "evaluation.offline=false"),
        *("method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=8"),
        "+backbone.kwargs.widths=[8,16,32,64]",
    )
    assert said.code == 0, said.err
    (file,) = tmp_path.glob("runs/*/result.json")
    result = json.loads(file.read_text())
    assert result["epochs"] == 2
    assert result["online"]["knn_top1"] is not None
