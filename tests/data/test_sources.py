"""The table of public sets: the built-in one, one's own, other addresses, CSVs of URLs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from masksim.data.sources import (
    RemoteFile,
    Source,
    UrlTable,
    apply_overrides,
    load_sources,
    pick_sources,
    table_files,
)
from masksim.errors import DataError, UsageError


def test_the_built_in_table_is_what_the_paper_says() -> None:
    sources = load_sources()
    assert list(sources) == [
        "bundle", "mit5k", "dresden", "coco", "hdrburst", "raise1k", "polardiffshield",
        "synthbuster",
    ]  # fmt: skip
    roles = {
        "mit5k": {"train"}, "dresden": {"train"}, "coco": {"train", "val"}, "hdrburst": {"val"},
        "raise1k": {"test"}, "polardiffshield": {"train", "val"}, "synthbuster": {"test"},
    }  # fmt: skip
    for name, wanted in roles.items():
        source = sources[name]
        assert set(source.roles) == wanted
        assert source.licence
        assert source.home.startswith("http")
        splits = {folder.split for folder in source.folders}
        splits |= {"val"} if any(folder.val_percent for folder in source.folders) else set()
        assert splits == wanted
        assert source.access == "open" or source.manual
    table = sources["polardiffshield"].table
    assert table is not None
    assert set(table.columns) == {
        "URL Stable Diffusion 1.*", "URL Stable Diffusion 2.1", "URL Stable Diffusion XL",
        "URL Dall.e 2", "URL Dall.e 3", "URL midjourney", "URL firefly",
    }  # fmt: skip
    assert {f.val_percent for f in sources["polardiffshield"].folders} == {10}
    assert {f.path for f in sources["synthbuster"].folders} == {
        f"synthbuster/{name}"
        for name in (
            "stable-diffusion-1-3", "stable-diffusion-1-4", "stable-diffusion-2",
            "stable-diffusion-xl", "dalle2", "dalle3", "midjourney-v5", "firefly", "glide",
        )
    }  # fmt: skip
    for source in sources.values():
        json.dumps(source.as_dict())
        for file in source.files:
            assert not file.checksum or file.checked  # no checksum without saying from where
    assert [s.name for s in pick_sources(sources, ["coco", "mit5k"])] == ["coco", "mit5k"]
    assert len(pick_sources(sources, ["all"])) == len(sources)
    with pytest.raises(DataError) as caught:
        pick_sources(sources, ["imagenet"])
    assert caught.value.code == "source_unknown"


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        "not toml",
        '[a]\ntitle = "A"',
        '[a]\ntitle = "A"\nhome = ""\nlicence = ""\nroles = []\naccess = "open"\nhost = ""',
        '[a]\ntitle = "A"\nhome = ""\nlicence = ""\nroles = []\naccess = "open"\n'
        '[[a.folders]]\npath = "a"\ngenerator = "x"\nsplit = "learn"',
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(DataError) as caught:
        load_sources(tmp_path / "s.toml")
    assert caught.value.code == "sources_invalid"


def source(**parts: Any) -> Source:
    return Source("mine", "Mine", "http://home", "none", ("test",), "open", **parts)


def test_overrides() -> None:
    two = source(files=(RemoteFile("a.zip", ("u",)), RemoteFile("b.zip", ("v",))))
    moved = apply_overrides(two, ["b.zip=http://x/b?k=v"])
    assert [f.urls for f in moved.files] == [("u",), ("http://x/b?k=v",)]
    one = source(files=(RemoteFile("a.zip", ("u",)),))
    assert apply_overrides(one, ["http://x/a?k=v"]).files[0].urls == ("http://x/a?k=v",)
    for target, override in ((two, "http://x"), (two, "c.zip=http://x"), (one, "a.zip=x")):
        with pytest.raises(UsageError):
            apply_overrides(target, [override])


def test_tables_of_urls() -> None:
    table = UrlTable(
        {"TIFF": "raise", "PNG": "png"},
        rewrite={"http://old/": "https://new/"},
    )
    text = (
        "\ufeffFile,TIFF,PNG\na,http://old/x/r1.TIF,\nb,host.org/r%202.TIF,\nc,http://z/r1.tif,\n"
    )
    files = table_files(table, text)
    assert [(f.name, f.urls, folder) for f, folder in files] == [
        ("r1.TIF", ("https://new/x/r1.TIF", "http://old/x/r1.TIF"), "raise"),
        ("r 2.TIF", ("http://host.org/r%202.TIF",), "raise"),
        ("0002-r1.tif", ("http://z/r1.tif",), "raise"),
    ]
    with pytest.raises(DataError) as caught:
        table_files(table, "a,b\n1,2\n")
    assert caught.value.code == "table_invalid"
