"""The commands that make detectors: ``train``, ``train-residual``, ``enroll``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksim.cli.console import (
    Cache,
    Json,
    ManifestFile,
    Model,
    Overwrite,
    Workers,
    cache_folder,
    errors,
    images_of,
    leads,
    need,
    need_for_files,
    say,
    stages,
    to_json,
    write,
)
from masksim.errors import UsageError, counted

if TYPE_CHECKING:
    from masksim.data.manifest import Manifest


class Recipe(str, Enum):
    """How a detector is made."""

    shared = "shared"
    bands = "bands"
    original = "original"


class Device(str, Enum):
    """Where a network is trained."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(str, Enum):
    """What a residual network is computed in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


_OF_ORIGINAL = "Recipe original"  # headings in the help
_OF_RUN = "Device and run"

RunDevice = Annotated[Device, typer.Option("--device", help="Where.", rich_help_panel=_OF_RUN)]
RunPrecision = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Of residual networks; auto: float32. bfloat16 rounds what is measured.",
        rich_help_panel=_OF_RUN,
    ),
]
RunWorkers = Annotated[
    int, typer.Option("--workers", min=0, help="Processes that read and process images.")
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="DIR", help="States and logs of the run; default: OUT.run.",
        rich_help_panel=_OF_RUN,
    ),
]  # fmt: skip
SaveEvery = Annotated[
    int,
    typer.Option(
        "--save-every", min=1, help="Steps between two saved states.", rich_help_panel=_OF_RUN
    ),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Curves for TensorBoard.", rich_help_panel=_OF_RUN)
]
Bar = Annotated[bool, typer.Option("--progress/--no-progress", help="Show progress on stderr.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of all draws.")]
LimitSteps = Annotated[
    int | None,
    typer.Option(
        "--limit-steps", min=0, help="Steps in all; 0: no limit.", rich_help_panel=_OF_RUN
    ),
]


def _original(*names: str, help: str, **options: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_OF_ORIGINAL, **options)


def train(
    manifest: ManifestFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The detector to write.")],
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="A TOML file; options override it.")
    ] = None,
    recipe: Annotated[
        Recipe | None, typer.Option("--recipe", help="Default: what CONFIG says, else shared.")
    ] = None,
    cache: Cache = None,
    workers: RunWorkers = 1,
    seed: Seed = None,
    overwrite: Overwrite = False,
    progress: Bar = True,
    as_json: Json = False,
    window: Annotated[
        int | None, _original("-w", "--window", help="Side of the window, pixels.")
    ] = None,
    batch: Annotated[int | None, _original("-b", "--batch", help="Images a step.")] = None,
    epochs: Annotated[int | None, _original("-e", "--epochs", help="Epochs.")] = None,
    preprocess: Annotated[
        str | None,
        _original("-p", "--preprocess", help="DnCNN, light, linear3x3, cross_diff or none."),
    ] = None,
    quality: Annotated[
        str | None,
        _original("-Q", "--quality", help="Of the compression: 90, 65-100 or random."),
    ] = None,
    compression: Annotated[
        str | None, _original("--compression", help="jpeg, webp or none.")
    ] = None,
    colour: Annotated[
        str | None, _original("--colour", help="Colour space; default: by the compression.")
    ] = None,
    tag: Annotated[str | None, _original("-v", "--tag", help="Added to the name.")] = None,
    multi_class: Annotated[
        bool | None,
        _original("--multi-class/--single-class", help="One detector of all generators."),
    ] = None,
    generator: Annotated[
        list[str] | None, _original("--generator", metavar="G", help="Only this one; repeat.")
    ] = None,
    num_masks: Annotated[int | None, _original("--num-masks", help="Masks.")] = None,
    freeze: Annotated[
        bool | None, _original("--freeze/--fine-tune", help="Leave the residual as it is.")
    ] = None,
    resize_reals: Annotated[
        bool | None,
        _original(
            "--resize-reals/--resize-both",
            help="Resize photos only, as the original does: a label leak.",
        ),
    ] = None,
    residual_weights: Annotated[
        Path | None,
        _original("--residual-weights", metavar="FILE", help="What the DnCNN starts from."),
    ] = None,
    limit_steps: LimitSteps = None,
    device: RunDevice = Device.auto,
    precision: RunPrecision = Precision.auto,
    run: RunFolder = None,
    save_every: SaveEvery = 500,
    tensorboard: TensorBoard = False,
) -> None:
    """Train a detector of every generator in a manifest's train split."""
    with errors():
        need("train", "`masksim train`", "sklearn", "scipy", "onnx")
        need_for_files(manifest)
        from masksim.config import read_toml

        values = {} if config is None else read_toml(config)
        named = values.pop("recipe", Recipe.shared.value)
        try:
            chosen = Recipe(named) if recipe is None else recipe
        except ValueError as error:
            raise UsageError(f"unknown recipe {named!r}; known: shared, bands, original") from error
        original = {
            "window": window, "batch": batch, "epochs": epochs, "preprocess": preprocess,
            "quality": _quality(quality), "compression": compression, "colour": colour, "tag": tag,
            "multi_class": multi_class, "generators": generator, "num_masks": num_masks,
            "freeze": freeze, "resize_reals": resize_reals, "limit_steps": limit_steps,
        }  # fmt: skip
        given = {key: value for key, value in original.items() if value is not None}
        if seed is not None:
            values["seed"] = seed
        if chosen is not Recipe.original:
            of_run = {
                "residual_weights": residual_weights, "run": run,
                "tensorboard": tensorboard or None,
                "device": None if device is Device.auto else device,
                "precision": None if precision is Precision.auto else precision,
            }  # fmt: skip
            more = [*given, *(key for key, value in of_run.items() if value is not None)]
            if more:
                raise UsageError(
                    f"{', '.join(sorted(more))}: of the recipe original (--recipe original)"
                )
            _train_heads(
                chosen, values, manifest, out, cache, max(1, workers), overwrite, progress, as_json
            )
            return
        options = _options(device, precision, workers, save_every, tensorboard)
        _train_original(
            {**values, **given}, manifest, out, residual_weights, run, options, overwrite,
            progress, as_json,
        )  # fmt: skip


