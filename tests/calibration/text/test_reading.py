import sys
import types

import pytest
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.text import join_documents, read_text
from spikeexport.calibration.text.dataset import read_dataset


def _file(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("name", ["a.txt", "a.raw", "notes"])
def test_plain_text_as_it_is(tmp_path, name):
    text = " = Title = \n\n one é two\n"
    assert read_text(_file(tmp_path / name, text)) == text
    assert read_text(_file(tmp_path / name, b"\xef\xbb\xbf" + text.encode())) == text


def test_jsonl_gives_documents(tmp_path):
    source = _file(tmp_path / "a.jsonl", '{"text": "one", "id": 1}\n\n{"text": "two\\nlines \u2028 here"}\n')
    assert read_text(source) == ["one", "two\nlines \u2028 here"]
    assert join_documents(read_text(source)) == "one\ntwo\nlines \u2028 here"
    assert join_documents("as it is\n") == "as it is\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 3: not JSON"),
        ("[1]", "line 3: expected an object with a string field `text`, found list"),
        ('{"content": "x"}', r"line 3: .* found \['content'\]"),
        ('{"text": 5}', "line 3: expected an object with a string field"),
    ],
)
def test_bad_jsonl_line_is_named_by_number(tmp_path, line, message):
    source = _file(tmp_path / "a.jsonl", '{"text": "one"}\n\n' + line + "\n")
    with pytest.raises(CalibrationError, match=message):
        read_text(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n ", "is empty"),
        ("a.jsonl", "", "holds no text"),
        ("a.jsonl", '{"text": ""}\n', "holds no text"),
        ("a.txt", b"abc\xff\xfe", r"not UTF-8 text \(byte 3\)"),
    ],
)
def test_files_without_text(tmp_path, name, content, message):
    with pytest.raises(CalibrationError, match=message):
        read_text(_file(tmp_path / name, content))


@pytest.mark.parametrize("source", ["missing.txt", "sub/missing.jsonl", "/no/such/file", "./nothing", "a b"])
def test_missing_file(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CalibrationError, match="does not exist"):
        read_text(source)


def test_folder(tmp_path):
    with pytest.raises(CalibrationError, match="is a folder"):
        read_text(str(tmp_path))


def test_dataset_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CalibrationError, match=r"some/corpus is no file.*needs the `datasets` package"):
        read_text("some/corpus")


@pytest.fixture
def asked(monkeypatch):
    """A stand-in for the optional package: its own behaviour needs the network."""
    calls = []

    def load_dataset(name, config, *, split, streaming):
        calls.append((name, config, split, streaming))
        if name == "unreachable":
            raise ConnectionError("no route")
        return iter([{"text": "one"}, {"text": "two"}] if name != "columns" else [{"content": "x"}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return calls


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("owner/corpus", ("owner/corpus", None, "train", True)),
        ("corpus:en", ("corpus", "en", "train", True)),
        ("corpus:validation", ("corpus", None, "validation", True)),
        ("owner/corpus:wikitext-2-raw-v1:test", ("owner/corpus", "wikitext-2-raw-v1", "test", True)),
    ],
)
def test_dataset_name_config_and_split(source, call, asked):
    assert read_text(source) == ["one", "two"]
    assert asked == [call]


def test_dataset_that_cannot_be_used(asked):
    with pytest.raises(CalibrationError, match=r"Dataset unreachable cannot be read \(ConnectionError: no route\)"):
        read_dataset("unreachable")
    with pytest.raises(CalibrationError, match=r"no string column `text` \(columns: content\)"):
        read_dataset("columns")
