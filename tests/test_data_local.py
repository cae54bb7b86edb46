"""Local text files: which are read, what is held out, and what is refused."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import run, tiny
from text_cases import small_encoder, texts
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from train.data.cache import DamagedError, DataError, open_cached
from train.data.corpus import prepare_embedded
from train.data.loader import document_encoder
from train.data.local import (
    find_files,
    held_out_texts,
    open_local,
    read_texts,
    split_files,
    training_texts,
)
from train.data.store import DocumentEncoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> DocumentEncoder:
    return small_encoder(tmp_path_factory.mktemp("tiny") / "tokenizer")


def write_jsonl(path: Path, rows: Sequence[object]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zst":
        with pa.output_stream(str(path)) as file:
            file.write(text.encode())
    else:
        path.write_text(text)


def write_texts(path: Path, documents: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        ids = list(range(len(documents)))
        pq.write_table(pa.table({"id": ids, "text": documents}), path)
    elif path.suffix == ".txt":
        path.write_text("\n".join(documents))
    else:
        write_jsonl(path, [{"text": text, "id": i} for i, text in enumerate(documents)])


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a[1] *.jsonl"]
)
def test_each_row_is_a_document(tmp_path: Path, name: str) -> None:
    write_texts(tmp_path / name, texts(7))
    assert list(read_texts([tmp_path / name])) == texts(7)


def test_reading_local_files_asks_for_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *args, **kwargs: asked.append(host))
    for suffix in (".jsonl", ".parquet", ".txt"):
        write_texts(tmp_path / f"a{suffix}", texts(2))
    assert len(list(read_texts(find_files(tmp_path)))) == 5
    assert asked == []


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three")
    assert list(read_texts(find_files(tmp_path))) == ["one\n\ntwo\n", "three"]


def test_files_of_all_kinds_are_found_in_subfolders_and_others_are_not(tmp_path: Path) -> None:
    for name in ["b/c.parquet", "a.jsonl.gz", "b/a.txt", "notes.md", ".hidden.txt", "d.json"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [file.relative_to(tmp_path).as_posix() for file in find_files(tmp_path)]
    assert names == ["a.jsonl.gz", "b/a.txt", "b/c.parquet"]


def test_files_that_are_not_read_are_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ["a.jsonl", "b.json.zst", "c.md", ".hidden"]:
        (tmp_path / name).touch()
    for _ in range(2):
        find_files(tmp_path)
    logged = [record.getMessage() for record in caplog.records]
    assert ["2 files are not read (such as b.json.zst)" in line for line in logged] == [True]


def test_compressed_shards_are_read_with_those_beside_them(tmp_path: Path) -> None:
    write_texts(tmp_path / "0.jsonl", texts(4)[:2])
    write_texts(tmp_path / "1.jsonl.zst", texts(4)[2:])
    assert list(read_texts(find_files(tmp_path))) == texts(4)


@pytest.mark.parametrize("held_out", ["validation/00.jsonl", "c4-validation.00.jsonl"])
def test_files_named_validation_are_held_out(tmp_path: Path, held_out: str) -> None:
    root = tmp_path / "validation-study"  # the folder's own name does not count
    write_texts(root / "train.jsonl", texts(60))
    write_texts(root / held_out, ["held out"])
    splits = split_files(root, find_files(root))
    assert list(held_out_texts(*splits)) == ["held out"]
    assert list(training_texts(*splits)) == texts(60)


def test_every_50th_document_is_held_out_where_no_file_is(tmp_path: Path) -> None:
    write_texts(tmp_path / "a.jsonl", texts(120))
    splits = split_files(tmp_path / "a.jsonl", find_files(tmp_path / "a.jsonl"))
    assert list(held_out_texts(*splits)) == [texts(120)[i] for i in (0, 50, 100)]
    assert list(training_texts(*splits)) == [
        text for i, text in enumerate(texts(120)) if i not in (0, 50, 100)
    ]


def test_a_copy_of_a_held_out_document_is_not_trained_on(tmp_path: Path) -> None:
    write_texts(tmp_path / "a.jsonl", ["copied", "kept", "copied"])
    splits = split_files(tmp_path, find_files(tmp_path))
    assert list(training_texts(*splits)) == ["kept"]


def test_the_store_is_made_once(
    tmp_path: Path, encoder: DocumentEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXP_CACHE", str(tmp_path / "cache"))
    write_texts(tmp_path / "data" / "a.jsonl", texts(60))
    first = open_local(tmp_path / "data", "train", encoder)
    monkeypatch.setattr("train.data.local.READERS", {".jsonl": None})  # reading again would fail
    monkeypatch.chdir(tmp_path)
    assert open_local(Path("data"), "train", encoder).folder == first.folder
    assert first.meta.documents == 58


def touch_later(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def add_a_row_at_the_same_time(path: Path) -> None:
    before = path.stat().st_mtime_ns
    write_texts(path, texts(61))
    os.utime(path, ns=(0, before))


def add_a_file(path: Path) -> None:
    write_texts(path.with_name("b.jsonl"), texts(1))


@pytest.mark.parametrize("change", [touch_later, add_a_row_at_the_same_time, add_a_file])
def test_changed_files_are_tokenized_again(
    tmp_path: Path,
    encoder: DocumentEncoder,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
) -> None:
    monkeypatch.setenv("MAXP_CACHE", str(tmp_path / "cache"))
    write_texts(tmp_path / "data" / "a.jsonl", texts(60))
    first = open_local(tmp_path / "data", "train", encoder)
    change(tmp_path / "data" / "a.jsonl")
    assert open_local(tmp_path / "data", "train", encoder).folder != first.folder


def damage(folder: Path) -> None:
    content = bytearray((folder / "tokens.bin").read_bytes())
    content[10] ^= 1
    (folder / "tokens.bin").write_bytes(content)


def test_a_damaged_cache_is_tokenized_again(
    tmp_path: Path, encoder: DocumentEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXP_CACHE", str(tmp_path / "cache"))
    write_texts(tmp_path / "a.jsonl", texts(60))
    first = open_local(tmp_path / "a.jsonl", "train", encoder)
    intact = first.tokens.tolist()
    damage(first.folder)
    assert open_local(tmp_path / "a.jsonl", "train", encoder).tokens.tolist() == intact


def test_several_processes_delete_a_damaged_cache_and_the_next_start_rebuilds_it(
    tmp_path: Path, encoder: DocumentEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    write_texts(tmp_path / "a.jsonl", texts(60))
    first = open_local(tmp_path / "a.jsonl", "train", encoder)
    intact = first.tokens.tolist()
    damage(first.folder)
    # Another rank, which checks only the size, may have opened the damaged tokens.
    with pytest.raises(DataError, match=r"is corrupt; .* is deleted: run the same command again"):
        open_local(tmp_path / "a.jsonl", "train", encoder)
    assert open_local(tmp_path / "a.jsonl", "train", encoder).tokens.tolist() == intact


def test_a_damaged_cache_that_another_process_has_deleted_is_said_to_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = tmp_path / "store"
    folder.mkdir()

    def open_() -> None:
        shutil.rmtree(folder, ignore_errors=True)  # the other process, before this one has the lock
        raise DamagedError(f"{folder} is corrupt")

    with pytest.raises(DataError, match=r"is corrupt; .* is deleted: run the same command again"):
        open_cached(folder, lambda partial: None, open_)


def test_rows_without_a_value_are_counted_as_empty(
    tmp_path: Path, encoder: DocumentEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXP_CACHE", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "a.jsonl", [{"text": "held"}, {"text": None}, {"text": "abc"}])
    meta = open_local(tmp_path / "a.jsonl", "train", encoder).meta
    assert (meta.documents, meta.empty) == (1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"body": "a"}\n', r'no field "text", only \[\'body\'\]'),
        ('{"text": 3}\n', 'the field "text" holds int'),
        ('{"text": "a"\n', r"not JSON \(JSONDecodeError"),
        ('["a"]\n', "a line holds list"),
        ('{"text": "ab\\ud800"}\n', r"lone surrogate '\\ud800' at character 2"),
        ("[" * 100_000, r"not JSON \(RecursionError"),
    ],
)
def test_rows_without_text_are_refused(tmp_path: Path, content: str, message: str) -> None:
    names = [tmp_path / f"{i}.jsonl" for i in range(61)]
    for name in names:
        name.write_text('{"text": "good"}\n\n')
    names[30].write_text('{"text": "good"}\n\n' + content)
    with pytest.raises(DataError, match=rf"^--dataset-path: .*/30\.jsonl, line 3: .*{message}"):
        list(read_texts(names))


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 2000 + b'{"text": "\xe9"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2001: not UTF-8"):
        list(read_texts([tmp_path / "a.jsonl"]))


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_truncated_file_is_named_with_the_last_line_that_can_be_read(
    tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"b.jsonl.{suffix}"
    write_texts(file, texts(3000))
    file.write_bytes(file.read_bytes()[:-100])
    write_texts(tmp_path / "a.jsonl", texts(3))
    with pytest.raises(DataError, match=rf"b\.jsonl\.{suffix}: cannot be read after line \d+ \("):
        list(read_texts(find_files(tmp_path)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": [b"a"]}, 'row 1: the field "text" holds bytes'),
        ({"text": [None, 2]}, 'row 2: the field "text" holds int'),
        ({"body": ["a"]}, r'row 1: no field "text", only \[\'body\'\]'),
    ],
)
def test_a_bad_row_of_a_parquet_file_is_named(
    tmp_path: Path, table: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet, {message}"):
        list(read_texts([tmp_path / "a.parquet"]))


def test_a_parquet_file_cut_short_is_named(tmp_path: Path) -> None:
    write_texts(tmp_path / "a.parquet", texts(100))
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-10])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read \(ArrowInvalid"):
        list(read_texts([tmp_path / "a.parquet"]))


def test_fields_of_any_type_may_stand_beside_the_text(tmp_path: Path) -> None:
    rows = [{"text": "2020-01-01", "x": 1}, {"x": {"y": "z"}, "text": "a\u2028b"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert list(read_texts([tmp_path / "a.jsonl"])) == ["2020-01-01", "a\u2028b"]


def test_a_text_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt: cannot be read"):
        list(read_texts([tmp_path / "a.txt"]))


def test_a_single_document_is_refused_for_training_since_it_is_held_out(
    tmp_path: Path, encoder: DocumentEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(DataError, match=r"no document is left .* all 1 are held out .*: split"):
        open_local(tmp_path / "a.txt", "train", encoder)
    assert open_local(tmp_path / "a.txt", "validation", encoder).meta.documents == 1


def test_training_documents_that_are_all_validation_documents_are_refused(tmp_path: Path) -> None:
    write_texts(tmp_path / "train.jsonl", texts(3))
    write_texts(tmp_path / "validation.jsonl", texts(3))
    splits = split_files(tmp_path, find_files(tmp_path))
    with pytest.raises(DataError, match=r"all 3 are held out .* the validation files do not have"):
        list(training_texts(*splits))


def test_held_out_documents_that_are_all_empty_are_refused(
    tmp_path: Path, encoder: DocumentEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXP_CACHE", str(tmp_path / "cache"))
    write_texts(tmp_path / "a.jsonl", ["", "abc"])
    with pytest.raises(DataError, match=r"no held-out document .*a\.jsonl has text"):
        open_local(tmp_path / "a.jsonl", "validation", encoder)


@pytest.mark.parametrize("steps", [8, 24])
def test_a_run_longer_than_its_data_logs_how_many_epochs_it_is(
    corpus_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int
) -> None:
    tokenizer = prepare_embedded().tokenizer
    encoder = document_encoder(HuggingFaceTokenizer(tokenizer_path=str(tokenizer)))
    windows = sum(len(document) for document in encoder.encode(texts(20))) // 32
    write_texts(tmp_path / "data" / "train.jsonl", texts(20))
    write_texts(tmp_path / "data" / "validation.jsonl", texts(40)[20:])
    flags = ["--dataset", "local", "--dataset-path", str(tmp_path / "data")]
    flags += ["--tokenizer", str(tokenizer), "--steps", str(steps)]
    assert run(tiny(tmp_path / "run", "mup-no", *flags)).code == 0
    epochs = steps * 4 / windows  # 4 sequences per step
    logged = [r.getMessage() for r in caplog.records if "epochs" in r.getMessage()]
    assert [f"{epochs:.1f} epochs" in line for line in logged] == [True] * (epochs > 1)


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--dataset-path .*missing: no such file"):
        find_files(tmp_path / "missing")


def test_a_folder_without_usable_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match=r"holds none of \*\.jsonl"):
        find_files(tmp_path)


def test_a_folder_with_nothing_but_validation_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "validation.txt").touch()
    with pytest.raises(DataError, match="none is left to train on"):
        split_files(tmp_path, find_files(tmp_path))
