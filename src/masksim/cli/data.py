"""The commands ``masksim data list | label | download | prepare | verify``.

Results go to stdout (one JSON document with ``--json``), messages and progress to stderr. Exit
codes: 0 done, 2 wrong usage, 5 the data cannot be had or used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksim.cli.console import archive_folder, bars, errors, images_of, need, need_for_files, write
from masksim.errors import MasksimError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from masksim.data.prepare import Item
    from masksim.data.sources import Source

app = typer.Typer(
    name="data",
    help="Public image sets and your own: get them, prepare them, verify them.",
    no_args_is_help=True,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no messages.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads; default: one a core.")]
Table = Annotated[
    Path | None, typer.Option("--sources", help="A table of sets of your own (TOML).")
]


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    """Turn what goes wrong into a message and an exit code, as `errors`; into JSON if wanted."""
    with errors():
        try:
            yield
        except MasksimError as error:
            if as_json:
                _print_json({"ok": False, "error": {"code": error.code, "message": str(error)}})
            raise


def _bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@contextmanager
def _transfers(console: Console, quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """Draw a bar for each file under way; nothing where stderr is no terminal."""
    from threading import Lock

    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskID,
        TextColumn,
        TransferSpeedColumn,
    )

    drawn = not quiet and console.is_terminal
    drawing = bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        shown=drawn,
    )
    tasks: dict[str, TaskID] = {}
    lock = Lock()

    def show(name: str, done: int, total: int | None) -> None:
        if not drawn:
            return
        with lock:
            if name not in tasks:
                if len(tasks) >= 8:  # bars of transfers that failed, or whose end is not known
                    drawing.remove_task(tasks.pop(next(iter(tasks))))
                tasks[name] = drawing.add_task(name, total=total)
            drawing.update(tasks[name], completed=done, total=total)
            if total is not None and done >= total:
                drawing.remove_task(tasks.pop(name))

    with drawing:
        yield show


@contextmanager
def _counter(console: Console, quiet: bool, text: str) -> Iterator[Callable[[int, int, int], None]]:
    """Draw one bar for a run over many images."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    drawing = bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        shown=not quiet and console.is_terminal,
    )
    with drawing:
        task = drawing.add_task(text, total=None)

        def show(done: int, total: int, bad: int) -> None:
            label = f"{text} ({bad} bad)" if bad else text
            drawing.update(task, completed=done, total=total, description=label)

        yield show


# ---------------------------------------------------------------- list


