"""The commands of the filed report: ``masksim report`` and ``masksim report verify``."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from masksim.cli.console import (
    Json,
    Model,
    Overwrite,
    argument,
    check_free,
    errors,
    explained,
    option,
    say,
    to_json,
    write,
)
from masksim.errors import ImageError, UsageError
from masksim.files import write_whole

NOT_VERIFIED = 1
"""Exit code of ``masksim report verify`` where a check failed or could not be made."""


class _ImageFirst(TyperGroup):
    """A group whose name may be followed by an image: ``report make`` need not be written."""

    # Any: what typer's groups are made of is click's, or a copy of it, by version.
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Take what is no command for the arguments of ``make``."""
        if args and args[0] not in self.commands:
            args = ["make", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave options before the image to ``make``, too."""
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["make", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show what `make` takes as the group's own: that is how it is called."""
        shown = copy.copy(self)
        shown.params = list(self.commands["make"].params)
        super(_ImageFirst, shown).format_help(ctx, formatter)


app = typer.Typer(
    name="report",
    cls=_ImageFirst,
    subcommand_metavar="",
    help="Write what was found in an image as one HTML file, and check such files: "
    "`masksim report IMAGE -o report.html`, `masksim report verify REPORT IMAGE`.",
    no_args_is_help=True,
)


@app.command(hidden=True)
def make(
    image: Annotated[str, argument("An image file; - is one on stdin.", "IMAGE")],
    out: Annotated[Path, option("The HTML file to write.", "--out", "-o", metavar="FILE")],
    model: Model = None,
    maps: Annotated[
        str, option("Draw the maps of the N most telling generators.", metavar="all|N")
    ] = "3",
    channels: Annotated[
        bool, typer.Option("--channels", help="Draw the single channels of these maps, too.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Detect an image and write a report: `make` may be left out."""
    with errors():
        if maps != "all" and not maps.isdecimal():
            raise UsageError(f"--maps takes a number or all, not {maps!r}")
        check_free(out, overwrite=overwrite)  # before the work is done
        if not out.parent.is_dir():
            raise UsageError(f"cannot write {out}: there is no folder {out.parent}")
        from masksim.dossier.build import make_report
        from masksim.load import load_detector

        detector = load_detector(model)
        try:
            report = make_report(
                detector,
                _stdin() if image == "-" else image,
                name="<stdin>" if image == "-" else image,
                maps="all" if maps == "all" else int(maps),
                channels=channels,
                model=None if model is None else model.name or str(model),
            )
        except ImageError as error:
            raise ImageError(explained(image, error), code=error.code) from error
        write_whole(out, report.html)
        if as_json:
            write(
                to_json(
                    {
                        "report": str(out),
                        "n_bytes": len(report.html),
                        "seal": report.seal,
                        **report.data["detection"],
                    }
                )
            )
            return
        from masksim.provenance.untrusted_text import printable

        write(f"{printable(str(out))}: {printable(report.detection.verdict.text)}")
        write(f"  seal {report.seal}")


def _stdin() -> bytes:
    from masksim.image import Limits

    if sys.stdin is None:  # a process may be started without
        raise ImageError("<stdin>: there is no stdin", code="not_found")
    return sys.stdin.buffer.read(Limits().max_bytes + 1)


@app.command()
def verify(
    report: Annotated[Path, argument("A report from `masksim report`.", "REPORT")],
    image: Annotated[str, argument("The image it is about.", "IMAGE")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Check a report against its image: seal, text, pictures, and all numbers computed anew."""
    with errors():
        from masksim.dossier.check import LARGEST, verify_report
        from masksim.load import load_detector

        try:
            with report.open("rb") as file:
                page = file.read(LARGEST + 1)
        except OSError as error:
            raise UsageError(f"cannot read {report}: {error.strerror or error}") from error
        found = verify_report(page, load_detector(model), image)
        if as_json:
            result: dict[str, Any] = {"report": str(report), "image": image, **found.to_dict()}
            write(to_json(result))
        else:
            from masksim.provenance.untrusted_text import printable

            marks = {True: "ok", False: "FAILED", None: "not checked"}
            for check in found.checks:
                write(f"{marks[check.passed]:<11}  {check.name}: {printable(check.message)}")
            write("verified" if found.passed else "NOT VERIFIED")
        if not found.passed:
            say(found.summary)
            raise typer.Exit(NOT_VERIFIED)
