"""Second opinions: functions and real programs, well-behaved and not."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim.errors import DataError, UsageError
from masksim.evaluation.other_detectors import CallablePeer, CommandPeer, Peer, PeerError, open_peer

Pixels = NDArray[np.uint8]
EXAMPLES = Path(__file__).parents[2] / "examples" / "peers"

LEVELS = [10, 200, 90]
IMAGES = [np.full((5, 7 + i, 3), level, np.uint8) for i, level in enumerate(LEVELS)]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the pictures for peers a folder of their own; nothing may stay in it."""
    folder = tmp_path / "temporary files"  # with a blank
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., CommandPeer]:
    """Make a peer of the text of a Python program."""

    def make(text: str, limit: float = 60.0) -> CommandPeer:
        path = tmp_path / "my peer.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        peer = open_peer(f"own={shlex.quote(sys.executable)} {shlex.quote(str(path))}", limit=limit)
        assert isinstance(peer, CommandPeer)
        return peer

    return make


MEAN = """
    import json, sys
    import numpy as np
    from PIL import Image
    for line in sys.stdin:
        path = line.rstrip("\\n")
        pixels = np.asarray(Image.open(path))
        print(json.dumps({"path": path, "score": float(pixels.mean()), "size": pixels.shape}))
"""


# --- programs ----------------------------------------------------------------------------------


def test_a_program_sees_the_very_pixels(program: Callable[..., Peer], temporary: Path) -> None:
    with program(MEAN) as peer:
        assert peer.name == "own"
        assert peer.score(IMAGES) == LEVELS
        assert [list(folder.iterdir()) for folder in temporary.iterdir()] == [[]]
        assert peer.score(IMAGES[::-1]) == LEVELS[::-1]  # the same program goes on
        assert peer.score([]) == []


def test_a_plain_number_a_line_will_do(program: Callable[..., Peer]) -> None:
    with program("import sys\nfor i, line in enumerate(sys.stdin): print(-1.5 + i)") as peer:
        assert peer.score(IMAGES) == [-1.5, -0.5, 0.5]


def test_it_is_shown_absolute_paths_of_whole_png_files(program: Callable[..., Peer]) -> None:
    check = """
        import os, sys
        for line in sys.stdin:
            path = line[:-1]
            data = open(path, "rb").read()
            print(float(os.path.isabs(path) and path.endswith(".png") and data[-8:-4] == b"IEND"))
    """
    with program(check) as peer:
        assert peer.score(IMAGES) == [1, 1, 1]


def test_a_failed_image_costs_only_its_own_score(program: Callable[..., Peer]) -> None:
    picky = """
        import json, sys
        for i, line in enumerate(sys.stdin):
            answer = {"error": "too dark"} if i == 1 else {"score": i}
            print(json.dumps({"path": line[:-1], **answer}))
    """
    with program(picky) as peer:
        assert peer.score(IMAGES[:1]) == [0]
        with pytest.raises(PeerError, match="own could not score the image: too dark") as caught:
            peer.score(IMAGES[1:2])
        assert caught.value.code == "peer_image"
        assert peer.score(IMAGES[2:]) == [2]


@pytest.mark.parametrize("number", ["nan", "-inf", '{"score": NaN}', '{"score": 1e999}'])
def test_what_is_not_finite_is_no_score(program: Callable[..., Peer], number: str) -> None:
    with program(f"import sys\nfor line in sys.stdin: print({number!r})") as peer:
        for _ in range(2):
            with pytest.raises(PeerError, match="not a finite number") as caught:
                peer.score(IMAGES[:1])
            assert caught.value.code == "peer_image"


@pytest.mark.parametrize(
    "garbage",
    [
        *("", "Loading model...", "0.5 0.6", "[0.5]", '{"score": "high"}', '{"score": true}'),
        *('{"value": 1}', '{"score": null}', '{"score": 0.5', '{"path": 3, "score": 1}'),
        '{"score": 1' + "0" * 400 + "}",
    ],
)
def test_garbage_is_shown_and_ends_the_peer(
    program: Callable[..., CommandPeer], garbage: str
) -> None:
    text = f"""
        import sys
        print("warming up", file=sys.stderr)
        for line in sys.stdin: print({garbage!r})
    """
    with program(text) as peer:
        with pytest.raises(PeerError, match="neither a number nor an object") as caught:
            peer.score(IMAGES[:1])
        assert caught.value.code == "peer_failed"
        assert repr(garbage[:50])[1:-1] in caught.value.message
        assert caught.value.message.endswith("error:\nwarming up")
        assert peer._process.poll() is not None
        with pytest.raises(PeerError, match="neither a number nor an object"):
            peer.score(IMAGES[:1])


