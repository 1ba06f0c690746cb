"""Ops of text on random strings, empty ones and such as are no UTF-8: TensorFlow is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2

pytestmark = pytest.mark.needs_tf
ALPHABET = ("a", "B", "c", " ", ",", "-", "\t", "é", "漢", "😀", "0", "7")


def texts(count: int = 40, seed: int = 0) -> np.ndarray[Any, Any]:
    """Returns random strings of UTF-8, of which the first is empty."""
    rng = np.random.default_rng(seed)
    items = ["".join(rng.choice(ALPHABET, rng.integers(0, 12))) for _ in range(count)]
    result = np.empty(count, object)
    result[:] = [b"", *(item.encode() for item in items[1:])]
    return result


def blobs(count: int = 60, most: int = 150) -> np.ndarray[Any, Any]:
    """Returns random bytes of all lengths up to one."""
    rng = np.random.default_rng(1)
    result = np.empty(count, object)
    result[:] = [rng.bytes(size) for size in np.linspace(0, most, count).astype(int)]
    return result


FLOATS = np.array([0.0, -1.5, 1e-7, 123456789.0, np.inf, np.nan], np.float32)
NUMBERS = ["1.5", " -2e3 ", "inf", "0", "nan", "+7"]
RAGGED = ["a", "b", "c", "d", "e", "f"]
CUBE = np.arange(24).reshape(2, 3, 4)
UTF = {"input_encoding": "UTF-8"}

CASES = {
    "fast buckets": lambda raw: raw.StringToHashBucketFast(input=blobs(), num_buckets=1 << 31),
    "strong buckets": lambda raw: raw.StringToHashBucketStrong(
        input=blobs(), num_buckets=9973, key=[-3, 1 << 60]
    ),
    "buckets": lambda raw: raw.StringToHashBucket(string_tensor=blobs(), num_buckets=1 << 31),
    "Substr": lambda raw: raw.Substr(input=["abcdef", "漢字kanji"], pos=[1, -3], len=[3, 2]),
    "Substr of one place": lambda raw: raw.Substr(input=["abcdef", "abc"], pos=2, len=100),
    "Substr of characters": lambda raw: raw.Substr(
        input=["漢字kanji", "é😀x"], pos=[1, -2], len=[3, 9], unit="UTF8_CHAR"
    ),
    "Substr of broadcast": lambda raw: raw.Substr(
        input=[["abcd"], ["efgh"]], pos=[[0, 1]], len=[[2, 3]]
    ),
    "StringLength": lambda raw: raw.StringLength(input=blobs(), unit="UTF8_CHAR"),
    "StringStrip": lambda raw: raw.StringStrip(input=texts()),
    "StringLower": lambda raw: raw.StringLower(input=texts(), encoding="utf-8"),
    "StringUpper": lambda raw: raw.StringUpper(input=["straße", "ñ", ""], encoding="utf-8"),
    "StringToNumber": lambda raw: raw.StringToNumber(string_tensor=NUMBERS),
    "StringToNumber of ints": lambda raw: raw.StringToNumber(
        string_tensor=["7", " -3", "+12"], out_type=9
    ),
    "AsString of complex": lambda raw: raw.AsString(input=np.complex64([1 + 2j, -0.5j])),
    "AsString shortest": lambda raw: raw.AsString(input=FLOATS, shortest=True),
    "AsString scientific": lambda raw: raw.AsString(input=FLOATS, scientific=True),
    "AsString filled": lambda raw: raw.AsString(input=FLOATS[:4], width=12, fill="-", precision=2),
    "UnsortedSegmentJoin": lambda raw: raw.UnsortedSegmentJoin(
        inputs=[["a", "b"], ["c", "d"], ["e", "f"]],
        segment_ids=[2, 0, 2],
        num_segments=4,
        separator="+",
    ),
    "StringFormat": lambda raw: raw.StringFormat(
        inputs=[FLOATS, CUBE, "é\n'", np.array([True])], template="a %s b %s c %s %s", summarize=2
    ),
    "StringFormat of digits": lambda raw: raw.StringFormat(
        inputs=[
            np.float32([0.1, 1 / 3, 123456789.0, 2.5e-30]),
            np.float64([0.1, 1 / 3, 1e300]),
            np.complex64([1 / 3 + 2j]),
            np.float16([1 / 3]),
        ],
        template="%s %s %s %s",
        summarize=-1,
    ),
    "StringFormat of all": lambda raw: raw.StringFormat(
        inputs=[CUBE], template="{} é", placeholder="{}", summarize=-1
    ),
    "EncodeBase64": lambda raw: raw.EncodeBase64(input=blobs()),
    "EncodeBase64 padded": lambda raw: raw.EncodeBase64(input=blobs(), pad=True),
    "DecodeBase64": lambda raw: raw.DecodeBase64(input=raw.EncodeBase64(input=blobs())),
    "DecodeRaw": lambda raw: raw.DecodeRaw(bytes=["abcdefgh", "\x00\x01\x02\x03abcd"], out_type=3),
    "DecodeRaw big endian": lambda raw: raw.DecodeRaw(
        bytes=["abcdefgh"], out_type=1, little_endian=False
    ),
    "DecodePaddedRaw": lambda raw: raw.DecodePaddedRaw(
        input_bytes=["a", "", "abcdef"], fixed_length=4, out_type=5
    ),
    "SerializeTensor": lambda raw: raw.SerializeTensor(tensor=CUBE),
    "SerializeTensor of strings": lambda raw: raw.SerializeTensor(tensor=texts()),
    "ParseTensor": lambda raw: raw.ParseTensor(
        serialized=raw.SerializeTensor(tensor=FLOATS[:5]), out_type=1
    ),
    "regex": lambda raw: raw.StaticRegexReplace(input=texts(), pattern=r"[^a-z\s]+", rewrite="#"),
    "regex with groups": lambda raw: raw.RegexReplace(
        input=texts(), pattern=r"(\w)(?P<last>[[:space:]])", rewrite=r"\2<\1>\\\0"
    ),
    "regex once": lambda raw: raw.StaticRegexReplace(
        input=texts(), pattern="(?i)[abc]", rewrite="", replace_global=False
    ),
    "regex of categories": lambda raw: raw.StaticRegexReplace(
        input=texts(), pattern=r"\pL|\p{Nd}|[^\PZ]", rewrite="x"
    ),
    "regex at the end": lambda raw: raw.StaticRegexReplace(
        input=["a\n", "b\na", "a"], pattern=r"a$|^b", rewrite="x"
    ),
    "regex of lines": lambda raw: raw.StaticRegexReplace(
        input=["a\n", "b\na", "a"], pattern=r"(?m)^|(?s:a.)|\x61\z", rewrite="x"
    ),
    "full match": lambda raw: raw.StaticRegexFullMatch(input=texts(), pattern=r"[a-z ]*\W?.?"),
    "full match of a tensor": lambda raw: raw.RegexFullMatch(
        input=["s3://bucket", "file", ""], pattern="^s3://.*|"
    ),
    "Equal": lambda raw: raw.Equal(x=texts(), y=np.roll(texts(), 0)),
}
for _sep, _most in (("", -1), (",", -1), ("", 1), (" ", 2), ("é", 1), ("", 0)):
    for _part in range(3):
        CASES[f"StringSplitV2 {_sep!r} {_most} {_part}"] = (
            lambda raw, sep=_sep, most=_most, part=_part: raw.StringSplitV2(
                input=texts(), sep=sep, maxsplit=most
            )[part]
        )
for _delimiter, _skip in ((" ", True), (",-", False), ("", True), ("é", True)):
    for _part in range(3):
        CASES[f"StringSplit {_delimiter!r} {_skip} {_part}"] = (
            lambda raw, delimiter=_delimiter, skip=_skip, part=_part: raw.StringSplit(
                input=texts(), delimiter=delimiter, skip_empty=skip
            )[part]
        )
for _widths, _pad, _short in (([2], -1, False), ([1, 3], 1, False), ([5], 0, True), ([2, 3], 0, 0)):
    for _part in range(2):
        CASES[f"StringNGrams {_widths} {_pad} {_short} {_part}"] = (
            lambda raw, widths=_widths, pad=_pad, short=bool(_short), part=_part: raw.StringNGrams(
                data=RAGGED,
                data_splits=np.int64([0, 3, 3, 4, 6]),
                separator="|",
                ngram_widths=widths,
                left_pad="<",
                right_pad=">",
                pad_width=pad,
                preserve_short_sequences=short,
            )[part]
        )
for _part in range(3):
    CASES[f"DecodeCSV {_part}"] = lambda raw, part=_part: raw.DecodeCSV(
        records=['1,"a ""b"", c",2.5', '-3,,"7"', "NA,plain,NA"],
        record_defaults=[[np.int32(5)], ["none"], [np.float32(0.5)]],
        na_value="NA",
    )[part]
    CASES[f"UnicodeDecode {_part}"] = lambda raw, part=_part: raw.UnicodeDecodeWithOffsets(
        input=np.concatenate([texts(), [b"\xffa\xe6\xbc", b"\x01\n"]]), **UTF
    )[part]
CASES["DecodeCSV of columns"] = lambda raw: raw.DecodeCSV(
    records=["1;2;3", "4;5;6"],
    record_defaults=[[np.int64(5)]],
    field_delim=";",
    select_cols=[2],
    use_quote_delim=False,
)[0]
CASES["UnicodeDecode of controls"] = lambda raw: raw.UnicodeDecode(
    input=["\x01a\n", "b"], replace_control_characters=True, replacement_char=32, **UTF
)[1]
CASES["UnicodeTranscode"] = lambda raw: raw.UnicodeTranscode(
    input=texts(), output_encoding="UTF-16-BE", **UTF
)
CASES["UnicodeEncode"] = lambda raw: raw.UnicodeEncode(
    input_values=[97, 233, 0x1F600, 0xD800, 98],
    input_splits=np.int64([0, 2, 2, 5]),
    output_encoding="UTF-8",
)


def run_both(tf: Any, make: Any) -> tuple[Any, Any]:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        result = make(tf.raw_ops)
        saved = tf.compat.v1.train.export_meta_graph()
        expected = session.run(result)
    return run_here(saved, result.name), expected


def run_here(saved: Any, fetch: Any, **options: Any) -> Any:
    with jaxmeta.Graph().as_default(), jaxmeta.Session(**options) as session:
        jaxmeta.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString()))
        return session.run(fetch)


@pytest.mark.parametrize("name", CASES)
def test_text_is_what_tensorflow_makes_of_it(tensorflow, name):
    found, expected = run_both(tensorflow, CASES[name])
    assert np.shape(found) == np.shape(expected)
    if np.asarray(expected).dtype.kind == "f":
        np.testing.assert_array_equal(found, expected)
    else:
        assert np.asarray(found).tolist() == np.asarray(expected).tolist()


REFUSED = {
    "place outside": lambda raw: raw.Substr(input=["abc"], pos=[4], len=[1]),
    "no number": lambda raw: raw.StringToNumber(string_tensor=["1_0"]),
    "no int32": lambda raw: raw.StringToNumber(string_tensor=["3000000000"], out_type=3),
    "no base 64": lambda raw: raw.DecodeBase64(input=["a+b/"]),
    "bytes of other lengths": lambda raw: raw.DecodeRaw(bytes=["a", "bc"], out_type=4),
    "bytes of no int32": lambda raw: raw.DecodeRaw(bytes=["abc"], out_type=3),
    "no tensor": lambda raw: raw.ParseTensor(serialized="\xff\xff", out_type=1),
    "a tensor of another type": lambda raw: raw.ParseTensor(
        serialized=raw.SerializeTensor(tensor=[1]), out_type=1
    ),
    "a field too few": lambda raw: raw.DecodeCSV(records=["1"], record_defaults=[[1], [2]])[0],
    "a field that is required": lambda raw: raw.DecodeCSV(
        records=[""], record_defaults=[np.zeros(0, np.int32)]
    )[0],
    "a field that is no number": lambda raw: raw.DecodeCSV(records=["x"], record_defaults=[[1]])[0],
    "a quote inside": lambda raw: raw.DecodeCSV(records=['a"b'], record_defaults=[["x"]])[0],
    "a regex that is malformed": lambda raw: raw.RegexReplace(
        input=["a"], pattern="a(b", rewrite="x"
    ),
    "a regex with a look-ahead": lambda raw: raw.RegexFullMatch(input=["a"], pattern="a(?=b)"),
    "a regex with a possessive": lambda raw: raw.RegexFullMatch(input=["a"], pattern="a++"),
    "bytes that are no UTF-8": lambda raw: raw.UnicodeDecode(
        input=raw.Substr(input="é", pos=0, len=1), errors="strict", **UTF
    )[1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_text_that_tensorflow_refuses_is_refused(tensorflow, name):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        result = REFUSED[name](tensorflow.raw_ops)
        saved = tf1.train.export_meta_graph()
        with pytest.raises(tensorflow.errors.InvalidArgumentError):
            session.run(result)
    with pytest.raises(errors.InvalidArgumentError):
        run_here(saved, result.name)


@pytest.mark.parametrize("pattern", ["(a+)+b", r"(\w*\s*)*$", r"a\C", "(?U)a+", r"\p{Greek}"])
def test_expression_that_python_cannot_run_well_is_named(tensorflow, pattern):
    with tensorflow.Graph().as_default():
        result = tensorflow.raw_ops.StaticRegexFullMatch(input=["a" * 50], pattern=pattern)
        saved = tensorflow.compat.v1.train.export_meta_graph()
    with pytest.raises(errors.UnsupportedOpError, match="the regular expression"):
        run_here(saved, result.name)


def printed(capfd: Any, run: Any) -> str:
    capfd.readouterr()
    run()
    return str(capfd.readouterr().err)


@pytest.mark.parametrize("summarize", [3, 5, -1])
def test_print_writes_what_tensorflow_writes(tensorflow, capfd, summarize):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tensorflow.float32, [2, 3], name="x")
        data = [x, CUBE, FLOATS[0], ["é\n", "b"], np.array([True, False])]
        shown = tf1.raw_ops.Print(
            input=x, data=data, message="values: ", first_n=2, summarize=summarize
        )
        tensorflow.multiply(shown, 2.0, name="result")
        saved = tf1.train.export_meta_graph()
        feeds = {"x:0": np.array([[1.5, 2, 1 / 3], [4, 1e-8, 6]], np.float32)}
        expected = printed(capfd, lambda: [session.run("result:0", feeds) for _ in range(3)])
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString()))
        found = printed(capfd, lambda: [session.run("result:0", feeds) for _ in range(3)])
    assert found == expected
    assert found.count("values: ") == 2


def test_print_of_the_second_version(tensorflow, capfd):
    tf1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        operation = tensorflow.print("x is", CUBE, "é", end="!\n", summarize=1)
        saved = tf1.train.export_meta_graph()
        expected = printed(capfd, lambda: session.run(operation))
    found = printed(capfd, lambda: run_here(saved, operation.name))
    assert found == expected != ""


def test_time_is_now_in_each_run(tensorflow):
    with tensorflow.Graph().as_default():
        tensorflow.raw_ops.Timestamp(name="now")
        saved = tensorflow.compat.v1.train.export_meta_graph()
    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        jaxmeta.import_meta_graph(meta_graph_pb2.MetaGraphDef.FromString(saved.SerializeToString()))
        first, then = session.run("now:0"), session.run("now:0")
    assert 1.7e9 < float(first) <= float(then)
    assert np.asarray(first).dtype == np.float64


def test_print_to_a_log_and_to_a_file(tensorflow, tmp_path, caplog):
    raw, path = tensorflow.raw_ops, tmp_path / "out.txt"
    with tensorflow.Graph().as_default():
        raw.PrintV2(input="h\u00e9llo", output_stream="log(warning)", name="log")
        raw.PrintV2(input="h\u00e9llo", output_stream=f"file://{path}", end="|", name="file")
        saved = tensorflow.compat.v1.train.export_meta_graph()
    run_here(saved, "log")
    assert "h\u00e9llo" in caplog.text
    with pytest.raises(errors.FileAccessError):
        run_here(saved, "file")
    for _ in range(2):
        run_here(saved, "file", allow_files=True)
    assert path.read_text() == "h\u00e9llo|h\u00e9llo|"


def test_names_of_shards(tensorflow):
    found, expected = run_both(
        tensorflow, lambda raw: raw.ShardedFilespec(basename="model", num_shards=12)
    )
    assert found == expected
