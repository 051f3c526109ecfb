"""solo-learn's own methods and their options: names and defaults are those of its main branch,
which 1.0.2 shares where it has the method."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import field, make_dataclass
from functools import partial
from typing import Any

from omegaconf import DictConfig

from solo_mim.host.checks import refuse_impossible_batch, refuse_impossible_views
from solo_mim.host.lifecycle import fill_options
from solo_mim.options import Count, Positive, ProjectorOptions, Share, Size, Weight


def bound(
    classes: Mapping[str, type],
    adapter: type,
    mends: Mapping[str, type],
    options: Mapping[str, type],
    any_number: Collection[str],
    multi_crop: Collection[str],
) -> dict[str, type]:
    """The host's methods behind an adapter, in whose module they lie so that they pickle.

    Their `add_and_assert_specific_cfg` refuses what is impossible: `any_number` and `multi_crop`
    are of `refuse_impossible_views`.
    """

    def complete(cfg: DictConfig, method: str, cls: Any) -> DictConfig:
        refuse_impossible_views(cfg, method, any_number, multi_crop)
        if declared := options.get(method):
            fill_options(cfg, declared)
        if hasattr(cls, "add_and_assert_specific_cfg"):  # main's
            cfg = cls.add_and_assert_specific_cfg(cfg)
        refuse_impossible_batch(cfg, method)
        return cfg

    methods = {}
    for method, cls in classes.items():
        if method in ("base", "linear"):
            continue
        namespace = {
            "__module__": adapter.__module__,
            "__doc__": cls.__init__.__doc__,  # type: ignore[misc]
            "Options": options.get(method),
            "add_and_assert_specific_cfg": staticmethod(partial(complete, method=method, cls=cls)),
        }
        mend = [mends[method]] if method in mends else []
        methods[method] = type(cls.__name__, (adapter, *mend, cls), namespace)
        setattr(sys.modules[adapter.__module__], cls.__name__, methods[method])
    return methods


def _options(base: type | None = ProjectorOptions, /, **declared: tuple[Any, Any] | Any) -> type:
    """A dataclass of options: name=type of what is required, name=(type, default) of others."""
    columns: Any = [
        (name, *one) if isinstance(one, tuple) else (name, one) for name, one in declared.items()
    ]
    bases = (base,) if base else ()
    return make_dataclass("Options", columns, bases=bases, frozen=True, kw_only=True)


_QUEUE = (Count, 65536)
_FLAG = bool | int  # solo-learn counts with some
_VICREG = {"sim_loss_weight": (Weight, 25.0), "var_loss_weight": (Weight, 25.0)}

OPTIONS: dict[str, type] = {
    "all4one": _options(pred_hidden_dim=Size, temperature=Positive, queue_size=_QUEUE),
    "barlow_twins": _options(lamb=(Weight, 0.0051), scale_loss=(Weight, 0.024)),
    "byol": _options(pred_hidden_dim=Size),
    "deepclusterv2": _options(
        temperature=(Positive, 0.1),
        num_prototypes=(list[Size], field(default_factory=lambda: [3000, 3000, 3000])),
        kmeans_iters=(Size, 10),
    ),
    "dino": _options(
        num_prototypes=Size,
        clip_grad=(Weight, 0),
        freeze_last_layer=(_FLAG, 1),
        norm_last_layer=(_FLAG, True),
        use_bn_in_head=(_FLAG, False),
        student_temperature=(Positive, 0.1),
        teacher_temperature=(Positive, 0.07),
        warmup_teacher_temperature=(Positive, 0.04),
        warmup_teacher_temperature_epochs=(Count, 0),
    ),
    "mae": _options(
        None,
        decoder_embed_dim=Size,
        decoder_depth=Size,
        decoder_num_heads=Size,
        mask_ratio=(Share, 0.75),
        norm_pix_loss=(_FLAG, False),
    ),
    "mocov2plus": _options(temperature=Positive, queue_size=_QUEUE),
    "mocov3": _options(pred_hidden_dim=Size, temperature=Positive),
    "nnbyol": _options(pred_hidden_dim=Size, queue_size=_QUEUE),
    "nnclr": _options(pred_hidden_dim=Size, temperature=Positive, queue_size=_QUEUE),
    "nnsiam": _options(pred_hidden_dim=Size, queue_size=_QUEUE),
    "ressl": _options(temperature_q=Positive, temperature_k=Positive, queue_size=_QUEUE),
    "simclr": _options(temperature=Positive),
    "simsiam": _options(pred_hidden_dim=Size),
    "supcon": _options(temperature=Positive),
    "swav": _options(
        temperature=Positive,
        num_prototypes=(Size, 3000),
        sk_epsilon=(Positive, 0.05),
        sk_iters=(Size, 3),
        queue_size=_QUEUE,
        epoch_queue_starts=(Count, 15),
        freeze_prototypes_epochs=(Count, 1),
    ),
    "vibcreg": _options(**_VICREG, cov_loss_weight=(Weight, 200.0), iternorm=(_FLAG, False)),
    "vicreg": _options(**_VICREG, cov_loss_weight=(Weight, 1.0)),
    "wmse": _options(
        whitening_iters=(Size, 1), whitening_size=(Count, 256), whitening_eps=(Weight, 0.0)
    ),
}
# 1.0.2 has SupCon within SimCLR.
RELEASED_OPTIONS = OPTIONS | {"simclr": _options(temperature=Positive, supervised=(_FLAG, False))}