def test_an_answer_for_another_image_is_refused(program: Callable[..., Peer]) -> None:
    text = """import sys\nfor _ in sys.stdin: print('{"path": "/other.png", "score": 1}')"""
    with program(text) as peer, pytest.raises(PeerError, match=r"answered for /other\.png"):
        peer.score(IMAGES)


def test_answers_nobody_asked_for_are_refused(program: Callable[..., Peer]) -> None:
    with program("import sys\nfor line in sys.stdin: print(0.5); print(0.6)") as peer:
        assert peer.score(IMAGES[:1]) == [0.5]
        time.sleep(0.3)
        with pytest.raises(PeerError, match=r"wrote '0\.6' before it was asked"):
            peer.score(IMAGES[:1])


def test_an_endless_line_is_cut(program: Callable[..., Peer]) -> None:
    text = "import sys\nsys.stdin.readline()\nwhile True: sys.stdout.write('9' * 5000)"
    with program(text) as peer, pytest.raises(PeerError, match="a line without end"):
        peer.score(IMAGES[:1])


@pytest.mark.parametrize("when", ["at once", "when asked", "after one"])
def test_a_crash_is_reported_with_the_last_words(program: Callable[..., Peer], when: str) -> None:
    steps = {
        "at once": "",
        "when asked": "sys.stdin.readline()",
        "after one": "sys.stdin.readline(); print(0.5); sys.stdin.readline()",
    }
    text = f"import sys\n{steps[when]}\nprint('no memory left', file=sys.stderr)\nsys.exit(3)"
    with program(text) as peer:
        with pytest.raises(PeerError) as caught:
            peer.score(IMAGES)
        assert caught.value.code == "peer_failed"
        assert "ended before it" in caught.value.message
        assert "(exit code 3)" in caught.value.message
        assert caught.value.message.endswith("no memory left")


def test_a_traceback_is_among_the_last_words(program: Callable[..., Peer]) -> None:
    text = "import sys\nfor line in sys.stdin: print(1 / 0)"
    with program(text) as peer, pytest.raises(PeerError, match="ZeroDivisionError"):
        peer.score(IMAGES)


def test_a_program_that_hangs_is_ended_with_what_it_started(
    program: Callable[..., CommandPeer], tmp_path: Path
) -> None:
    beats = tmp_path / "beats"
    text = f"""
        import subprocess, sys, time
        beat = "import time\\nwhile True: print('.', flush=True); time.sleep(0.02)"
        out = open({str(beats)!r}, "w")
        subprocess.Popen([sys.executable, "-c", beat], stdout=out)
        print(sys.stdin.readline() and 0.5)
        time.sleep(600)
    """
    with program(text, limit=20) as peer:
        assert peer.score(IMAGES[:1]) == [0.5]
        for _ in range(500):
            if beats.stat().st_size:
                break
            time.sleep(0.02)
        peer.limit = 0.3
        with pytest.raises(PeerError, match=r"no answer within 0\.3 s") as caught:
            peer.score(IMAGES)
        assert caught.value.code == "peer_failed"
        assert peer._process.poll() is not None
    if hasattr(os, "killpg"):
        heard = beats.stat().st_size
        time.sleep(0.3)
        assert beats.stat().st_size == heard > 0


def test_a_flood_on_standard_error_stops_nothing(program: Callable[..., Peer]) -> None:
    text = """
        import sys
        for line in sys.stdin:
            sys.stderr.write("chatter " * 40000)
            print(0.25)
    """
    with program(text) as peer:
        assert peer.score(IMAGES) == [0.25] * 3


def test_closing_ends_the_program_and_may_be_repeated(program: Callable[..., CommandPeer]) -> None:
    peer = program(MEAN)
    assert peer.score(IMAGES[:1]) == LEVELS[:1]
    peer.close()
    peer.close()
    assert peer._process.returncode == 0  # its input ended, and so did it
    with pytest.raises(PeerError, match="has been closed"):
        peer.score(IMAGES)