@app.command("list")
def list_sets(sources: Table = None, as_json: Json = False) -> None:
    """List the public sets: home, licence, use, size, and how to get them."""
    with _errors(as_json):
        from masksim.data.sources import load_sources

        known = load_sources(sources)
        if as_json:
            _print_json({"sets": [source.as_dict() for source in known.values()]})
            return
        rows = [("set", "use", "size", "access", "licence")]
        rows += [
            (
                source.name,
                ", ".join(source.roles),
                _bytes(source.size) if source.size else "?",
                source.access,
                source.licence,
            )
            for source in known.values()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            write("  ".join(cells).rstrip())
        for source in known.values():
            text = f"\n{source.name}: {source.title}\n  {source.home}\n  {source.notes}"
            write(f"{text}\n  {source.manual}" if source.manual else text)


# ---------------------------------------------------------------- label


@app.command("label")
def label_files(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With folders below it.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The manifest: .csv or .parquet.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a manifest that is there.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a manifest of your own files by what each says of its origin, with the evidence."""
    console = _stderr()
    with _errors(as_json):
        from masksim.data.label import label_folder
        from masksim.data.manifest import REAL, write_manifest

        if out.suffix.lower() not in (".csv", ".parquet"):
            raise UsageError(f"--out {out}: a manifest is .csv or .parquet")
        if out.exists() and not overwrite:
            raise UsageError(f"{out} is there already: --overwrite replaces it")
        with _counter(console, quiet, "labelling") as progress:
            found = label_folder(folder, root=out.parent, progress=progress)
        digest = write_manifest(out, found.rows)
        counts: dict[str, int] = {}
        for row in found.rows:
            counts[row.generator] = counts.get(row.generator, 0) + 1
        if as_json:
            _print_json(
                {
                    "manifest": str(out),
                    "hash": digest,
                    "images": len(found.rows),
                    "generators": counts,
                    "without": dict(found.without),
                }
            )
            return
        typer.echo(f"{out}: {len(found.rows)} images, hash {digest}")
        for name, count in sorted(counts.items(), key=lambda item: (item[0] == REAL, -item[1])):
            typer.echo(f"  {name}: {count}")
        for why, count in found.without.items():
            typer.echo(f"  without a row: {count}, {why}")


# ---------------------------------------------------------------- download


@app.command("download")
def download_sets(
    names: Annotated[list[str], typer.Argument(metavar="SET...", help="Names, or all.")],
    data: Annotated[Path, typer.Option(help="Where the images go.")] = Path("data"),
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where archives go; default: see `masksim cache`."),
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(help="Another address for a moved file: URL, or FILE=URL (repeatable)."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="A CSV of URLs for a set whose list comes by a form.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Files at a time.")] = 4,
    attempts: Annotated[
        int, typer.Option(min=1, help="Tries in a row without a new byte before giving up.")
    ] = 6,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives/--drop-archives", help="Keep archives once unpacked.")
    ] = True,
    sources: Table = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download and unpack public sets; run it again to go on after an interruption."""
    console = _stderr()
    with _errors(as_json):
        need("data", "downloading", "httpx")
        from masksim.data.manifest import image_problem
        from masksim.data.sources import (
            Retry,
            SourceReport,
            apply_overrides,
            download_source,
            load_sources,
            pick_sources,
        )

        known = load_sources(sources)
        wanted = pick_sources(known, names)
        if (url or table) and len(wanted) > 1:
            raise UsageError("--url and --table go with one set")
        place = archive_folder(cache)
        reports = []
        for source in wanted:
            source = apply_overrides(source, url or [])
            if source.table and source.table.file is None and table is None:
                report = SourceReport(
                    source.name, problems=((source.name, "needs_request", source.manual),)
                )
            else:
                with _transfers(console, quiet) as progress:
                    report = download_source(
                        source,
                        data=data,
                        cache=place,
                        table=table,
                        workers=workers,
                        retry=Retry(attempts=attempts),
                        progress=progress,
                        check_image=image_problem,
                        keep_archives=keep_archives,
                    )
            reports.append(report)
            if not quiet:
                for file, code, message in report.problems[:20]:
                    console.print(f"{source.name}: {file}: {message} [{code}]", markup=False)
                if len(report.problems) > 20:
                    console.print(f"{source.name}: and {len(report.problems) - 20} more")
        ok = all(report.ok for report in reports)
        if as_json:
            _print_json({"ok": ok, "sets": [report.as_dict() for report in reports]})
        else:
            for report in reports:
                d = report.as_dict()
                typer.echo(
                    f"{d['set']}: {d['downloaded']} files downloaded ({_bytes(d['bytes'])}), "
                    f"{d['present']} there before, {d['unpacked']} unpacked, {d['failed']} missing"
                )
        if not ok:
            raise typer.Exit(5)


# ---------------------------------------------------------------- prepare


def _shares(text: str) -> dict[str, float]:
    parts = text.split("/")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or min(numbers) < 0 or sum(numbers) <= 0:
        raise UsageError(f"--shares must be TRAIN/VAL/TEST such as 80/10/10, got {text!r}")
    return dict(zip(("train", "val", "test"), (n / sum(numbers) for n in numbers), strict=True))


def _pair(text: str) -> tuple[str, str]:
    name, separator, folder = text.partition("=")
    if not separator or not name or not folder:
        raise UsageError(f"--synthetic must be NAME=DIR, got {text!r}")
    return name, folder


@app.command("prepare")
def prepare_sets(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SET...]", help="Public sets in --data; default: all that are there."
        ),
    ] = None,
    data: Annotated[Path, typer.Option(help="Where the raw sets are.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Where prepared images and the manifest go.")] = Path(
        "processed_data"
    ),
    real: Annotated[
        list[Path] | None, typer.Option(help="A folder of photographs of your own (repeatable).")
    ] = None,
    synthetic: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DIR: a folder of images made by NAME (repeatable)."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Prepare what a manifest or a filename,typ CSV lists.")
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(help="List a processed_data folder of the original, where it is."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="train, files, uncompressed, JPEG_Qrandom, JPEG_Q90, JPEG_Q70-90, WEBP_Qrandom, "
            "... (repeatable). Public sets: train and JPEG_Qrandom; others: files."
        ),
    ] = None,
    all_folders: Annotated[
        bool, typer.Option(help="Every variant for every folder, not test folders alone.")
    ] = False,
    window: Annotated[int, typer.Option(min=8, help="Side of the window, pixels.")] = 512,
    cut: Annotated[
        str, typer.Option(help="aligned (to the 8-pixel grid) or original (exact centre).")
    ] = "aligned",
    subsampling: Annotated[str, typer.Option(help="Chroma of JPEG.")] = "4:2:0",
    place: Annotated[
        str, typer.Option(help="Images that keep their bytes: link, copy or in-place.")
    ] = "link",
    shares: Annotated[
        str, typer.Option(help="Own folders: TRAIN/VAL/TEST shares of the images.")
    ] = "80/10/10",
    single_source: Annotated[
        str, typer.Option(help="Own folders, one source only: blocks or error.")
    ] = "blocks",
    split: Annotated[str, typer.Option(help="Split of a filename,typ CSV.")] = "test",
    seed: Annotated[int, typer.Option(help="Another draw of the random qualities.")] = 0,
    parquet: Annotated[bool, typer.Option(help="manifest.parquet instead of .csv.")] = False,
    workers: Workers = None,
    strict: Annotated[bool, typer.Option(help="Exit with 5 if any image failed.")] = False,
    sources: Table = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prepare images and write a manifest; run it again to go on after an interruption."""
    console = _stderr()
    with _errors(as_json):
        need_for_files(manifest)
        if parquet:
            need("parquet", "--parquet", "pyarrow")
        from masksim.data.manifest import read_manifest, scan_folders
        from masksim.data.prepare import (
            PrepareConfig,
            plan_manifest,
            plan_original,
            plan_sets,
            prepare,
        )
        from masksim.data.sources import load_sources, pick_sources

        own = bool(real or synthetic)
        if sum((own, manifest is not None, original is not None)) > 1 or (
            names and (own or manifest or original)
        ):
            raise UsageError(
                "give one of: names of sets, --real/--synthetic, --manifest, --original"
            )
        warnings: list[str] = []
        items: list[Item]
        if own:
            found, warnings = scan_folders(
                real or [],
                [_pair(text) for text in synthetic or []],
                shares=_shares(shares),
                single_source=single_source,
            )
            items = plan_manifest(found, variant or ["files"])
        elif manifest is not None:
            if place != "in-place" and manifest.absolute() == (out / "manifest.csv").absolute():
                raise UsageError(f"--out {out} would overwrite {manifest}; give another folder")
            listed = read_manifest(manifest, split=split)
            if len({row.split for row in listed.rows}) == 1:
                warnings = [
                    f"all {len(listed.rows)} images are in the split {listed.rows[0].split}; where "
                    "the list has no column of splits, --split names it"
                ]
            items = plan_manifest(listed, variant or ["files"])
        elif original is not None:
            chosen = variant or ["JPEG_Qrandom"]
            if len(chosen) > 1:
                raise UsageError("--original takes one --variant")
            items = plan_original(original, load_sources(sources), chosen[0])
            place, out = "in-place", original
        else:
            known = load_sources(sources)
            wanted: list[Source] = pick_sources(known, names) if names else list(known.values())
            items, warnings = plan_sets(
                wanted, data, variant or ["train", "JPEG_Qrandom"], all_folders=all_folders
            )
        config = PrepareConfig(
            window=window, cut=cut, subsampling=subsampling, place=place, seed=seed
        )
        with _counter(console, quiet, "preparing") as progress:
            report = prepare(
                items,
                out,
                config,
                workers=workers,
                progress=progress,
                warnings=warnings,
                manifest_name="manifest.parquet" if parquet else "manifest.csv",
            )
        if not quiet:
            for text in report.warnings:
                console.print(f"warning: {text}", markup=False)
            for failure in report.failures[:20]:
                console.print(f"{failure.path}: {failure.message} [{failure.code}]", markup=False)
            if len(report.failures) > 20:
                console.print(f"and {len(report.failures) - 20} more, see report.json")
        name = "manifest.parquet" if parquet else "manifest.csv"
        if as_json:
            _print_json(
                {
                    "ok": not report.failures,
                    "manifest": (out / name).as_posix(),
                    "made": report.made,
                    "kept": report.kept,
                    "seconds": round(report.seconds, 3),
                    **report.as_dict(),
                }
            )
        else:
            typer.echo(
                f"{(out / name).as_posix()}: {len(report.manifest.rows)} images "
                f"({report.made} made, {report.kept} kept), {len(report.failures)} failed, "
                f"hash {report.hash}"
            )
        if strict and report.failures:
            raise typer.Exit(5)


# ---------------------------------------------------------------- verify


@app.command("verify")
def verify_set(
    manifest: Annotated[Path, typer.Argument(help="A manifest, or the folder it is in.")],
    window: Annotated[int, typer.Option(min=8, help="Smaller images are reported.")] = 512,
    near: Annotated[
        int, typer.Option(min=-1, max=15, help="Bits near duplicates may differ; -1: do not look.")
    ] = 6,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="The leak probe.")] = True,
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    workers: Workers = None,
    strict: Annotated[bool, typer.Option(help="Exit with 5 on warnings, too.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Verify a prepared set: files, duplicates, balance, and what gives the answer away."""
    console = _stderr()
    with _errors(as_json):
        if near >= 0:
            need("data", "the search for near duplicates", "imagehash")
        if probe:
            need("data", "the leak probe", "sklearn", "scipy")
        need_for_files(manifest)
        from masksim.data.manifest import read_manifest
        from masksim.data.verify import verify

        path = manifest
        if path.is_dir():
            found = [path / f"manifest.{suffix}" for suffix in ("csv", "parquet")]
            path = next((p for p in found if p.is_file()), found[0])
        listed = read_manifest(path) if split is None else images_of(path, split)
        with _counter(console, quiet, "verifying") as progress:
            report = verify(
                listed,
                window=window,
                near_distance=None if near < 0 else near,
                probe=probe,
                workers=workers,
                progress=progress,
            )
        if as_json:
            _print_json(report.as_dict())
        else:
            for finding in report.findings:
                if finding.level != "note":
                    where = f"{finding.path}: " if finding.path else ""
                    typer.echo(f"{finding.level}: {where}{finding.message} [{finding.code}]")
            for result in report.probes:
                if result.auroc is None:
                    typer.echo(f"leak probe, {result.name}: not measured ({result.reason})")
                else:
                    typer.echo(
                        f"leak probe, {result.name}: AUROC {result.auroc:.3f} "
                        f"[{result.low:.3f}, {result.high:.3f}], {result.folds} folds by "
                        f"{result.groups}, {result.images} images"
                    )
            notes = len(report.findings) - report.errors - report.warnings
            typer.echo(
                f"{report.images} images, {report.readable} readable: {report.errors} errors, "
                f"{report.warnings} warnings, {notes} notes"
            )
        if report.errors or (strict and report.warnings):
            raise typer.Exit(5)


if __name__ == "__main__":
    app()
