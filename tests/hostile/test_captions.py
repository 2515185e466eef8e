"""Bad captions as they are found in the wild: one group of tests a row of the list of bad inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltaw.data import lint
from deltaw.data.folder import Dataset, Picture, scan
from deltaw.errors import InputError, UsageError


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


def captioned(folder: Path, raw: bytes, **options) -> Picture:
    """The only picture of a folder, whose caption file holds these bytes."""
    put(folder / "a.png")
    (folder / "a.txt").write_bytes(raw)
    (picture,) = scan(folder, **options).pictures
    return picture


def refused(folder: Path, raw: bytes, **options) -> str:
    with pytest.raises(InputError) as caught:
        captioned(folder, raw, **options)
    return str(caught.value)


def by_name(dataset: Dataset) -> dict[str, tuple[str, str]]:
    return {picture.name: (picture.caption, picture.caption_source) for picture in dataset.pictures}


def reasons(dataset: Dataset) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in dataset.skipped}


# Row 18: nothing said


@pytest.mark.parametrize("raw", [b"", b"  \n\t \r\n", b"\xef\xbb\xbf", "\u200b".encode("utf-16")])
def test_row_18_empty_caption_is_empty_and_told(tmp_path, raw):
    picture = captioned(tmp_path, raw)
    assert (picture.caption, picture.caption_source) == ("", "a.txt")
    assert "caption is empty" in picture.notes


def test_row_18_counted_and_told_once(tmp_path):
    for i in range(3):
        put(tmp_path / f"{i}.png", seed=i)
    put(tmp_path / "fox.png", seed=9)
    (tmp_path / "0.txt").touch()
    dataset = scan(tmp_path)
    assert by_name(dataset) == {
        "0.png": ("", "0.txt"),
        "1.png": ("", "none"),
        "2.png": ("", "none"),
        "fox.png": ("fox", "file name"),
    }
    assert [note for note in dataset.notes if "without a caption" in note] == [
        "pictures without a caption (3): 0.png, 1.png, 2.png"
    ]
    (finding,) = (finding for finding in lint.lint(dataset, 32, 32) if finding.kind == "no caption")
    assert finding.names == ("0.png", "1.png", "2.png")


def test_row_18_empty_file_gives_way_to_another_source(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.caption").write_text("from the other")
    assert by_name(scan(tmp_path)) == {"a.png": ("from the other", "a.caption")}


# Row 19: encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_row_19_marks_are_read_and_dropped(tmp_path, encoding):
    assert captioned(tmp_path, "naïve 狐 🦊".encode(encoding)).caption == "naïve 狐 🦊"


def test_row_19_utf16_big_endian_by_its_mark(tmp_path):
    assert captioned(tmp_path, b"\xfe\xff" + "狐".encode("utf-16-be")).caption == "狐"


def test_row_19_other_encoding_is_refused_with_byte_and_offset(tmp_path):
    text = refused(tmp_path, b"the fox\x92s tail")
    assert "a.png: its caption a.txt: the text is not UTF-8: byte 0x92 at offset 7" in text
    assert "--caption-encoding cp1252" in text


def test_row_19_offset_counts_the_mark(tmp_path):
    assert "byte 0xff at offset 4" in refused(tmp_path, b"\xef\xbb\xbfa\xff")


@pytest.mark.parametrize(
    ("encoding", "text"), [("cp1252", "the fox’s tail"), ("cp932", "赤い狐"), ("utf-16-le", "red fox")]
)
def test_row_19_stated_encoding_is_used(tmp_path, encoding, text):
    assert captioned(tmp_path, text.encode(encoding), caption_encoding=encoding).caption == text


def test_row_19_folder_of_two_encodings(tmp_path):
    put(tmp_path / "a.png", seed=1)
    put(tmp_path / "b.png", seed=2)
    (tmp_path / "a.txt").write_bytes("fox’s".encode())
    (tmp_path / "b.txt").write_bytes("fox’s".encode("cp1252"))
    dataset = scan(tmp_path, caption_encoding="cp1252")
    assert [picture.caption for picture in dataset.pictures] == ["fox’s", "fox’s"]
    assert list(reasons(scan(tmp_path))) == ["b.png"]


def test_row_19_utf16_without_mark_is_recognised(tmp_path):
    assert "looks like UTF-16" in refused(tmp_path, b"\0" * 40)  # what a power cut leaves of a file
    assert "looks like UTF-16" in refused(tmp_path, "a red fox".encode("utf-16-le"))


def test_row_19_wrong_statement_is_refused_too(tmp_path):
    assert "the text is not CP932" in refused(tmp_path, b"fox\x81", caption_encoding="cp932")
    assert "the text is not UTF-16-LE" in refused(tmp_path, b"odd", caption_encoding="utf-16-le")


@pytest.mark.parametrize("encoding", ["cp125", "rot13", "base64"])
def test_row_19_no_such_encoding(tmp_path, encoding):
    with pytest.raises(UsageError, match="--caption-encoding"):
        captioned(tmp_path, b"x", caption_encoding=encoding)


# Row 20: shape of the text


@pytest.mark.parametrize(
    "raw",
    [
        b"a red fox,\nsitting\n",
        b"a red fox,\r\n\r\n  sitting\r\n",
        b"a red fox,\rsitting",
        "a red fox,\u2028sitting".encode(),
    ],
)
def test_row_20_lines_are_joined_by_a_space(tmp_path, raw):
    picture = captioned(tmp_path, raw)
    assert picture.caption == "a red fox, sitting"
    assert "caption: 2 lines joined" in picture.notes


def test_row_20_control_characters_go(tmp_path):
    picture = captioned(tmp_path, b"a\x00 r\x07ed\tfox\x1b[31m")
    assert picture.caption == "a red fox[31m"
    assert "caption: control characters dropped" in picture.notes


def test_row_20_megabyte_is_read_and_more_is_refused(tmp_path):
    assert len(captioned(tmp_path, b"fox " * 2**18).caption) == 2**20 - 1
    assert "too large for captions" in refused(tmp_path, b"fox " * 2**21)


def test_row_20_the_cut_part_is_shown(tmp_path):
    captioned(tmp_path, b"one two three four five")

    def count(text: str) -> tuple[int, str]:
        words = text.split()
        return len(words), " ".join(words[3:])

    (finding,) = (f for f in lint.lint(scan(tmp_path), 32, 32, count_tokens=count) if f.kind == "long caption")
    assert finding.names == ("a.png",)
    assert "5 tokens" in finding.text
    assert "“four five”" in finding.text


# Row 21: prompt syntax is text


@pytest.mark.parametrize(
    "text",
    [
        "{red|blue} fox",
        "(fox:1.2), [tail]",
        "<lora:style:0.8> fox",
        "<script>alert(1)</script>",
        "__animal__",
        "a\\nb %s {0} $HOME",
    ],
)
def test_row_21_prompt_syntax_is_literal(tmp_path, text):
    assert captioned(tmp_path, text.encode()).caption == text


# Row 22: tables


def test_row_22_every_kind_of_table(tmp_path):
    for i, name in enumerate(("a", "b", "c", "d")):
        put(tmp_path / name / f"{name}.png", seed=i)
    (tmp_path / "a" / "metadata.jsonl").write_text('\n{"file_name": "a.png", "text": "in lines"}\n')
    (tmp_path / "b" / "metadata.json").write_text('[{"file_name": "./b.png", "caption": "in a list"}]')
    (tmp_path / "c" / "metadata.json").write_text('{"c.png": "in an object"}')
    (tmp_path / "metadata.csv").write_text('\ufefffile_name;text\n"d\\d.png";"in a ""table"";\nof two lines"\n')
    assert by_name(scan(tmp_path)) == {
        "a/a.png": ("in lines", "a/metadata.jsonl:2"),
        "b/b.png": ("in a list", "b/metadata.json:1"),
        "c/c.png": ("in an object", "c/metadata.json:1"),
        "d/d.png": ('in a "table"; of two lines', "metadata.csv:3"),
    }


BAD_ROWS = {
    '{"file_name": "a.png", "text": ': "no valid JSON",
    '{"file_name": "a.png", "text": "x", "text": "y"}': "the key 'text' stands twice",
    '["a.png", "x"]': "the row is no object",
    '{"text": "x"}': "the row has no file_name",
    '{"file_name": 3, "text": "x"}': "the row has no file_name",
    '{"file_name": "a.png"}': "neither text nor caption",
    '{"file_name": "a.png", "text": 7}': "its text is no text",
    '{"file_name": "../../etc/passwd", "text": "x"}': "leads out of the folder",
    '{"file_name": "..\\\\a.png", "text": "x"}': "leads out of the folder",
    '{"file_name": "/etc/passwd", "text": "x"}': "leads out of the folder",
    '{"file_name": "C:\\\\a.png", "text": "x"}': "leads out of the folder",
    '{"file_name": "sub/../../a.png", "text": "x"}': "leads out of the folder",
    '{"file_name": "gone.png", "text": "x"}': "there is no gone.png",
    '{"file_name": "good.png", "text": "another"}': "has its caption in metadata.jsonl:1 already",
    "[" * 100_000: "nested too deeply",
    '{"file_name": ".", "text": "x"}': "the row has no file_name",
}


@pytest.mark.parametrize(("row", "said"), BAD_ROWS.items(), ids=range(len(BAD_ROWS)))
def test_row_22_bad_row_is_named_by_its_number(tmp_path, row, said):
    put(tmp_path / "good.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "good.png", "text": "kept"}) + f"\n{row}\n")
    dataset = scan(tmp_path)
    assert by_name(dataset) == {"good.png": ("kept", "metadata.jsonl:1")}
    (skipped,) = dataset.skipped
    assert skipped.name == "metadata.jsonl:2"
    assert said in skipped.reason


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.json", "{", "no valid JSON"),
        ("metadata.json", '{"a.png": "x", "a.png": "y"}', "stands twice"),
        ("metadata.json", '"a.png"', "neither a list of rows nor an object"),
        ("metadata.csv", "picture,words\na.png,x\n", "no column file_name"),
        ("metadata.csv", 'file_name,text\na.png,"x\n', "no valid CSV"),
        ("metadata.csv", "", "no column file_name"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "\x92"}', "byte 0x92 at offset 32"),
    ],
)
def test_row_22_unreadable_table_stops_and_is_named(tmp_path, name, content, said):
    put(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=name) as caught:
        scan(tmp_path)
    assert said in str(caught.value)
    assert caught.value.advice


def test_row_22_two_tables_that_differ(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "two"}')
    dataset = scan(tmp_path)
    assert by_name(dataset) == {"a.png": ("one", "metadata.csv:2")}
    assert reasons(dataset) == {"metadata.jsonl:1": "a.png has another caption in metadata.csv:2 already"}


def test_row_22_half_an_emoji_in_json_harms_nobody(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "fox \\ud83e\\u0000 tail"}')
    (picture,) = scan(tmp_path).pictures
    assert picture.caption == "fox  tail"
    picture.caption.encode()


def test_row_22_sources_that_differ_are_told(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("from the file")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "from the table"}')
    (picture,) = scan(tmp_path).pictures
    assert (picture.caption, picture.caption_source) == ("from the file", "a.txt")
    assert "metadata.jsonl:1 says something else; a.txt is used" in picture.notes


def test_row_22_caption_linked_from_outside_is_told(tmp_path):
    put(tmp_path / "set" / "a.png")
    (tmp_path / "secret").write_text("a password")
    (tmp_path / "set" / "a.txt").symlink_to(tmp_path / "secret")
    assert "links that lead out of the folder, followed (1): a.txt" in scan(tmp_path / "set").notes
