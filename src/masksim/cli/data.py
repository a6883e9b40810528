"""The commands ``masksim data list | label | download | prepare | verify``.

Results go to stdout (one JSON document with ``--json``), messages and progress to stderr. Exit
codes: 0 done, 2 wrong usage, 5 the data cannot be had or used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksim.cli.console import (
    Json,
    Overwrite,
    archive_folder,
    argument,
    check_free,
    errors,
    images_of,
    need,
    need_for_files,
    option,
    say,
    stages,
    to_json,
    write,
)
from masksim.errors import DataError, UsageError

if TYPE_CHECKING:
    from masksim.data.prepare import Item

app = typer.Typer(
    name="data",
    help="Public image sets and your own: get them, prepare them, verify them.",
    no_args_is_help=True,
    add_completion=False,
)

Quiet = Annotated[bool, option("Show no progress and no messages.", "--quiet", "-q")]
Workers = Annotated[int | None, option("Threads; default: one a core.", min=1)]
Sources = Annotated[Path | None, option("A table of sets of your own (TOML).", "--sources")]

_SHOWN = 20  # problems of a set that are told one by one


def _document(value: Mapping[str, Any]) -> None:
    write(to_json(value, indent=2))


def _say_problems(problems: Sequence[str], before: str = "", more: str = "") -> None:
    """Say the first problems, and how many more there are."""
    for problem in problems[:_SHOWN]:
        say(before + problem)
    if len(problems) > _SHOWN:
        say(f"{before}and {len(problems) - _SHOWN} more{more}")


# ---------------------------------------------------------------- list


@app.command("list")
def list_sets(sources: Sources = None, as_json: Json = False) -> None:
    """List the public sets: home, licence, use, size, and how to get them."""
    with errors(as_json):
        from rich.filesize import decimal

        from masksim.data.sources import load_sources
        from masksim.show.tables import Column, Table

        known = load_sources(sources)
        if as_json:
            _document({"sets": [source.as_dict() for source in known.values()]})
            return
        names = ("set", "use", "size", "access")
        rows = tuple(
            (one.name, ", ".join(one.roles), decimal(one.size) if one.size else "?", one.access)
            for one in known.values()
        )
        columns = tuple(Column(name, name) for name in names)
        write(Table("sets", "Public image sets", columns, rows).to_text())
        for one in known.values():
            text = f"\n{one.name}: {one.title}\n  {one.home}\n  {one.licence}\n  {one.notes}"
            write(f"{text}\n  {one.manual}" if one.manual else text)


# ---------------------------------------------------------------- label


@app.command("label")
def label_files(
    folder: Annotated[Path, argument("Folder to list, with the folders below it.", "FOLDER")],
    out: Annotated[Path, option("The manifest: .csv or .parquet.", "--out", "-o", metavar="FILE")],
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a manifest of your own files by what each says of its origin, with the evidence."""
    with errors(as_json):
        from masksim.data.label import label_folder
        from masksim.data.manifest import REAL, write_manifest

        if out.suffix.lower() not in (".csv", ".parquet"):
            raise UsageError(f"--out {out}: a manifest is .csv or .parquet")
        check_free(out, overwrite=overwrite)
        with stages(not quiet) as progress:
            found = label_folder(folder, root=out.parent, progress=progress)
        digest = write_manifest(out, found.rows)
        counts = Counter(row.generator for row in found.rows)
        if as_json:
            _document(
                {
                    "manifest": str(out), "hash": digest, "images": len(found.rows),
                    "generators": counts, "without": dict(found.without),
                }
            )  # fmt: skip
            return
        write(f"{out}: {len(found.rows)} images, hash {digest}")
        for name, count in sorted(counts.items(), key=lambda item: (item[0] == REAL, -item[1])):
            write(f"  {name}: {count}")
        for why, count in found.without.items():
            write(f"  without a row: {count}, {why}")


# ---------------------------------------------------------------- download


