import time
import warnings
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from deltaw import events
from deltaw.data import decode, examined
from deltaw.data.captions import from_name
from deltaw.data.folder import scan

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["inkline", "streamline"])
def test_examples_are_used_whole(name):
    dataset = scan(EXAMPLES / name)
    assert len(dataset.pictures) == 28
    assert not dataset.skipped
    assert all(picture.caption.endswith(f"{name} style") for picture in dataset.pictures)
    assert all(picture.caption_source == picture.name.replace(".png", ".txt") for picture in dataset.pictures)
    assert dataset.notes == ("files that are no pictures, left alone (1): ATTRIBUTION.md",)


def test_scanning_twice_gives_the_same():
    assert scan(EXAMPLES / "inkline") == scan(EXAMPLES / "inkline")


def test_progress_is_told_file_by_file():
    told: list[events.Event] = []
    scan(EXAMPLES / "inkline", tell=told.append)
    assert told[0] == events.Phase("reading pictures", 29, "files")
    assert [event.done for event in told[1:] if isinstance(event, events.Tick)] == list(range(1, 30))


def test_interrupted_scan_stops_and_leaves_pillow_as_it_was(tmp_path, monkeypatch):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "000.png")
    for i in range(1, 200):
        (tmp_path / f"{i:03}.png").write_bytes((tmp_path / "000.png").read_bytes())
    decoded: list[Path] = []

    def counting(path: Path) -> decode.Decoded:
        decoded.append(path)
        time.sleep(0.005)
        return decode.decode(path)

    def interrupt(event: events.Event) -> None:
        if isinstance(event, events.Tick):
            raise KeyboardInterrupt

    monkeypatch.setattr(examined, "decode", counting)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    filters = list(warnings.filters)
    with pytest.raises(KeyboardInterrupt) as caught:
        scan(tmp_path, tell=interrupt)
    assert len(decoded) < 100
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert list(warnings.filters) == filters
    assert caught.traceback  # kept alive until here: nothing of the above waited for the garbage collector


def test_nested_folders_and_their_captions(tmp_path):
    for path in ("a.png", "one/a.png", "one/two/a.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), "red").save(tmp_path / path)
        (tmp_path / path).with_suffix(".txt").write_text(path)
    (tmp_path / "one" / "two" / "lonely.txt").write_text("nobody's")
    dataset = scan(str(tmp_path))
    assert [(p.name, p.caption, p.caption_source) for p in dataset.pictures] == [
        ("a.png", "a.png", "a.txt"),
        ("one/a.png", "one/a.png", "one/a.txt"),
        ("one/two/a.png", "one/two/a.png", "one/two/a.txt"),
    ]
    assert dataset.notes == ("caption files without a picture (1): one/two/lonely.txt",)


def test_best_caption_file_first(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    sources = ["a.png.txt", "a.txt", "a.png.caption", "a.caption"]
    for source in sources:
        (tmp_path / source).write_text(source)
    for source in sources:
        (picture,) = scan(tmp_path).pictures
        assert picture.caption == picture.caption_source == source
        (tmp_path / source).unlink()
    (tmp_path / "a.TXT").write_text("in capitals")
    assert scan(tmp_path).pictures[0].caption == "in capitals"


def test_file_names_can_be_left_out(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red_fox.png")
    assert scan(tmp_path).pictures[0].caption == "red fox"
    (picture,) = scan(tmp_path, file_names_as_captions=False).pictures
    assert (picture.caption, picture.caption_source, picture.notes) == ("", "none", ())


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("red_fox.png", "red fox"),
        ("black-cat_02.jpg", "black cat"),
        ("sks dog (3).png", "sks dog"),
        ("a cat.v2.png", "a cat.v2"),
        ("Ärger im Büro.webp", "Ärger im Büro"),
        ("赤い狐.png", "赤い狐"),
        ("apollo_11.png", "apollo 11"),
        ("deadbeef.png", "deadbeef"),
        ("Katze-im-Schnee.JPG", "Katze im Schnee"),
    ],
)
def test_file_name_that_says_something(name, caption):
    assert from_name(name) == caption


@pytest.mark.parametrize(
    "name",
    [
        "IMG_1234.JPG", "DSC0001.jpg", "_DSC0042.NEF", "DSCF1234.jpg", "PXL_20240102_030405678.jpg", "P1010001.JPG",
        "IMG-20200101-WA0007.jpg", "20240131_120000.jpg", "Screenshot 2024-05-06 at 10.11.12.png", "image (3).png",
        "00001.png", "7.png", "d41d8cd98f00b204e9800998ecf8427e.png", "550e8400-e29b-41d4-a716-446655440000.webp",
        "download.jpg", "untitled.png", "a1.png", "GOPR0123.JPG", "dQw4w9WgXcQzB3.jpg", "---.png",
    ],
)  # fmt: skip
def test_file_name_that_says_nothing(name):
    assert from_name(name) == ""