def _quality(text: str | None) -> Any:
    """Read ``90``, ``65-100`` or ``random``."""
    if text is None or not text[:1].isdigit():
        return text
    ends = text.split("-")
    if len(ends) > 2 or not all(end.isdigit() for end in ends):
        raise UsageError(f"--quality must be like 90, 65-100 or random, got {text!r}")
    return int(text) if len(ends) == 1 else [int(end) for end in ends]


def _options(
    device: Device, precision: Precision, workers: int, save_every: int, tensorboard: bool
) -> Any:
    need("train", "training by gradient", "torch")
    if tensorboard:
        need("tensorboard", "--tensorboard", "tensorboard")
    from masksim.training.loop import RunOptions

    return RunOptions(
        device=device.value, precision=precision.value, workers=workers,
        save_every=save_every, tensorboard=tensorboard,
    )  # fmt: skip


def _train_heads(
    recipe: Recipe,
    values: Mapping[str, Any],
    manifest: Path,
    out: Path,
    cache: Path | None,
    workers: int,
    overwrite: bool,
    shown: bool,
    as_json: bool,
) -> None:
    from masksim.data.manifest import read_manifest
    from masksim.training.bands import BandsConfig, train_bands
    from masksim.training.shared import SharedConfig, train_shared

    listed = read_manifest(manifest)
    shared = recipe is Recipe.shared
    if shared:
        images_of(manifest, "train")
    config: Any = (SharedConfig if shared else BandsConfig).from_dict(values)
    make: Any = train_shared if shared else train_bands
    place = cache_folder(cache, manifest)
    with stages(shown) as progress:
        made, _ = make(
            listed, out, config,
            cache=place, workers=workers, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if shared:
        _note_too_few(listed, made.generators, config.smallest_class)
    auroc = made.provenance["cross_validated_auroc"]
    if as_json:
        write(to_json({"detector": str(out), "sha256": made.sha256, "auroc": auroc}))
        return
    write(f"{out}: sha256 {made.sha256}")
    for name, value in auroc.items():
        write(f"  {name}: cross-validated AUROC {value:.3f}")
    _note_skipped(made.provenance["skipped"])


def _train_original(
    values: Mapping[str, Any],
    manifest: Path,
    out: Path,
    residual_weights: Path | None,
    run: Path | None,
    options: Any,
    overwrite: bool,
    shown: bool,
    as_json: bool,
) -> None:
    from masksim.data.manifest import read_manifest
    from masksim.original.train import OriginalConfig, train_original

    config = OriginalConfig.from_dict(values)
    if config.residual.is_stack and residual_weights is None and leads():
        say(
            "note: the residual network starts from random numbers; `masksim train-residual` makes "
            "one to start from (--residual-weights)"
        )
    images_of(manifest, "train")
    listed = read_manifest(manifest)
    with stages(shown) as progress:
        made = train_original(
            listed, out, config, residual_weights=residual_weights, run=run,
            options=options, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if not leads():
        return
    if not config.generators:
        _note_too_few(listed, made.file.generators, config.smallest_class)
    best = {name: dict(values) for name, values in made.best.items()}
    if as_json:
        write(to_json({"detector": str(out), "sha256": made.file.sha256, "best": best}))
        return
    write(f"{out}: sha256 {made.file.sha256}")
    for name, found in best.items():
        write(
            f"  {name}: epoch {found['epoch']}, validation loss {found['valid_loss']:.3f}, "
            f"AUROC {found['valid_auroc']:.3f}"
        )
    _note_skipped(made.skipped)


def _note_too_few(listed: Manifest, made: Sequence[str], smallest: int) -> None:
    """Say which generators have got no head."""
    from masksim.data.manifest import REAL

    counts = listed.counts().get("train", {})
    missing = {n: count for n, count in counts.items() if n != REAL and n not in made}
    if missing:
        say(
            f"warning: no head for generators of fewer than {smallest} usable images in the train "
            f"split: {', '.join(f'{name} ({count})' for name, count in missing.items())}"
        )


def _note_skipped(skipped: Mapping[str, int]) -> None:
    if skipped:
        say(f"note: images left out: {counted(skipped)}")


def train_residual(
    manifest: ManifestFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The network to write.")],
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="A TOML file; options override it.")
    ] = None,
    sigma: Annotated[
        float | None, typer.Option("--sigma", help="Deviation of the noise, 8-bit levels.")
    ] = None,
    light: Annotated[bool, typer.Option("--light", help="The small network.")] = False,
    depth: Annotated[int | None, typer.Option("--depth", help="Layers.")] = None,
    features: Annotated[int | None, typer.Option("--features", help="Hidden channels.")] = None,
    patch: Annotated[int | None, typer.Option("--patch", help="Side of a patch, pixels.")] = None,
    batch: Annotated[int | None, typer.Option("-b", "--batch", help="Patches a step.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps in all.")] = None,
    colour: Annotated[str | None, typer.Option("--colour", help="Colour space.")] = None,
    workers: RunWorkers = 1,
    seed: Seed = None,
    overwrite: Overwrite = False,
    progress: Bar = True,
    as_json: Json = False,
    device: RunDevice = Device.auto,
    precision: RunPrecision = Precision.auto,
    run: RunFolder = None,
    save_every: SaveEvery = 500,
    tensorboard: TensorBoard = False,
) -> None:
    """Train a residual network: a denoiser of the real photos of the train split."""
    with errors():
        options = _options(device, precision, workers, save_every, tensorboard)
        need_for_files(manifest)
        from masksim.config import read_toml
        from masksim.data.manifest import read_manifest
        from masksim.original.denoiser import DenoiserConfig, train_denoiser

        given = {
            "sigma": sigma, "depth": depth, "features": features, "patch": patch, "batch": batch,
            "steps": steps, "colour": colour, "seed": seed,
        }  # fmt: skip
        values = {} if config is None else read_toml(config)
        chosen = DenoiserConfig.from_dict(
            {
                **values,
                **(DenoiserConfig.light_values() if light else {}),
                **{key: value for key, value in given.items() if value is not None},
            }
        )
        images_of(manifest, "train")
        with stages(progress) as report:
            made = train_denoiser(
                read_manifest(manifest), out, chosen, run=run, options=options,
                overwrite=overwrite, progress=report,
            )  # fmt: skip
        if not leads():
            return
        if as_json:
            write(to_json({"residual": str(out), **made}))
            return
        write(
            f"{out}: noise of {chosen.sigma:g} levels, PSNR {made['psnr_noisy']:.2f} dB -> "
            f"{made['psnr']:.2f} dB on other {made['validated_on']}"
        )
        if made["psnr_gain"] <= 0:
            say("warning: the network takes no noise away yet: train it longer (--steps)")