@app.command("download")
def download_sets(
    names: Annotated[list[str], argument("Names of sets, or all.", "SET...")],
    data: Annotated[Path, option("Where the images go.")] = Path("data"),
    cache: Annotated[
        Path | None, option("Where archives go; default: see `masksim cache`.", metavar="DIR")
    ] = None,
    url: Annotated[
        list[str] | None, option("Another address for a moved file: URL, or FILE=URL (repeatable).")
    ] = None,
    table: Annotated[
        Path | None, option("A CSV of URLs for a set whose list comes by a form.")
    ] = None,
    workers: Annotated[int, option("Files to download at a time.", min=1)] = 4,
    attempts: Annotated[
        int, option("Tries in a row without a new byte before giving up.", min=1)
    ] = 6,
    keep_archives: Annotated[
        bool, option("Keep archives once unpacked.", "--keep-archives/--drop-archives")
    ] = True,
    sources: Sources = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download and unpack public sets; run it again to go on after an interruption."""
    with errors(as_json):
        need("data", "downloading", "httpx")
        from rich.filesize import decimal

        from masksim.data.download import Retry, SourceReport, download_source
        from masksim.data.scan import image_problem
        from masksim.data.sources import apply_overrides, load_sources, pick_sources

        wanted = pick_sources(load_sources(sources), names)
        if (url or table) and len(wanted) > 1:
            raise UsageError("--url and --table go with one set")
        place = archive_folder(cache)
        reports = []
        for source in (apply_overrides(one, url or []) for one in wanted):
            if source.table and source.table.file is None and table is None:
                problem = (source.name, "needs_request", source.manual)
                report = SourceReport(source.name, problems=(problem,))
            else:
                with stages(not quiet, in_bytes=True) as progress:
                    report = download_source(
                        source, data=data, cache=place, table=table, workers=workers,
                        retry=Retry(attempts=attempts), keep_archives=keep_archives,
                        progress=progress, check_image=image_problem,
                    )  # fmt: skip
            reports.append(report)
            if not quiet:
                problems = [f"{file}: {text} [{code}]" for file, code, text in report.problems]
                _say_problems(problems, f"{source.name}: ")
        ok = all(report.ok for report in reports)
        if as_json:
            _document({"ok": ok, "sets": [report.as_dict() for report in reports]})
        else:
            for report in reports:
                d = report.as_dict()
                write(
                    f"{d['set']}: {d['downloaded']} files downloaded ({decimal(d['bytes'])}), "
                    f"{d['present']} there before, {d['unpacked']} unpacked, {d['failed']} missing"
                )
        if not ok:
            raise typer.Exit(DataError.exit_code)


# ---------------------------------------------------------------- prepare


@dataclass(frozen=True)
class _Wanted:
    """What is to be prepared: one of public sets, own folders, a list, a folder of the original."""

    names: list[str]
    real: list[Path]
    synthetic: list[str]
    manifest: Path | None
    original: Path | None
    variant: list[str]
    data: Path
    out: Path
    sources: Path | None
    all_folders: bool
    shares: str
    single_source: str
    split: str
    in_place: bool

    def plan(self) -> tuple[list[Item], list[str]]:
        """List the images to make, and what is odd about the list.

        Raises
        ------
        UsageError
            The options do not go together.
        """
        from masksim.data.prepare import plan_manifest, plan_original, plan_sets
        from masksim.data.scan import scan_folders
        from masksim.data.sources import load_sources, pick_sources

        own = bool(self.real or self.synthetic)
        if sum((bool(self.names), own, bool(self.manifest), bool(self.original))) > 1:
            raise UsageError(
                "give one of: names of sets, --real/--synthetic, --manifest, --original"
            )
        if own:
            found, warnings = scan_folders(
                self.real, [_pair(text) for text in self.synthetic],
                shares=_shares(self.shares), single_source=self.single_source,
            )  # fmt: skip
            return plan_manifest(found, self.variant or ["files"]), warnings
        if self.manifest is not None:
            return self._plan_manifest(self.manifest)
        known = load_sources(self.sources)
        if self.original is not None:
            chosen = self.variant or ["JPEG_Qrandom"]
            if len(chosen) > 1:
                raise UsageError("--original takes one --variant")
            return plan_original(self.original, known, chosen[0]), []
        sets = pick_sources(known, self.names) if self.names else list(known.values())
        variants = self.variant or ["train", "JPEG_Qrandom"]
        return plan_sets(sets, self.data, variants, all_folders=self.all_folders)

    def _plan_manifest(self, manifest: Path) -> tuple[list[Item], list[str]]:
        from masksim.data.manifest import read_manifest
        from masksim.data.prepare import plan_manifest

        if not self.in_place and manifest.absolute() == (self.out / "manifest.csv").absolute():
            raise UsageError(f"--out {self.out} would overwrite {manifest}; give another folder")
        listed = read_manifest(manifest, split=self.split)
        warnings = []
        if len({row.split for row in listed.rows}) == 1:
            warnings = [
                f"all {len(listed.rows)} images are in the split {listed.rows[0].split}; where the "
                "list has no column of splits, --split names it"
            ]
        return plan_manifest(listed, self.variant or ["files"]), warnings


def _shares(text: str) -> dict[str, float]:
    try:
        numbers = [float(part) for part in text.split("/")]
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
        argument("Public sets in --data; default: all that are there.", "[SET...]"),
    ] = None,
    data: Annotated[Path, option("Where the raw sets are.")] = Path("data"),
    out: Annotated[Path, option("Where prepared images and the manifest go.")] = Path(
        "processed_data"
    ),
    real: Annotated[
        list[Path] | None, option("A folder of photographs of your own (repeatable).")
    ] = None,
    synthetic: Annotated[
        list[str] | None, option("NAME=DIR: a folder of images made by NAME (repeatable).")
    ] = None,
    manifest: Annotated[
        Path | None, option("Prepare what a manifest or a filename,typ CSV lists.")
    ] = None,
    original: Annotated[
        Path | None, option("List a processed_data folder of the original, where it is.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        option(
            "train, files, uncompressed, JPEG_Qrandom, JPEG_Q90, JPEG_Q70-90, WEBP_Qrandom, ... "
            "(repeatable). Public sets: train and JPEG_Qrandom; others: files."
        ),
    ] = None,
    all_folders: Annotated[
        bool, option("Every variant for every folder, not test folders alone.")
    ] = False,
    window: Annotated[int, option("Side of the window, pixels.", min=8)] = 512,
    cut: Annotated[
        str,
        option("Where the window lies: aligned (to the 8-pixel grid) or original (exact centre)."),
    ] = "aligned",
    subsampling: Annotated[str, option("Chroma subsampling of JPEG.")] = "4:2:0",
    place: Annotated[str, option("Images that keep their bytes: link, copy or in-place.")] = "link",
    shares: Annotated[
        str, option("Own folders: TRAIN/VAL/TEST shares of the images.")
    ] = "80/10/10",
    single_source: Annotated[
        str, option("Own folders, one source only: blocks or error.")
    ] = "blocks",
    split: Annotated[str, option("Split of a filename,typ CSV.")] = "test",
    seed: Annotated[int, option("Seed of the random qualities.")] = 0,
    parquet: Annotated[bool, option("Write manifest.parquet instead of .csv.")] = False,
    workers: Workers = None,
    strict: Annotated[bool, option("Exit with 5 if any image failed.")] = False,
    sources: Sources = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prepare images and write a manifest; run it again to go on after an interruption."""
    with errors(as_json):
        need_for_files(manifest)
        if parquet:
            need("parquet", "--parquet", "pyarrow")
        from masksim.data.prepare import PrepareConfig, prepare

        if original is not None:
            place, out = "in-place", original
        wanted = _Wanted(
            names or [], real or [], synthetic or [], manifest, original, variant or [], data, out,
            sources, all_folders, shares, single_source, split, place == "in-place",
        )  # fmt: skip
        items, warnings = wanted.plan()
        name = "manifest.parquet" if parquet else "manifest.csv"
        with stages(not quiet) as progress:
            report = prepare(
                items, out, PrepareConfig(window, cut, subsampling, place, seed),
                workers=workers, warnings=warnings, manifest_name=name,
                progress=progress,
            )  # fmt: skip
        if not quiet:
            for text in report.warnings:
                say(f"warning: {text}")
            problems = [f"{one.path}: {one.message} [{one.code}]" for one in report.failures]
            _say_problems(problems, more=", see report.json")
        path = (out / name).as_posix()
        if as_json:
            _document(
                {
                    "ok": not report.failures, "manifest": path, "made": report.made,
                    "kept": report.kept, "seconds": round(report.seconds, 3), **report.as_dict(),
                }
            )  # fmt: skip
        else:
            write(
                f"{path}: {len(report.manifest.rows)} images ({report.made} made, {report.kept} "
                f"kept), {len(report.failures)} failed, hash {report.hash}"
            )
        if strict and report.failures:
            raise typer.Exit(DataError.exit_code)


# ---------------------------------------------------------------- verify


@app.command("verify")
def verify_set(
    manifest: Annotated[Path, argument("A manifest, or the folder it is in.")],
    window: Annotated[int, option("Smaller images are reported.", min=8)] = 512,
    near: Annotated[
        int, option("Bits near duplicates may differ; -1: do not look.", min=-1, max=15)
    ] = 6,
    probe: Annotated[bool, option("Run the leak probe.")] = True,
    split: Annotated[str | None, option("Verify only the images of this split.")] = None,
    workers: Workers = None,
    strict: Annotated[bool, option("Exit with 5 on warnings, too.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Verify a prepared set: files, duplicates, balance, and what gives the answer away."""
    with errors(as_json):
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
        with stages(not quiet) as progress:
            report = verify(
                listed, window=window, near_distance=None if near < 0 else near, probe=probe,
                workers=workers, progress=progress,
            )  # fmt: skip
        if as_json:
            _document(report.as_dict())
        else:
            for finding in report.findings:
                if finding.level != "note":
                    where = f"{finding.path}: " if finding.path else ""
                    write(f"{finding.level}: {where}{finding.message} [{finding.code}]")
            for result in report.probes:
                if result.auroc is None:
                    write(f"leak probe, {result.name}: not measured ({result.reason})")
                else:
                    write(
                        f"leak probe, {result.name}: AUROC {result.auroc:.3f} "
                        f"[{result.low:.3f}, {result.high:.3f}], {result.folds} folds by "
                        f"{result.groups}, {result.images} images"
                    )
            notes = len(report.findings) - report.errors - report.warnings
            write(
                f"{report.images} images, {report.readable} readable: {report.errors} errors, "
                f"{report.warnings} warnings, {notes} notes"
            )
        if report.errors or (strict and report.warnings):
            raise typer.Exit(DataError.exit_code)


if __name__ == "__main__":
    app()
