"""Tables in files: their forms, tasks and splits, and lines that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.image_files import bomb, picture, save, truncate
from tfxfer.data.base import IMAGE, TEXT, DataInfo
from tfxfer.data.scan import scan, stop_for_bad
from tfxfer.data.table import TableSource, open_table
from tfxfer.errors import UserError
from tfxfer.report.data_words import inputs as described
from tfxfer.spec import parse_spec
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task


def opened(spec: str, **options) -> TableSource:
    return open_table(parse_spec(spec), **options)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def texts(source: TableSource, name: str = "train") -> list[str]:
    return [row[1].decode() for row in source.split(name).as_numpy_iterator()]


def bad(source: TableSource) -> list[tuple[str, str]]:
    return [(example.where, example.reason) for example in source.bad]


@pytest.fixture
def csv_file(tmp_path) -> Path:
    return write(tmp_path / "reviews.csv", "text,label\ngood,pos\nbad,neg\nfine,pos\n")


def test_texts_with_classes(csv_file):
    source = opened(f"csv:{csv_file}")
    assert source.info == DataInfo(
        "csv:reviews.csv", Task(SINGLE_LABEL, ("neg", "pos")), TEXT, (), {"train": 3}
    )
    assert texts(source) == ["good", "bad", "fine"]
    assert source.labels("train").tolist() == [1, 0, 1]
    assert [row[0] for row in source.read("train").as_numpy_iterator()] == [
        b"reviews.csv:2",
        b"reviews.csv:3",
        b"reviews.csv:4",
    ]
    assert source.where("train", 1) == "reviews.csv line 3"
    assert source.groups("train") is None
    assert source.bad == ()


def test_quotes_line_breaks_and_byte_order_mark(tmp_path):
    content = '\ufefflabel,text\r\na,"one, ""two""\r\nthree"\r\n\r\nb,four\r\na, naïve ☀ \r\n'
    source = opened(f"csv:{write(tmp_path / 't.csv', content)}")
    assert texts(source) == ['one, "two"\r\nthree', "four", " naïve ☀ "]
    assert [source.where("train", row) for row in range(3)] == [
        "t.csv line 2",
        "t.csv line 5",
        "t.csv line 6",
    ]


def test_tsv_takes_quotes_as_they_are(tmp_path):
    content = 'ham\tsay "hi\nspam\t"win, now\nham\t\'"\n'
    file = write(tmp_path / "sms.tsv", content)
    source = opened(f"tsv:{file}(columns='label;text')")
    assert texts(source) == ['say "hi', '"win, now', "'\""]
    assert source.info.task.names == ("ham", "spam")
    assert source.info.name == "tsv:sms.tsv"


def _pairs(kind: str) -> str:
    rows = [("a b", "c", "x"), ("a", "b c", "y"), ("☀", "d\0", "x")]
    names = ("s1", "s2", "label")
    if kind == "jsonl":
        return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    return "".join(("," if kind == "csv" else "\t").join(row) + "\n" for row in (names, *rows))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_pairs_of_texts(tmp_path, kind):
    file = write(tmp_path / f"t.{kind}", _pairs(kind))
    source = opened(f"{kind}:{file}(text=s1,pair=s2)")
    assert (source.info.inputs, source.info.shape) == (TEXT, (2,))
    assert source.split("train").element_spec[1] == tf.TensorSpec([2], tf.string)
    expected = [[b"a b", b"c"], [b"a", b"b c"], ["☀".encode(), b"d\0"]]
    assert [row[1].tolist() for row in source.split("train").as_numpy_iterator()] == expected
    ((_, batch, _),) = source.split("train", np.array([0, 2])).batch(2).as_numpy_iterator()
    assert batch.tolist() == expected[::2]
    assert source.bad == ()
    hashes = scan(source, ["train"]).hashes["train"]
    assert len(set(hashes.tolist())) == 3
    joined = opened(f"{kind}:{file}(text='s1;s2')")
    assert joined.info.shape == ()
    assert [described(each.info) for each in (source, joined)] == ["pairs of texts", "texts"]
    turned = opened(f"{kind}:{file}(text=s2,pair=s1)")
    assert len({each.fingerprint for each in (source, joined, turned)}) == 3


def test_second_texts_may_be_joined_and_are_no_labels(tmp_path):
    file = write(tmp_path / "t.csv", "text,class,b,label\nx,y,z,0\nu,v,w,1\n")
    source = opened(f"csv:{file}(text=text,pair='class;b')")
    rows = list(source.split("train").as_numpy_iterator())
    assert [row[1].tolist() for row in rows] == [[b"x", b"y z"], [b"u", b"v w"]]
    assert source.labels("train").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("kind", "lines", "reason"),
    [
        ("csv", b"s1,s2,label\nx,y,a\n{},y,b\nx,y,b", "has an empty 's1'"),
        ("csv", b"s1,s2,label\nx,y,a\nx,{},b\nx,y,b", "has an empty 's2'"),
        ("tsv", b"s1\ts2\tlabel\nx\ty\ta\nx\t{}\tb\nx\ty\tb", "has an empty 's2'"),
    ],
)
@pytest.mark.parametrize("empty", [b"", b" ", "\u3000\xa0".encode()])
def test_empty_texts_are_bad(tmp_path, kind, lines, reason, empty):
    file = write(tmp_path / f"t.{kind}", lines.replace(b"{}", empty))
    source = opened(f"{kind}:{file}(text=s1,pair=s2)")
    assert bad(source) == [(f"t.{kind} line 3", reason)]
    assert [row[1].tolist() for row in source.split("train").as_numpy_iterator()][1] == [b""] * 2
    with pytest.raises(UserError, match=rf"t\.{kind} line 3 {reason}\. .*--skip_bad"):
        stop_for_bad(source.bad, skip_bad=False)
    stop_for_bad(source.bad, skip_bad=True)


def test_joined_texts_are_bad_if_all_are_empty(tmp_path):
    file = write(tmp_path / "t.csv", "a,b,label\nx,,0\n,y,1\n, ,1\n")
    source = opened(f"csv:{file}(text='a;b')")
    assert bad(source) == [("t.csv line 4", "has an empty 'a;b'")]
    assert texts(source)[:2] == ["x ", " y"]


def test_bad_texts_in_json_lines(tmp_path):
    texts = ["x", " ", 3, None, "\ud800", "y"]
    lines = [
        json.dumps({"s1": "z", "s2": text, "label": row % 2}) for row, text in enumerate(texts)
    ]
    content = "\n".join(lines).encode() + b'\n{"s1": "z", "s2": "caf\xe9", "label": 0}'
    source = opened(f"jsonl:{write(tmp_path / 't.jsonl', content)}(text=s1,pair=s2)")
    assert bad(source) == [
        ("t.jsonl line 2", "has an empty 's2'"),
        ("t.jsonl line 3", "has no string for 's2'"),
        ("t.jsonl line 4", "has nothing for 's2'"),
        ("t.jsonl line 5", "is not UTF-8"),
        ("t.jsonl line 7", "is not UTF-8"),
    ]
    kept = source.split("train", np.array([0, 5])).as_numpy_iterator()
    assert [row[1].tolist() for row in kept] == [[b"z", b"x"], [b"z", b"y"]]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("options", ["", "(columns='text;label')"])
def test_byte_order_mark_and_zero_bytes(tmp_path, mark, options):
    for kind in ("csv", "tsv"):
        lines = b"text,label\n" * (not options) + b"a\0b,x\0\n\0c\0,y\n"
        lines = lines if kind == "csv" else lines.replace(b",", b"\t")
        source = opened(f"{kind}:{write(tmp_path / f't.{kind}', mark + lines)}{options}")
        assert texts(source) == ["a\0b", "\0c\0"]
        assert source.info.task.names == ("x\0", "y")
        assert source.bad == ()
    lines = rb'{"text": "a\u0000", "label": "x"}' + b"\n" + rb'{"text": "b", "label": "\u0000"}'
    source = opened(f"jsonl:{write(tmp_path / 't.jsonl', mark + lines)}")
    assert texts(source) == ["a\0", "b"]
    assert source.info.task.names == ("\0", "x")


def test_file_without_names_of_columns_and_joined_texts(tmp_path):
    file = write(tmp_path / "news.csv", '"10","Title","Body, long"\n"9","Other","More"\n')
    source = opened(f"csv:{file}(columns='label;title;text', text='title;text')")
    assert texts(source) == ["Title Body, long", "Other More"]
    assert source.info.task.names == ("9", "10")
    assert source.labels("train").tolist() == [1, 0]


def test_long_texts_are_read_in_blocks(tmp_path):
    lines = [f"text {row} {'x' * (200_000 if row == 5 else 3)},{row % 2}" for row in range(700)]
    source = opened(f"csv:{write(tmp_path / 't.csv', chr(10).join(['text,label', *lines]))}")
    assert texts(source) == [line.rpartition(",")[0] for line in lines]
    rows = np.array([0, 5, 255, 256, 512, 699])
    kept = list(source.read("train", rows).as_numpy_iterator())
    assert [row[0].decode() for row in kept] == [f"t.csv:{row + 2}" for row in rows]
    assert int(source.read("train", rows).cardinality()) == 6


@pytest.mark.parametrize(
    ("values", "task", "expected"),
    [
        (["2", "10", "1"], "", Task(SINGLE_LABEL, ("1", "2", "10"))),
        (["2", "10", "b"], "", Task(SINGLE_LABEL, ("2", "10"))),
        (["1.5", "2", "3"], "", Task(REGRESSION, ("label",))),
        (["1", "2", "3"], "regression", Task(REGRESSION, ("label",))),
        (["1.5", "2", "3"], "single_label", Task(SINGLE_LABEL, ("1.5", "2", "3"))),
        (["1", "2", "b"], "single_label", Task(SINGLE_LABEL, ("1", "2", "b"))),
        (["a", "b", "1.5"], "", Task(SINGLE_LABEL, ("1.5", "a", "b"))),
    ],
)
def test_task_of_a_label_column(tmp_path, values, task, expected):
    content = "text,label\n" + "".join(f"t,{value}\n" for value in values)
    source = opened(f"csv:{write(tmp_path / 't.csv', content)}", task=task)
    assert source.info.task == expected
    assert len(source.bad) == (values[2] == "b" and not task)


def test_several_label_columns(tmp_path):
    content = "text,a,b,c\nx,1,0,0\ny,true,1,False\nz,0,0,0\nw,2,0,0\nv,,0,0\n"
    source = opened(f"csv:{write(tmp_path / 't.csv', content)}(labels='a;b;c')")
    assert source.info.task == Task(MULTI_LABEL, ("a", "b", "c"))
    assert source.labels("train")[:3].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert np.isnan(source.labels("train")[3:]).all()
    assert bad(source) == [
        ("t.csv line 5", "has '2' for a label, which is not 0 or 1"),
        ("t.csv line 6", "has an empty 'a'"),
    ]


def test_one_label_column_of_zero_and_one(tmp_path):
    file = write(tmp_path / "t.csv", "text,toxic\nx,1\ny,0\n")
    source = opened(f"csv:{file}(labels=toxic)")
    assert source.info.task == Task(MULTI_LABEL, ("toxic",))
    assert source.labels("train").tolist() == [[1], [0]]


def test_several_names_in_a_cell(tmp_path):
    file = write(tmp_path / "t.csv", "text,tags\nx,b|a\ny,\nz,a| c \n")
    source = opened(f"csv:{file}(label=tags, separator=|)")
    assert source.info.task == Task(MULTI_LABEL, ("a", "b", "c"))
    assert source.labels("train").tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert source.bad == ()


@pytest.mark.parametrize("options", ["labels=tags, separator=|", "separator=|, label=tags"])
def test_several_names_in_a_cell_of_labels(tmp_path, options):
    file = write(tmp_path / "t.csv", "text,tags\nx,b|a\ny,\nz,a| c \n")
    source = opened(f"csv:{file}({options})")
    assert source.info.task == Task(MULTI_LABEL, ("a", "b", "c"))
    assert source.labels("train").tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize("option", ["label", "labels"])
def test_column_of_json_lists(tmp_path, option):
    content = '{"text": "x", "tags": ["b", "a"]}\n{"text": "y", "tags": []}\n'
    source = opened(f"jsonl:{write(tmp_path / 't.jsonl', content)}({option}=tags)")
    assert source.info.task == Task(MULTI_LABEL, ("a", "b"))
    assert source.labels("train").tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("options", "task", "reason"),
    [
        ("labels='a;b'", "", "has 'x', 'y' for a label, which is not 0 or 1"),
        ("targets='a;b'", "", "has 'x', 'y' for a number"),
        ("label=a", SINGLE_LABEL, "has 'x', 'y' for its label, which must be one"),
    ],
)
def test_lists_where_there_should_be_none(tmp_path, options, task, reason):
    good = '{"text": "t", "a": 0, "b": 1}\n{"text": "t", "a": 1, "b": 1}\n'
    file = write(tmp_path / "t.jsonl", good + '{"text": "t", "a": ["x", "y"], "b": 1}\n')
    assert bad(opened(f"jsonl:{file}({options})", task=task)) == [("t.jsonl line 3", reason)]


def test_names_of_classes(tmp_path):
    file = write(tmp_path / "t.csv", "text,label\nx,10\ny,2\nz,2\n")
    source = opened(f"csv:{file}(names='Two;Sci/Tech')")
    assert source.info.task.names == ("Two", "Sci/Tech")
    assert source.labels("train").tolist() == [1, 0, 0]
    assert source.fingerprint != opened(f"csv:{file}").fingerprint
    with pytest.raises(UserError, match=r"name the 2 classes, and has 3 names.*'2', '10'"):
        opened(f"csv:{file}(names='a;b;c')")


def test_other_delimiter(tmp_path):
    file = write(tmp_path / "t.csv", 'text;label\n"a;b, c";x\nd;y\n')
    source = opened(f"csv:{file}(delimiter=;)")
    assert texts(source) == ["a;b, c", "d"]
    assert source.info.task.names == ("x", "y")


@pytest.mark.parametrize(
    ("kind", "header", "fix"),
    [
        ("csv", "text;label", "say delimiter=';'"),
        ("csv", "text|label", r"say delimiter='\|'"),
        ("csv", "text\tlabel", r"say tsv:.*t\.csv"),
        ("tsv", "text,label", r"say csv:.*t\.csv"),
    ],
)
@pytest.mark.parametrize("options", ["", "(text=text)", "(columns='text;label')"])
def test_wrong_delimiter_is_guessed(tmp_path, kind, header, fix, options):
    file = write(tmp_path / "t.csv", f"{header}\n" * 3)
    with pytest.raises(UserError, match=fix):
        opened(f"{kind}:{file}{options}")


def test_column_that_is_nearly_there(csv_file):
    with pytest.raises(
        UserError, match=r"has no column 'Lable'\. Did you mean 'label'\? .* 'text', 'label'"
    ):
        opened(f"csv:{csv_file}(label=Lable)")


@pytest.mark.parametrize("line", [3, 4])
def test_quote_that_is_never_closed(tmp_path, line):
    lines = ["text,label", "x,a", "y,b", "z,a", "w,b"]
    lines[line - 1] = f'"{lines[line - 1]}'
    file = write(tmp_path / "t.csv", "\n".join(lines))
    with pytest.raises(UserError, match=rf"t\.csv: a quote opened on line {line} is never closed"):
        opened(f"csv:{file}")


def test_quote_that_is_closed_too_late(tmp_path):
    file = write(tmp_path / "t.csv", 'text,label\n"x,a\ny,b\n"z",a\nv,a\nw,b\n')
    source = opened(f"csv:{file}")
    assert texts(source) == ["", "v", "w"]
    ((where, reason),) = bad(source)
    assert where == "t.csv line 2"
    assert reason.startswith("is not CSV up to line 4: ")


def test_json_lines(tmp_path):
    rows = [
        {"text": "één\n☀", "label": ["b", "a"]},
        {"label": [], "text": "two", "more": {"x": 1}},
        {"text": "three", "label": "a"},
    ]
    content = "\n".join(json.dumps(row, ensure_ascii=row["text"] == "two") for row in rows)
    source = opened(f"jsonl:{write(tmp_path / 't.jsonl', content)}")
    assert source.info.task == Task(MULTI_LABEL, ("a", "b"))
    assert source.labels("train").tolist() == [[1, 1], [0, 0], [1, 0]]
    assert texts(source) == ["één\n☀", "two", "three"]


def test_json_values_as_classes(tmp_path):
    content = '{"text": "x", "label": true}\n{"text": "y", "label": false}\n'
    source = opened(f"jsonl:{write(tmp_path / 't.jsonl', content)}")
    assert source.info.task == Task(SINGLE_LABEL, ("false", "true"))


def test_targets(tmp_path):
    file = write(tmp_path / "t.csv", "text,a,b\nx,1,2.5\ny,-3e2,0\nz,nan,0\nw,1,1e99\nv,0,low\n")
    source = opened(f"csv:{file}(targets='b;a')")
    assert source.info.task == Task(REGRESSION, ("b", "a"))
    assert source.labels("train").dtype == np.float32
    assert source.labels("train")[:2].tolist() == [[2.5, 1], [0, -300]]
    assert np.isnan(source.labels("train")[2:]).all()
    assert bad(source) == [
        ("t.csv line 4", "has 'nan' for a number"),
        ("t.csv line 5", "has '1e99' for a number"),
        ("t.csv line 6", "has 'low' for a number"),
    ]
    one = opened(f"csv:{file}(target=a)")
    assert one.info.task == Task(REGRESSION, ("a",))
    assert one.labels("train").shape == (5, 1)


def test_split_column(tmp_path):
    content = "text,label,part\n" + "".join(
        f"{row},{row % 2},{part}\n"
        for row, part in enumerate(["train", "dev", "TEST", "train", "val", "other", "", "testing"])
    )
    source = opened(f"csv:{write(tmp_path / 't.csv', content)}(split=part)")
    assert source.info.examples == {"train": 2, "validation": 2, "test": 2}
    assert texts(source, "validation") == ["1", "4"]
    assert source.where("validation", 1) == "t.csv line 6"
    assert [(e.where, e.reason, e.row) for e in source.bad] == [
        ("t.csv line 7", "has 'other' for its split, not train, validation or test", -1),
        ("t.csv line 8", "has '' for its split, not train, validation or test", -1),
    ]
    last = list(source.split("test", np.array([1])).as_numpy_iterator())
    assert last == [(b"t.csv:9", b"7", 1)]


def test_other_files_as_splits(tmp_path):
    for folder in ("train", "test"):
        write(tmp_path / folder / "data.csv", f"text,label\n{folder},a\nx,b\n")
    source = opened(f"csv:{tmp_path / 'train' / 'data.csv'}(test={tmp_path / 'test' / 'data.csv'})")
    assert source.info.examples == {"train": 2, "test": 2}
    assert texts(source, "test") == ["test", "x"]
    assert source.where("test", 0) == "test/data.csv line 2"
    with pytest.raises(UserError, match="must be different files"):
        opened(f"csv:{tmp_path / 'train/data.csv'}(test={tmp_path / 'train/../train/data.csv'})")


def test_groups_are_the_same_in_every_split(tmp_path):
    write(tmp_path / "test.csv", "text,label,who\nx,a,eve\ny,b,ann\n")
    file = write(tmp_path / "t.csv", "text,label,who\nx,a,ann\ny,b,bob\nz,b,ann\nw,a,\n")
    source = opened(f"csv:{file}(test={tmp_path / 'test.csv'})", group_column="who")
    train, test = source.groups("train"), source.groups("test")
    assert train is not None and test is not None
    assert train[0] == train[2] == test[1]
    assert len({train[0], train[1], test[0]}) == 3
    assert bad(source) == [("t.csv line 5", "has an empty 'who'")]


@pytest.fixture
def images(tmp_path) -> Path:
    """A table of four images, in a folder of their own."""
    for seed in range(4):
        save(tmp_path / "photos" / f"{seed}.jpg", picture(seed))
    rows = "".join(f"photos/{seed}.jpg,{'ab'[seed % 2]}\n" for seed in range(4))
    return write(tmp_path / "table.csv", "filename,class\n" + rows)


def test_images_by_path(images):
    source = opened(f"csv:{images}")
    assert source.info == DataInfo(
        "csv:table.csv", Task(SINGLE_LABEL, ("a", "b")), IMAGE, (48, 64, 3), {"train": 4}
    )
    rows = list(source.split("train").as_numpy_iterator())
    assert [row[0] for row in rows] == [f"table.csv:{line}".encode() for line in range(2, 6)]
    assert all(row[1].shape == (48, 64, 3) and row[1].dtype == np.uint8 for row in rows)
    assert source.bad == ()


def test_images_under_another_root_and_by_whole_path(images, tmp_path):
    file = write(
        tmp_path / "else" / "t.csv", f"path,y\n0.jpg,1.5\n{tmp_path / 'photos' / '1.jpg'},2\n"
    )
    source = opened(f"csv:{file}(root={tmp_path / 'photos'})")
    assert source.info.task.kind == REGRESSION
    assert source.bad == ()
    assert len(list(source.split("train"))) == 2
    assert len(opened(f"csv:{file}").bad) == 1


def test_images_that_cannot_be_used(images, tmp_path):
    photos = tmp_path / "photos"
    (photos / "zero.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("no image")
    bomb(photos / "bomb.png")
    truncate(save(photos / "cut.jpg", picture(9)))
    names = ["zero.jpg", "text.jpg", "bomb.png", "gone.jpg", "cut.jpg"]
    with images.open("a") as file:
        file.write("".join(f"photos/{name},a\n" for name in names) + ",a\n")
    source = opened(f"csv:{images}")
    assert bad(source) == [
        ("table.csv line 6", f"names the image {photos}/zero.jpg, which is empty (0 bytes)"),
        (
            "table.csv line 7",
            f"names the image {photos}/text.jpg, which is no JPEG, PNG, GIF, BMP or WebP image",
        ),
        (
            "table.csv line 8",
            f"names the image {photos}/bomb.png, which has more than 89,478,485 pixels, "
            "which are not decoded",
        ),
        ("table.csv line 9", f"names the image {photos}/gone.jpg, which does not exist"),
        ("table.csv line 11", "has an empty 'filename'"),
    ]
    (cut,) = scan(source, ["train"]).bad
    assert cut.where == "table.csv line 10"
    assert len(list(source.split("train", np.arange(4)))) == 4
    with pytest.raises(UserError, match=r"table\.csv line 6 names .* and 4 more"):
        stop_for_bad(source.bad, skip_bad=False)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("csv:{}(root=nowhere)", r"line 2 names the image .*nowhere/photos/0\.jpg, which does not"),
        ("csv:{}(image=class,label=filename)", r"line 2 names the image .*/a, which does not"),
        ("csv:{}(labels=class)", "line 2 has 'a' for a label, which is not 0 or 1.* separator="),
        ("csv:{}(target=class)", "line 2 has 'a' for a number"),
    ],
)
def test_first_line_is_shown_if_all_are_bad(images, spec, line):
    with pytest.raises(UserError, match=rf"must have usable examples .* none; table\.csv {line}"):
        opened(spec.format(images))


def test_values_of_a_split_column_that_are_none(tmp_path):
    owners = "".join(f"x,a,owner {row}\n" for row in range(9))
    file = write(tmp_path / "t.csv", f"text,label,owner\n{owners}")
    with pytest.raises(
        UserError, match=r"'owner' has 'owner 0', .* and others; understood are train, training,"
    ):
        opened(f"csv:{file}(split=owner)")


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(UserError, match=r"is a folder\. For images in it write folder:"):
        opened(f"csv:{tmp_path}")


_WRONG_LINES = [
    (b",a", "has an empty 'text'"),
    (b"  ,a", "has an empty 'text'"),
    (b"one", "has 1 cells, and there are 2 columns"),
    (b"one,a,more", "has 3 cells, and there are 2 columns"),
    (b"caf\xe9,a", "is not UTF-8"),
    (b"one,caf\xe9", "is not UTF-8"),
    (b"one,", "has an empty 'label'"),
]
_WRONG_QUOTES = [
    (b'"one"two,a', "is not CSV: ',' expected after '\"'"),
]


@pytest.mark.parametrize(
    ("kind", "line", "reason"),
    [
        *(("csv", line, reason) for line, reason in _WRONG_LINES + _WRONG_QUOTES),
        *(("tsv", line.replace(b",", b"\t"), reason) for line, reason in _WRONG_LINES),
    ],
)
def test_bad_lines_are_named_and_the_rest_is_usable(tmp_path, kind, line, reason):
    comma = b"," if kind == "csv" else b"\t"
    lines = [b"text,label", b"x,a", b"y,b", b"z,a", line]
    lines[2:] = [line, *lines[2:4]]
    where = lines.index(line)
    content = b"\n".join(one.replace(b",", comma) if one != line else one for one in lines)
    source = opened(f"{kind}:{write(tmp_path / f't.{kind}', content)}")
    assert bad(source) == [(f"t.{kind} line {where + 1}", reason)]
    assert source.bad[0].row == where - 1
    assert source.labels("train")[where - 1] == -1
    assert source.info.task.names == ("a", "b")
    good = np.delete(np.arange(4), where - 1)
    kept = list(source.split("train", good).as_numpy_iterator())
    assert [(row[1], row[2]) for row in kept] == [(b"x", 0), (b"y", 1), (b"z", 0)]
    assert texts(source)[where - 1] == ""
    with pytest.raises(UserError, match=f"line {where + 1} "):
        stop_for_bad(source.bad, skip_bad=False)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "x"', "is not JSON"),
        (b'["x", "a"]', "is no JSON object"),
        (b'{"text": "x"}', "has nothing for 'label'"),
        (b'{"text": null, "label": "a"}', "has nothing for 'text'"),
        (b'{"text": 3, "label": "a"}', "has no string for 'text'"),
        (b'{"text": " ", "label": "a"}', "has an empty 'text'"),
        (b'{"text": "caf\xe9", "label": "a"}', "is not UTF-8"),
        (rb'{"text": "\ud800", "label": "a"}', "is not UTF-8"),
        (b'{"text": "x", "label": {"a": 1}}', "has an object for its label"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_bad_json_lines(tmp_path, line, reason):
    good = [b'{"text": "x", "label": "a"}', b'{"text": "y", "label": "b"}']
    file = write(tmp_path / "t.jsonl", b"\n".join([good[0], line, good[1]]))
    source = opened(f"jsonl:{file}")
    ((where, said),) = bad(source)
    assert where == "t.jsonl line 2"
    assert said.startswith(reason)
    assert texts(source) == ["x", "", "y"]


@pytest.mark.parametrize("value", ["nan", "inf", "x"])
def test_label_that_is_no_number_among_classes_that_are(tmp_path, value):
    file = write(tmp_path / "t.csv", f"text,label\nx,1\ny,2\nz,{value}\n")
    source = opened(f"csv:{file}")
    assert source.labels("train").tolist() == [0, 1, -1]
    ((where, reason),) = bad(source)
    assert where == "t.csv line 4"
    assert reason.startswith(f"has the label {value!r}, which is no number")


def test_class_in_test_that_train_lacks(tmp_path):
    write(tmp_path / "test.csv", "text,label\nx,a\ny,c\n")
    file = write(tmp_path / "t.csv", "text,label\nx,a\ny,b\n")
    source = opened(f"csv:{file}(test={tmp_path / 'test.csv'})")
    assert source.info.task.names == ("a", "b")
    assert source.labels("test").tolist() == [0, -1]
    assert bad(source) == [("test.csv line 3", "has the class 'c', which has no example in train")]
    several = opened(f"csv:{file}(test={tmp_path / 'test.csv'}, label=label, separator=|)")
    assert bad(several) == bad(source)


@pytest.mark.parametrize(
    ("content", "spec", "options", "message"),
    [
        ("", "", {}, "must hold rows, and is empty"),
        ("text,label\n", "", {}, "must have rows of split 'train'"),
        ("\n\n", "", {}, "must begin with a row"),
        ("text,label\nx,a\ny,a\n", "", {}, "at least two classes for training, and has only 'a'"),
        (
            "text,label\nx,\ny,\n",
            "",
            {},
            "at least two classes for training, and has none; t.csv line 2 has an empty",
        ),
        ("a,label\nx,a\n", "", {}, "usual name.* columns are 'a', 'label'"),
        ("text,a\nx,a\n", "", {}, "column of labels .* columns are 'text', 'a'"),
        ("text,label\nx,a\n", "(label=klass)", {}, "has no column 'klass'.*'label'"),
        ("text,label,text\nx,a,y\n", "", {}, "has the column 'text' twice"),
        ("text,label\nx,a\n", "(text=a, image=b)", {}, "text= or image=, not both"),
        ("text,label\nx,a\n", "(pair=text)", {}, "must name the second of two texts"),
        ("text,label\nx,a\n", "(text=text, pair=text)", {}, "must name the second of two texts"),
        ("text,label\nx,a\n", "(text=text, pair='')", {}, "must name the second of two texts"),
        ("text,label\nx,a\n", "(image=text, pair=label)", {}, "must name the second of two"),
        ("text,label\nx,a\n", "(text=text, pair=b)", {}, "has no column 'b'"),
        ("text,label\n,a\n ,b\n", "", {}, "has none; t.csv line 2 has an empty 'text'"),
        ("text,label\nx,a\n", "(label=a, target=b)", {}, "label= or target=, not both"),
        ("text,label\nx,a\n", "(columns='a;b;c')", {}, "3 columns of columns=, .* 2 cells"),
        ("text,label\nx,a\n", "(separator=|, target=label)", {}, "needs label="),
        ("text,label\nx,a\n", "(labels=label)", {"task": REGRESSION}, "says multi_label, and the"),
        ("text,label\nx,a\n", "(target=label)", {"task": SINGLE_LABEL}, "says regression, and"),
        ("text,label\nx,a\n", "", {"task": "ranking"}, "must be one of"),
        ("text,label\nx,a\n", "(text=text, label='a;b')", {}, "label= of .* must name a column"),
        ("text,label\nx,a\n", "(split=part)", {}, "no column 'part'"),
        ("text,label\nx,a\n", "(split=label, test=x.csv)", {}, "in a column or in files"),
        ("text,label\nx,a\n", "(test=nowhere.csv)", {}, "must name a file"),
        ("text,label\nx,a\n", "", {"group_column": "who"}, "no column 'who'"),
        ("text,label\nx,a\n", "(texts=a)", {}, "no option 'texts'"),
        ("text,label\nx,a\n", "(label=label", {}, r"must name a file.* has no \) at its end"),
        (
            "text,label\nx,a\n",
            "(columns='text')",
            {},
            "1 columns of columns=.*all columns, in order",
        ),
        ("text,label\nx,a\n", "(delimiter=||)", {}, r"one character .* is '\|\|'"),
        ("text,label\nx,a\n", "(labels='a;b', separator=|)", {}, "labels= of one column"),
        ("text,label\nx,a\n", "(label=true)", {}, "must be a name, not True"),
        (b"caf\xe9,label\nx,a\n", "", {}, "must be UTF-8, and its first line is not"),
        ("text,label\nx,a\n".encode("utf-16"), "", {}, "must be UTF-8"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, spec, options, message):
    file = write(tmp_path / "t.csv", content)
    with pytest.raises(UserError, match=message):
        opened(f"csv:{file}{spec}", **options)


def test_json_table_without_objects(tmp_path):
    with pytest.raises(UserError, match="must hold a JSON object a line"):
        opened(f"jsonl:{write(tmp_path / 't.jsonl', 'hello')}")


def test_file_that_changes_after_it_was_opened(csv_file):
    source = opened(f"csv:{csv_file}")
    csv_file.write_text("text,label\ngood,pos\n")
    with pytest.raises(Exception, match="is shorter than it was when opened"):
        texts(source)