def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new generator's name.")],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders of its images; a sub-folder is a source."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The detector to write.")],
    real: Annotated[
        list[Path] | None,
        typer.Option("--real", metavar="DIR", help="A folder of further real photos; repeatable."),
    ] = None,
    model: Model = None,
    views: Annotated[int, typer.Option(min=1, help="Draws of processing for each image.")] = 6,
    cache: Cache = None,
    workers: Workers = 1,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Add a generator to a detector, from a folder of 50 to 500 of its images."""
    with errors():
        need("enroll", "`masksim enroll`", "sklearn", "scipy")
        from masksim.checkpoint import DetectorFile, check_target
        from masksim.detector import bundled_path
        from masksim.training.enroll import EnrollConfig
        from masksim.training.enroll import enroll as add

        check_target(out, overwrite)  # before minutes of work, not after
        before = DetectorFile.load(bundled_path() if model is None else model)
        place = cache_folder(cache, *images, *(real or ()))
        with stages() as progress:
            made, outcome = add(
                before, name, images, real=real or (), cache=place, workers=workers,
                config=EnrollConfig(views=views), progress=progress,
            )  # fmt: skip
        saved = made.save(out, overwrite=overwrite)
        if as_json:
            write(to_json({"detector": str(out), "sha256": saved.sha256, **outcome.to_dict()}))
            return
        auroc = outcome.auroc
        write(f"{out}: {len(saved.generators)} generators, sha256 {saved.sha256}")
        write(
            f"  {name}: {outcome.images} images of {outcome.sources} sources against "
            f"{outcome.photos} real photos"
        )
        write(
            f"  cross-validated AUROC {auroc.value:.3f}, 95 % interval {auroc.low:.3f} to "
            f"{auroc.high:.3f}"
        )
        if (elsewhere := outcome.auroc_new_sources) is not None:
            write(
                f"  with whole sources left out {elsewhere.value:.3f}, 95 % interval "
                f"{elsewhere.low:.3f} to {elsewhere.high:.3f}"
            )
        if outcome.skipped:
            say(f"note: images left out: {counted(outcome.skipped)}")
        for warning in outcome.warnings:
            say(f"warning: {warning}")
