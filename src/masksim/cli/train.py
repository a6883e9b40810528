"""The commands that make detectors: ``train``, ``train-residual``, ``enroll``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from masksim.cli.console import (
    Cache,
    Json,
    ManifestFile,
    Model,
    Overwrite,
    Workers,
    argument,
    cache_folder,
    errors,
    images_of,
    leads,
    need,
    need_for_files,
    option,
    say,
    stages,
    to_json,
    write,
)
from masksim.config import read_toml
from masksim.errors import UsageError, counted

if TYPE_CHECKING:
    from masksim.data.manifest import Manifest
    from masksim.training.processes import RunOptions


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


_original = partial(option, rich_help_panel="Recipe original")
_of_run = partial(option, rich_help_panel="Device and run")

RunDevice = Annotated[Device, _of_run("Where the training runs.", "--device")]
RunPrecision = Annotated[
    Precision,
    _of_run(
        "For residual networks; auto: float32. bfloat16 rounds what is measured.", "--precision"
    ),
]
RunWorkers = Annotated[int, option("Processes that read and process images.", "--workers", min=0)]
RunFolder = Annotated[
    Path | None, _of_run("States and logs of the run; default: OUT.run.", "--run", metavar="DIR")
]
SaveEvery = Annotated[int, _of_run("Steps between two saved states.", "--save-every", min=1)]
TensorBoard = Annotated[bool, _of_run("Curves for TensorBoard.", "--tensorboard")]
LimitSteps = Annotated[int | None, _of_run("Steps in all; 0: no limit.", "--limit-steps", min=0)]
Bar = Annotated[bool, option("Show progress on stderr.", "--progress/--no-progress")]
Seed = Annotated[int | None, option("Seed of all random draws.", "--seed")]
Config = Annotated[Path | None, argument("A TOML file; options override it.", "[CONFIG]")]


@dataclass(frozen=True)
class _Run:
    """What the commands that train have in common."""

    manifest: Path
    out: Path
    overwrite: bool
    shown: bool  # progress
    as_json: bool

    def images(self) -> Manifest:
        """Read the images; there must be some to train on."""
        from masksim.data.manifest import read_manifest

        images_of(self.manifest, "train")
        return read_manifest(self.manifest)


def train(
    manifest: ManifestFile,
    out: Annotated[Path, option("The detector to write.", metavar="DIR")],
    config: Config = None,
    recipe: Annotated[
        Recipe | None, option("Recipe to train by; default: what CONFIG says, else shared.")
    ] = None,
    cache: Cache = None,
    workers: RunWorkers = 1,
    seed: Seed = None,
    overwrite: Overwrite = False,
    progress: Bar = True,
    as_json: Json = False,
    window: Annotated[
        int | None, _original("Side of the window, pixels.", "-w", "--window")
    ] = None,
    batch: Annotated[int | None, _original("Images a step.", "-b", "--batch")] = None,
    epochs: Annotated[int | None, _original("Epochs.", "-e", "--epochs")] = None,
    preprocess: Annotated[
        str | None,
        _original("Residual: DnCNN, light, linear3x3, cross_diff or none.", "-p", "--preprocess"),
    ] = None,
    quality: Annotated[
        str | None,
        _original("Quality of the compression: 90, 65-100 or random.", "-Q", "--quality"),
    ] = None,
    compression: Annotated[str | None, _original("Compression: jpeg, webp or none.")] = None,
    colour: Annotated[str | None, _original("Colour space; default: by the compression.")] = None,
    tag: Annotated[str | None, _original("Added to the name.", "-v", "--tag")] = None,
    multi_class: Annotated[
        bool | None, _original("One detector of all generators.", "--multi-class/--single-class")
    ] = None,
    generator: Annotated[
        list[str] | None, _original("Only this generator; repeatable.", metavar="G")
    ] = None,
    num_masks: Annotated[int | None, _original("Number of masks.")] = None,
    freeze: Annotated[
        bool | None, _original("Leave the residual as it is.", "--freeze/--fine-tune")
    ] = None,
    resize_reals: Annotated[
        bool | None,
        _original(
            "Resize photos only, as the original does: a label leak.",
            "--resize-reals/--resize-both",
        ),
    ] = None,
    residual_weights: Annotated[
        Path | None, _original("What the DnCNN starts from.", metavar="FILE")
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
        this = _Run(manifest, out, overwrite, progress, as_json)
        if chosen is Recipe.original:
            options = _options(device, precision, workers, save_every, tensorboard)
            _train_original({**values, **given}, this, residual_weights, run, options)
            return
        of_run = {
            "residual_weights": residual_weights, "run": run, "tensorboard": tensorboard or None,
            "device": None if device is Device.auto else device,
            "precision": None if precision is Precision.auto else precision,
        }  # fmt: skip
        more = [*given, *(key for key, value in of_run.items() if value is not None)]
        if more:
            raise UsageError(
                f"{', '.join(sorted(more))}: of the recipe original (--recipe original)"
            )
        _train_heads(chosen, values, this, cache, max(1, workers))


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
) -> RunOptions:
    need("train", "training by gradient", "torch")
    if tensorboard:
        need("tensorboard", "--tensorboard", "tensorboard")
    from masksim.training.processes import RunOptions

    return RunOptions(
        device=device.value, precision=precision.value, workers=workers,
        save_every=save_every, tensorboard=tensorboard,
    )  # fmt: skip


def _train_heads(
    recipe: Recipe, values: Mapping[str, Any], this: _Run, cache: Path | None, workers: int
) -> None:
    from masksim.data.manifest import read_manifest
    from masksim.training.bands import BandsConfig, train_bands
    from masksim.training.shared import SharedConfig, train_shared

    shared = recipe is Recipe.shared
    listed = this.images() if shared else read_manifest(this.manifest)
    config: Any = (SharedConfig if shared else BandsConfig).from_dict(values)
    if not shared and config.learned is not None:
        need("train", "a learned residual", "torch")
    make: Any = train_shared if shared else train_bands
    place = cache_folder(cache, this.manifest)
    with stages(this.shown) as progress:
        made, _ = make(
            listed, this.out, config,
            cache=place, workers=workers, overwrite=this.overwrite, progress=progress,
        )  # fmt: skip
    if shared:
        _note_too_few(listed, made.generators, config.smallest_class)
    auroc = made.provenance["cross_validated_auroc"]
    if this.as_json:
        write(to_json({"detector": str(this.out), "sha256": made.sha256, "auroc": auroc}))
        return
    write(f"{this.out}: sha256 {made.sha256}")
    for name, value in auroc.items():
        write(f"  {name}: cross-validated AUROC {value:.3f}")
    _note_skipped(made.provenance["skipped"])


def _train_original(
    values: Mapping[str, Any],
    this: _Run,
    residual_weights: Path | None,
    run: Path | None,
    options: RunOptions,
) -> None:
    from masksim.original.config import OriginalConfig
    from masksim.original.train import train_original

    config = OriginalConfig.from_dict(values)
    if config.residual.is_stack and residual_weights is None and leads():
        say(
            "note: the residual network starts from random numbers; `masksim train-residual` makes "
            "one to start from (--residual-weights)"
        )
    listed = this.images()
    with stages(this.shown) as progress:
        made = train_original(
            listed, this.out, config, residual_weights=residual_weights, run=run,
            options=options, overwrite=this.overwrite, progress=progress,
        )  # fmt: skip
    if not leads():
        return
    if not config.generators:
        _note_too_few(listed, made.file.generators, config.smallest_class)
    best = {name: dict(values) for name, values in made.best.items()}
    if this.as_json:
        write(to_json({"detector": str(this.out), "sha256": made.file.sha256, "best": best}))
        return
    write(f"{this.out}: sha256 {made.file.sha256}")
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
    out: Annotated[Path, option("The network to write.", metavar="DIR")],
    config: Config = None,
    sigma: Annotated[float | None, option("Deviation of the noise, 8-bit levels.")] = None,
    light: Annotated[bool, option("The small network.", "--light")] = False,
    depth: Annotated[int | None, option("Number of layers.")] = None,
    features: Annotated[int | None, option("Number of hidden channels.")] = None,
    patch: Annotated[int | None, option("Side of a patch, pixels.")] = None,
    batch: Annotated[int | None, option("Patches a step.", "-b", "--batch")] = None,
    steps: Annotated[int | None, option("Steps in all.")] = None,
    colour: Annotated[str | None, option("Colour space.")] = None,
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
        listed = _Run(manifest, out, overwrite, progress, as_json).images()
        with stages(progress) as report:
            made = train_denoiser(
                listed, out, chosen, run=run, options=options,
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
    name: Annotated[str, argument("The new generator's name.", "NAME")],
    images: Annotated[
        list[Path], argument("Folders of its images; a sub-folder is a source.", "DIR...")
    ],
    out: Annotated[Path, option("The detector to write.", metavar="DIR")],
    real: Annotated[
        list[Path] | None, option("A folder of further real photos; repeatable.", metavar="DIR")
    ] = None,
    model: Model = None,
    views: Annotated[int, option("Draws of processing for each image.", min=1)] = 6,
    cache: Cache = None,
    workers: Workers = 1,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Add a generator to a detector, from a folder of 50 to 500 of its images."""
    with errors():
        need("enroll", "`masksim enroll`", "sklearn", "scipy")
        from masksim.checkpoint import DetectorFile, check_target
        from masksim.load import bundled_path
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