def test_only_8_bit_colour_is_asked_about(program: Callable[..., Peer]) -> None:
    bad = [IMAGES[0].astype(float), IMAGES[0][..., 0], IMAGES[0][:0], "photo.png"]
    with program(MEAN) as command:
        for peer in (command, CallablePeer("f", lambda images: [0.0] * len(images))):
            for image in bad:
                with pytest.raises(UsageError, match=r"uint8 \(H, W, 3\)"):
                    peer.score([image])  # type: ignore[list-item]
        assert command.score(IMAGES[:1]) == LEVELS[:1]


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(PeerError, match="x cannot be started: no-such-program -v") as caught:
        open_peer("x=no-such-program -v")
    assert isinstance(caught.value, DataError)
    assert (caught.value.code, caught.value.exit_code) == ("peer_failed", 5)


# --- functions ---------------------------------------------------------------------------------

FUNCTIONS = """
    from dataclasses import dataclass

    @dataclass
    class Kept:  # needs its module to be found by name
        images: int = 0

    kept = Kept()

    def mean(images):
        kept.images += len(images)
        scores = [image.mean() for image in images]
        for image in images:
            image[:] = 0
        return scores

    def fails(images):
        raise KeyError("weights")

    def too_few(images):
        return [0.5]

    def undefined(images):
        return [float("nan")] * len(images)

    text = "not callable"
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "my scores.py"
    path.write_text(textwrap.dedent(FUNCTIONS), encoding="utf-8")
    return path


def test_a_function_of_a_file(functions: Path) -> None:
    before = [image.copy() for image in IMAGES]
    with open_peer(f"f1={functions}:mean") as peer:
        assert isinstance(peer, CallablePeer)
        assert peer.name == "f1"
        scores = peer.score(IMAGES)
        assert scores == LEVELS
        assert {type(score) for score in scores} == {float}
        assert peer.score([]) == []
    for image, old in zip(IMAGES, before, strict=True):
        np.testing.assert_array_equal(image, old)  # it was given copies


def test_a_function_of_a_module(functions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions.rename(functions.with_name("own_scores.py"))
    monkeypatch.syspath_prepend(str(functions.parent))
    with open_peer("f=own_scores:mean") as peer:
        assert peer.score(IMAGES) == LEVELS


@pytest.mark.parametrize(
    ("name", "said", "code"),
    [
        ("fails", r"could not score 3 image\(s\): KeyError: 'weights'", "peer_image"),
        ("undefined", "gave nan for image 0", "peer_image"),
        ("too_few", "given 3 images and returned 1 scores", "peer_failed"),
    ],
)
def test_functions_that_fail(functions: Path, name: str, said: str, code: str) -> None:
    with open_peer(f"f={functions}:{name}") as peer:
        with pytest.raises(PeerError, match=said) as caught:
            peer.score(IMAGES)
        assert caught.value.code == code


def test_what_cannot_be_imported(functions: Path) -> None:
    with pytest.raises(UsageError, match=r"no file missing\.py"):
        open_peer("f=missing.py:mean")
    with pytest.raises(UsageError, match="has no callable text"):
        open_peer(f"f={functions}:text")
    with pytest.raises(UsageError, match="has no callable median"):
        open_peer(f"f={functions}:median")
    with pytest.raises(PeerError, match="ModuleNotFoundError"):
        open_peer("f=no_such_module_at_all:mean")
    functions.write_text("raise RuntimeError('no weights')", encoding="utf-8")
    with pytest.raises(PeerError, match="cannot be imported: RuntimeError: no weights"):
        open_peer(f"f={functions}:mean")


# --- descriptions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["", "mean", "=a:b", "n=", "a b=c:d", "ä=c:d", "-n=c:d", "n,m=c:d"]
)
def test_other_descriptions_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="a peer is NAME="):
        open_peer(spec)


def test_quotes_without_an_end_and_limits_without_time_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        open_peer("n=python 'a b")
    with pytest.raises(UsageError, match="above 0 s"):
        open_peer("n=python x.py", limit=0)


def test_a_command_with_a_colon_is_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def init(self: CommandPeer, name: str, command: list[str], *, limit: float) -> None:
        seen.append([name, *command])

    monkeypatch.setattr(CommandPeer, "__init__", init)
    for spec in ("n=python run.py:main", "a.b-c_d=ssh host 'x y' a=b", "n=./score:1"):
        assert isinstance(open_peer(spec), CommandPeer)
    assert seen == [
        ["n", "python", "run.py:main"],
        ["a.b-c_d", "ssh", "host", "x y", "a=b"],
        ["n", "./score:1"],
    ]


# --- the examples ------------------------------------------------------------------------------


def test_the_examples_protocol_is_ours(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.py"
    adapter.write_text(
        textwrap.dedent(f"""
            import sys
            sys.path.insert(0, {str(EXAMPLES)!r})
            from answering import answer
            def score(image):
                print("chatter of the peer's own code")
                return image.width / image.getpixel((0, 0))[0]
            answer(score)
        """),
        encoding="utf-8",
    )
    black = np.zeros((4, 4, 3), np.uint8)
    with open_peer(f"e={shlex.quote(sys.executable)} {shlex.quote(str(adapter))}") as peer:
        assert peer.score(IMAGES) == pytest.approx([7 / 10, 8 / 200, 9 / 90])
        with pytest.raises(PeerError, match="ZeroDivisionError"):
            peer.score([black])
        assert peer.score(IMAGES[:1]) == [0.7]


CLONES = {
    "ferretnet": {
        "src/model/ferretnet.py": """
            import torch
            class Ferret(torch.nn.Module):
                def __init__(self, *, lpd_dict, lpd_func, window_size, **structure):
                    super().__init__()
                    self.local = lpd_dict[lpd_func](window_size)
                    self.logit = torch.nn.Parameter(torch.zeros(1))
                def forward(self, x):
                    assert not self.training
                    return (x - self.local(x)).mean(dim=(1, 2, 3)) + self.logit
        """,
        "src/model/lpd.py": """
            def get_lpd_dict():
                return {"median": lambda size: lambda x: 0 * x}
        """,
    },
    "ladeda": {
        "networks/Tiny_LaDeDa.py": """
            import torch
            class Tiny(torch.nn.Module):
                def __init__(self, preprocess_type, num_classes):
                    super().__init__()
                    self.fc = torch.nn.Linear(32, num_classes)
                def forward(self, x):
                    assert x.shape[1:] == (3, 256, 256)
                    return self.fc(x.mean(dim=(1, 2, 3)).repeat(1, 8))
            tiny_ladeda = Tiny
        """,
    },
}


@pytest.mark.parametrize("name", CLONES)
def test_the_adapters_load_a_clone_safely_and_preprocess(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    clone = tmp_path / "clone"
    for place, text in CLONES[name].items():
        (clone / place).parent.mkdir(parents=True, exist_ok=True)
        (clone / place).write_text(textwrap.dedent(text), encoding="utf-8")
    weights = tmp_path / "weights.pth"
    if name == "ferretnet":
        torch.save({"model": {"module.logit": torch.tensor([0.5])}}, weights)
        mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    else:
        torch.save(
            {"fc.weight": torch.full((1, 8), 1 / 8), "fc.bias": torch.tensor([0.5])}, weights
        )
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(clone), "--weights", str(weights)]
    image = np.full((300, 400, 3), 10, np.uint8)
    image[22:278, 72:328] = 200  # the central 256 x 256
    level = (
        200.0 if name == "ferretnet" else (200 * 256 * 256 + 10 * (300 * 400 - 256 * 256)) / 120000
    )
    expected = 0.5 + np.mean([(level / 255 - m) / d for m, d in zip(mean, deviation, strict=True)])
    with CommandPeer(name, command) as peer:
        assert peer.score([image])[0] == pytest.approx(expected, abs=0.02)
        if name == "ferretnet":  # black around what is smaller
            dark = np.mean([-m / d for m, d in zip(mean, deviation, strict=True)])
            assert peer.score([image[:1, :1]])[0] == pytest.approx(dark + 0.5, abs=0.01)

    if name == "ferretnet":
        return  # the same line loads both
    torch.save({"fc.bias": Path("code")}, weights)  # a pickle of more than tensors
    with CommandPeer(name, command) as peer, pytest.raises(PeerError, match="weights_only"):
        peer.score([image])
