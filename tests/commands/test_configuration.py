"""The schema: what is refused and how, what main's files mean, what makes two runs the same."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from toys import completed

from solo_mim.commands import main
from solo_mim.errors import ConfigError
from solo_mim.installed import CONFIG_FOLDER
from solo_mim.methods import METHODS, find_method
from solo_mim.recipe.checks import check_run, checked
from solo_mim.recipe.compose import composed, run_by_hydra
from solo_mim.runs.identity import identity

RECIPES = {path.stem for path in (CONFIG_FOLDER / "method").glob("*.yaml")}
DATA = sorted(path.stem for path in (CONFIG_FOLDER / "data").glob("*.yaml"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"max_epoch": 3}, r"unknown key 'max_epoch'; did you mean 'max_epochs'"),
        (
            {"optimizer": {"wieght_decay": 0.1}},
            r"unknown key 'optimizer.wieght_decay'; did you mean 'weight_decay'",
        ),
        ({"optimiser": {"lr": 0.1}}, r"unknown key 'optimiser'; did you mean 'optimizer'"),
        (
            {"backbone": {"stemm": "small"}},
            r"unknown key 'backbone.stemm'; did you mean 'stem'",
        ),
        ({"max_epochs": "many"}, r"max_epochs: .*many"),
        ({"knn_eval": {"k": "a"}}, r"knn_eval.k: "),
        ({"auto_resume": {"enable": True}}, r"unknown key 'auto_resume.enable'; .*'enabled'"),
        ({"auto_resume": {"enabled": "perhaps"}}, r"auto_resume.enabled: .*perhaps"),
        ({"auto_umap": {"frequence": 2}}, r"unknown key 'auto_umap.frequence'; .*'frequency'"),
        ({"dali": {"devise": "gpu"}}, r"unknown key 'dali.devise'; did you mean 'device'"),
        ({"performance": {"channel_last": True}}, r"unknown key 'performance.channel_last'; "),
        ({"limit_train_batchs": 2}, r"'limit_train_batchs'; did you mean 'limit_train_batches'"),
        (
            {"optimizer": {"kwargs": {"beta": 1}}},
            r"unknown key 'optimizer.kwargs.beta'; did you mean 'betas'",
        ),
        (
            {"optimizer": {"name": "lars", "kwargs": {"eta": "small"}}},
            r"optimizer.kwargs.eta: a finite number is needed, not 'small'",
        ),
        (
            {"optimizer": {"name": "sgd", "kwargs": {"nesterov": "yes"}}},
            r"optimizer.kwargs.nesterov: a finite number is needed, not 'yes'",
        ),
        (
            {"optimizer": {"kwargs": {"eps": float("inf")}}},
            r"optimizer.kwargs.eps: a finite number is needed, not inf",
        ),
        ({"optimizer": {"lr": float("inf")}}, r"lr must be at least 0 and finite, not inf"),
        ({"optimizer": {"weight_decay": float("inf")}}, r"weight_decay must be .* finite, not inf"),
        (
            {"optimizer": {"name": "adamw", "kwargs": {"betas": [0.9]}}},
            r"optimizer.kwargs: adamw refuses \{'betas': ",
        ),
    ],
)
def test_wrong_keys_and_types_are_refused_with_their_place(section, message, compose_cfg):
    cfg = OmegaConf.merge(compose_cfg(), OmegaConf.create(section))
    with pytest.raises(ConfigError, match=message):
        checked(cfg)


def test_missing_values_are_named():
    with pytest.raises(ConfigError, match=r"required: .*backbone.name, data.dataset, max_epochs"):
        checked(OmegaConf.create({"method": "vicreg"}))


def test_trainer_arguments_are_taken_at_the_top_level_as_on_main(compose_cfg):
    cfg = compose_cfg("gradient_clip_val=0.5", "limit_train_batches=3")
    assert (cfg.gradient_clip_val, cfg.limit_train_batches) == (0.5, 3)


def test_rates_scale_with_batch_and_devices(compose_cfg):
    cfg = compose_cfg("optimizer.batch_size=64", "optimizer.lr=0.8", "devices=[0,1]")
    cfg = completed(cfg, num_classes=10, num_large_crops=2, num_small_crops=0)
    assert cfg.optimizer.lr == pytest.approx(0.8 * 64 * 2 / 256)
    assert cfg.data.num_classes == 10


@pytest.mark.parametrize(
    ("devices", "count"),
    [
        *(("2", 2), ("[0,3]", 2), ("'0,1,2'", 3), ("[0]", 1), ("1", 1), ("'2'", 2)),
        *(("auto", 1), ("-1", 1)),
    ],
)
def test_devices_are_counted_in_every_spelling(devices, count, compose_cfg):
    cfg = compose_cfg(f"devices={devices}", "accelerator=cpu")
    assert checked(cfg).processes == count
    resolved = completed(cfg, num_classes=10, num_large_crops=2, num_small_crops=0)
    assert resolved.devices == count, "lightning counts CPU processes, and refuses a list of them"


@pytest.mark.parametrize("devices", ["two", "0", "[]", "true", "'0,one'", "1.5"])
def test_devices_that_are_none_are_refused(devices, compose_cfg):
    with pytest.raises(ConfigError, match=r"devices=.*: give a number, a list of indexes, or auto"):
        compose_cfg(f"devices={devices}")


def test_batch_norm_is_synchronised_only_where_torch_can(compose_cfg):
    one = compose_cfg("devices=[0]", "accelerator=cpu", "sync_batchnorm=true")
    assert completed(one, 10, 2, 0).sync_batchnorm is False, "one process has nothing to share"
    gpu = compose_cfg("devices=[0]", "accelerator=gpu", "sync_batchnorm=true")
    assert completed(gpu, 10, 2, 0).sync_batchnorm is True
    two = compose_cfg("devices=[0,1]", "accelerator=cpu", "sync_batchnorm=true")
    with pytest.raises(ConfigError, match=r"sync_batchnorm=true: there is none on CPUs"):
        completed(two, 10, 2, 0)


def test_what_nothing_reads_is_said(compose_cfg, capsys):
    compose_cfg()
    assert capsys.readouterr().out == ""
    cfg = compose_cfg("auto_umap.enabled=true", "auto_resume.max_hours=36", "data.num_classes=3")
    assert cfg.data.num_classes is None
    assert capsys.readouterr().out.splitlines() == [
        "note: nothing reads auto_resume.max_hours=36.0: "
        "an unfinished run resumes however old it is",
        "note: nothing reads auto_umap.enabled=True: no UMAP is drawn while training",
        "note: nothing reads data.num_classes=3: the data set and the augmentations tell",
    ]


_GLOBAL = "# @package _global_\n"
_MINE = f"{_GLOBAL}defaults: [vicreg, _self_]\n"


@pytest.mark.parametrize(
    ("files", "override", "message"),
    [
        (  # refused while Hydra composes, against the schema
            {"method/mine.yaml": f"{_MINE}optimizer: {{leaning: 3}}"},
            "method=mine",
            "unknown key 'optimizer.leaning'; known: {known} (set in {folder}/method/mine.yaml)",
        ),
        (
            {"method/mine.yaml": f"{_MINE}optimizer: {{lr: fast}}"},
            "method=mine",
            "optimizer.lr: Value 'fast' of type 'str' could not be converted to Float "
            "(set in {folder}/method/mine.yaml)",
        ),
        (  # refused afterwards
            {"method/mine.yaml": f"{_MINE}optimizer: {{name: sdg}}"},
            "method=mine",
            "optimizer.name: unknown value 'sdg'; did you mean 'sgd'? "
            "(set in {folder}/method/mine.yaml)",
        ),
        (
            {"budget/mine.yaml": f"{_GLOBAL}max_epochs: 3\nscheduler: {{warmup_epochs: 5}}"},
            "+budget=mine",
            "scheduler.warmup_epochs=5 is more than max_epochs=3: optimizer.lr is never reached; "
            "lower it (set in {folder}/budget/mine.yaml)",
        ),
        (
            {"method/mine.yaml": f"{_MINE}optimizer: {{name: lars}}"},
            "optimizer.name=sdg",
            "optimizer.name: unknown value 'sdg'; did you mean 'sgd'? (set on the command line)",
        ),
    ],
)
def test_refusals_name_the_file_or_the_command_line(
    files, override, message, tmp_path, monkeypatch, refused
):
    _write(tmp_path, files)
    # After the data, whose budget would set the optimiser again.
    arguments = ["pretrain", "--config-dir", str(tmp_path), "data=cifar10", override]
    known = "batch_size, classifier_lr, exclude_bias_n_norm_wd, kwargs, lr, name, weight_decay"
    monkeypatch.chdir(tmp_path)  # where Hydra leaves its log, unless a file tells it not to
    assert refused(*arguments) == "solo-mim: " + message.format(folder=tmp_path, known=known)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "~optimiser",
            "unknown key 'wandb.entitty'; did you mean 'entity'? "
            "(set in {folder}/wandb/private.yaml)",
        ),
        (
            "name=x",
            "unknown key 'optimiser'; did you mean 'optimizer'? (set in {folder}/main.yaml)",
        ),
        (
            "momentum={base_tau:0.9}",
            "no file here sets 'momentum'; write +momentum=... to add it (set on the command line)",
        ),
        (
            "~optimiser ~wandb.entitty +optimizr.lr=1",
            "unknown key 'optimizr'; did you mean 'optimizer'? (set on the command line)",
        ),
        (
            "wandb.enable=1",
            "unknown key 'wandb.enable'; did you mean 'enabled'? (set on the command line)",
        ),
    ],
)
def test_files_without_our_schema_are_held_to_it_too(
    overrides, message, tmp_path, monkeypatch, refused
):
    main_like = "defaults: [_self_, wandb: private]\nname: x\nmethod: vicreg\noptimiser: {lr: 1}"
    _write(tmp_path, {"main.yaml": main_like, "wandb/private.yaml": "entitty: me"})
    arguments = [
        "pretrain",
        "--config-path",
        str(tmp_path),
        "--config-name",
        "main",
        *overrides.split(),
    ]
    monkeypatch.chdir(tmp_path)
    assert refused(*arguments) == "solo-mim: " + message.format(folder=tmp_path)


def test_a_key_of_the_schema_needs_no_plus_where_a_file_does_not_set_it(tmp_path, monkeypatch):
    _write(tmp_path, {"main.yaml": "name: x\nmethod: vicreg"})
    monkeypatch.chdir(tmp_path)
    seen = []
    keys = ["output_dir=there", "max_epochs=1", "data.train_path=a", "limit_train_batches=2"]
    own = ["--config-path", str(tmp_path), "--config-name", "main"]
    assert run_by_hydra("pretrain", seen.append, [*own, *keys]) == 0
    found = {"output_dir": "there", "max_epochs": 1, "limit_train_batches": 2}
    assert found.items() <= seen[0].items()
    assert seen[0].data.train_path == "a"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("method: vicreg\nname: café".encode("latin-1"), "'utf-8' codec can't decode byte 0xe9"),
        (b"method: [vicreg", "expected ',' or ']'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content, reason, tmp_path, refused):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_bytes(content)
    said = refused("pretrain", "--config-dir", tmp_path, "method=mine")
    assert said.startswith(
        f"solo-mim: {tmp_path}/method/mine.yaml cannot be read, as YAML in UTF-8"
    )
    assert reason in said


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("null", None),
        ("a/epoch=3.ckpt", "a/epoch=3.ckpt"),
        ("'a/epoch=3.ckpt'", "a/epoch=3.ckpt"),
        ("it's/epoch=3.ckpt", "it's/epoch=3.ckpt"),
        ("there,is=3.ckpt", "there,is=3.ckpt"),
        ("my photographs (2)", "my photographs (2)"),
    ],
)
def test_paths_need_no_quotes(given, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there,is=3.ckpt").touch()
    for key in ("resume_from_checkpoint", "backbone.weights", "data.val_path"):
        assert OmegaConf.select(composed("pretrain", [f"++{key}={given}"]), key) == path


def test_a_sweep_over_checkpoints_needs_no_quotes_either():
    seen = []
    sweep = ["--multirun", "++backbone.weights=a=1.ckpt,b=2.ckpt"]
    assert run_by_hydra("pretrain", lambda cfg: seen.append(cfg), sweep) == 0
    assert [cfg.backbone.weights for cfg in seen] == ["a=1.ckpt", "b=2.ckpt"]


def test_what_a_sweep_refused_is_said_where_it_is_interrupted(capsys):
    def job(cfg):
        if cfg.seed == 2:
            raise KeyboardInterrupt
        raise ConfigError(f"seed={cfg.seed}: not this one")

    with pytest.raises(KeyboardInterrupt):
        run_by_hydra("pretrain", job, ["--multirun", "seed=1,2"])
    said = "solo-mim: seed=1: not this one (set on the command line)"
    assert said in capsys.readouterr().err


def test_only_what_is_of_the_configuration_is_told_as_such():
    def run(error):
        def job(_):
            raise error

        run_by_hydra("pretrain", job, ["seed=1"])

    with pytest.raises(UnicodeDecodeError):
        run(UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "of an image's name"))
    for message, place in (
        ("seed=1: no", " (set on the command line)"),
        ("seed must not be 1", " (set on the command line)"),
        ("seed by seed, nothing grows", ""),
    ):
        with pytest.raises(ConfigError, match=rf"{re.escape(message + place)}$"):
            run(ConfigError(message))


def test_a_recipes_schedule_that_outlasts_a_trial_run_is_said(compose_cfg, capsys):
    check_run(checked(compose_cfg("max_epochs=2")))
    check_run(checked(compose_cfg("max_epochs=1", "scheduler.name=none")))
    assert capsys.readouterr().out == ""
    check_run(checked(compose_cfg("max_epochs=1")))
    assert capsys.readouterr().out == (
        "note: scheduler.warmup_epochs=2 is more than max_epochs=1: optimizer.lr is never reached\n"
    )
    steps = ("scheduler.name=step", "scheduler.lr_decay_steps=[60,80]")
    check_run(checked(compose_cfg("max_epochs=100", *steps)))
    check_run(checked(compose_cfg("max_epochs=2", *steps)))
    assert capsys.readouterr().out == (
        "note: scheduler.lr_decay_steps: none is before the end, max_epochs=2\n"
    )


@pytest.mark.parametrize("name", ["../../evil", "a/b", "a\\b", "", "a\nb"])
def test_a_name_stays_in_the_folder_of_the_runs(name, compose_cfg):
    cfg = compose_cfg()
    cfg.name = name
    with pytest.raises(ConfigError, match=r"name=.* must be fit for a folder"):
        check_run(checked(cfg))


def _write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content + "\n")


def test_every_method_has_a_recipe(capsys):
    assert set(METHODS) - RECIPES == set()
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    for method in METHODS:
        assert re.search(rf"^{method} +(solo-learn|solo-mim).* method={method}$", shown, re.M)
    absent = RECIPES - set(METHODS)
    listed = re.search(r"only solo-learn main has: (.*)", shown)
    assert set(listed[1].split(", ") if listed else []) == absent


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", sorted(RECIPES & set(METHODS)))
def test_every_shipped_recipe_composes(method, data, compose_cfg):
    cfg = compose_cfg(f"method={method}", f"data={data}", "data.train_path=somewhere")
    assert cfg.method == method
    if data == "photo_patches":
        assert cfg.optimizer.name == "adamw"
        assert "eta" not in cfg.optimizer.kwargs, "no LARS settings for AdamW"
    assert cfg.backbone.name.startswith("vit_") == (method == "mae")
    crops = sum(pipeline.num_crops for pipeline in cfg.augmentations)
    cls = METHODS[method]
    cls.add_and_assert_specific_cfg(completed(cfg, 10, crops, 0))


def test_every_shipped_recipe_composes_on_solo_learn_main(passes_on_main):
    passes_on_main("-k", "recipe", Path(__file__))


def test_identity_follows_what_changes_the_result_and_nothing_else(compose_cfg):
    def identity_of(*overrides, made_with="released 1.0.2", images="0123"):
        return identity(OmegaConf.to_container(compose_cfg(*overrides)), made_with, images)

    base = identity_of()
    same = (
        "output_dir=elsewhere",
        "data.num_workers=3",
        "wandb.enabled=true",
        "progress_bar=false",
        "other_code=accept",
        "data.train_path=elsewhere",
    )
    for override in same:
        assert identity_of(override) == base, override
    for override in (
        "seed=6",
        "max_epochs=3",
        "method_kwargs.within_noise=0.5",
        "backbone.stem=small",
    ):
        assert identity_of(override) != base, override
    assert identity_of(made_with="current main") != base
    assert identity_of(images="4567") != base


def test_batch_of_one_is_refused(compose_cfg):
    with pytest.raises(ConfigError, match=r"optimizer.batch_size must be at least 2"):
        compose_cfg("optimizer.batch_size=1")


@pytest.mark.skipif("mae" in METHODS, reason="solo-learn main has it")
def test_a_method_of_main_alone_is_said_to_need_it():
    with pytest.raises(
        ConfigError, match=r"method=mae needs a checkout of solo-learn main .*1\.0\.2"
    ):
        find_method("mae")
    with pytest.raises(ConfigError, match=r"unknown method 'maee'"):
        find_method("maee")
