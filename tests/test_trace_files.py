"""What stands in trace files: the shapes of rows, times and their zones, columns by options."""

import datetime
import gzip
import itertools
import json
from fractions import Fraction

import numpy as np
import pytest

import jaxlb
from tests.test_traces import AZURE, GOOD, write


def read(tmp_path, text, format="csv", **options):
    return jaxlb.read_trace(write(tmp_path, text), format, **options)


SWF = " ".join(["1"] * 18) + "\n" + " ".join(["2"] * 18) + "\n"
SWIM = "a\t0\t0\t1\t2\t3\nb\t4\t4\t1\t2\t3\n"


@pytest.mark.parametrize(
    ("text", "format", "message"),
    [
        ("time,size\n0,1\n0,5,1,5\n", "csv", ":3: 4 columns where 2 are expected"),
        ("time,size\n0,1\n1,2,\n", "csv", ":3: 3 columns where 2 are expected"),
        ('time,size,note\n0,1,"a\n7,9,b\n', "csv", ":2: no CSV: unexpected end of data"),
        ('time,size\n0,1\n"1"x,5\n', "csv", ":3: no CSV"),
        ("time,size,size\n0,1,2\n1,1,2\n", "csv", ":1: 2 columns 'size': the header must name it once"),
        ('time,size,note\n0,1,"a\nb"\n1,x,c\n', "csv", ":4: size = 'x': must be a number"),
        ("0,1\n1,2\n", "csv", r"no column 'time'.*\(no header\? columns=\[...\] names them\)"),
        (SWF + "3 3 3\n", "swf", ":3: 3 columns where 18 are expected"),
        (SWF + "1 " * 19 + "\n", "swf", ":3: 19 columns where 18 are expected"),
        (SWF.replace("2 2", "2 x", 1), "swf", ":2: submit time = 'x': must be a number"),
        (SWF.replace("2 2 2", "2 2\u00a02", 1), "swf", ":2: holds characters that are no ASCII"),
        (SWIM + "c\t5\t1\t1\t2\t3\t4\n", "swim", ":3: 7 columns where 6 are expected"),
        (SWIM + "c\t5\t1\t1\tx\t3\n", "swim", ":3: shuffle = 'x': must be a number"),
        (b"time,size,note\n0,1,a\n1,2,caf\xe9\n", "csv", ":3: not UTF-8: must be a text file"),
        ("time,size,note\n0,1,a\n1,2,\0\n", "csv", ":3: holds a NUL byte"),
        ('{"time": 0, "size": 1}\n{"time": 1}\n', "jsonl", ":2: no 'size'; the object has 'time'"),
        ('{"time": 0, "size": 1}\n{"time": 1, "size": 2\n', "jsonl", ":2: no JSON: "),
        ('{"time": 0, "size": 1}\n[1, 2]\n', "jsonl", ":2: must be a JSON object"),
        ('{"time": 0, "size": 1}\n{"time": 1, "size": 2, "size": 3}\n', "jsonl", ":2: no JSON: a name twice"),
        ('{"time": 0, "size": 1}\n{"time": 1, "size": null}\n', "jsonl", ":2: size = None: must be a number"),
        ('{"time": 0, "size": 1}\n{"time": 1, "size": true}\n', "jsonl", ":2: size = True: must be a number"),
        ('{"time": 0, "size": 1}\n{"time": 1, "size": NaN}\n', "jsonl", ":2: size = 'NaN': must be finite"),
    ],
)
def test_rows_of_another_shape_are_refused_by_line(tmp_path, text, format, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text, format)


@pytest.mark.parametrize(
    "number", ["1_000", "0x10", "nan", "1e999", "1e-999", "\u0663", "1 0", "", "1,5", "--1", "e5"]
)
def test_what_python_but_nobody_else_takes_for_a_number_is_refused(tmp_path, number):
    with pytest.raises(ValueError, match=r":3: size = .*: must be"):
        read(tmp_path, f'time,size\n0,1\n1,"{number}"\n')


def test_a_quoted_line_break_is_no_task_and_blanks_around_numbers_are_none(tmp_path):
    trace = read(tmp_path, 'time,size,note\r\n0,1,"a\r\n7,9,""b"""\r\n\r\n 2 , +3. ,c\r\n')
    np.testing.assert_array_equal(trace.time, [0, 2])
    np.testing.assert_array_equal(trace.size, [1, 3])


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [
        ("2023-11-16 18:17:03.9799600", "2023-11-16 18:17:04.0319600", Fraction(52, 1000)),
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01+00:00", 1 - Fraction(9930, 10**6)),
        ("2024-10-15T12:00:00.269Z", "2024-10-15T12:00:00.27Z", Fraction(1, 1000)),
        ("2024-05-10 00:00:00+02:00", "2024-05-10 00:00:00-0130", Fraction(12600)),
        ("2024-05-10 01:59:30+02:00", "2024-05-10T00:00:00Z", Fraction(30)),
        ("1969-12-31 23:59:59.5", "1970-01-01T00:00:00.123456789012", Fraction(623456789012, 10**12)),
        ("2024-02-28 23:00:00", "2024-03-01T01:00:00", Fraction(26 * 3600)),
        ("2024-06-01T00:00:00.0000000001Z", "2024-06-01T00:00:00.0000000003Z", Fraction(2, 10**10)),
    ],
)
def test_times_of_day_are_exact_and_in_utc(tmp_path, first, second, seconds):
    trace = read(tmp_path, f"{AZURE}{first},1,1\n{second},1,1\n", "azure-llm")
    np.testing.assert_allclose(trace.time[1] - trace.time[0], float(seconds), rtol=3e-16, atol=1e-15)


def test_times_of_day_agree_with_pythons(tmp_path):
    rng = np.random.default_rng(0)
    epoch = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    moments = [
        epoch + datetime.timedelta(microseconds=int(part)) for part in np.sort(rng.integers(0, 10**14, 200))
    ]
    shifts = [datetime.timedelta(minutes=int(part)) for part in rng.integers(-720, 840, 200)]
    text = AZURE + "".join(
        f"{moment.astimezone(datetime.timezone(shift)).isoformat()},1,1\n"
        for moment, shift in zip(moments, shifts, strict=True)
    )
    expected = [(moment - moments[0]) / datetime.timedelta(seconds=1) for moment in moments]
    found = read(tmp_path, text, "azure-llm").time
    np.testing.assert_allclose(found - found[0], expected, atol=1e-7)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ("2024-05-10 00:00:03.1e5", "must be a number, or look like"),
        ("2024-05-10", "must be a number, or look like"),
        ("2024-05-10 00:00", "must be a number, or look like"),
        ("2024-05-10 00:00:01,5", "must be a number, or look like"),
        ("2024-05-10  00:00:01", "must be a number, or look like"),
        ("2024-05-10 00:00:01 UTC", "must be a number, or look like"),
        ("2024-05-10 00:00:01.", "must be a number, or look like"),
        ("2024-02-30 00:00:01", "there is no such time"),
        ("2023-02-29 00:00:01", "there is no such time"),
        ("2024-13-01 00:00:01", "there is no such time"),
        ("2024-05-10 24:00:00", "there is no such time"),
        ("2024-05-10 00:60:00", "there is no such time"),
        ("2024-05-10 00:00:60", "there is no such time"),
        ("2024-05-10 00:00:01+24:00", "there is no such time"),
        ("2024-05-10 00:00:01+00:60", "there is no such time"),
        ("2024-05-10 00:00:01Z", "has a time zone, unlike those before: all must have one, or none"),
        ("17", "must be like those before, which are times of day"),
    ],
)
def test_times_that_are_none_are_refused_by_line(tmp_path, time, message):
    with pytest.raises(ValueError, match=f":3: TIMESTAMP = .*: {message}"):
        read(tmp_path, f'{AZURE}2024-05-10 00:00:00,1,1\n"{time}",1,1\n', "azure-llm")


BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,API log
"""
ALIBABA = """job_name,task_name,inst_num,status,start_time,end_time,plan_cpu,plan_mem
j_1,M1,1,Terminated,100,160,50,0.5
j_2,M1,1,Terminated,86400,86403,50,0.5
j_3,M1,1,Terminated,86410,86414,50,0.5
j_4,M1,1,Terminated,86411,86412,50,0.5
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 250, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}
{"timestamp": 3000, "input_length": 7236, "output_length": 794, "hash_ids": []}
"""


def test_files_of_others_are_read_by_options_alone(tmp_path):
    tokens = {"Request tokens": 0.5, "Response tokens": 2}
    burst = read(tmp_path, BURSTGPT, time_column="Timestamp", size_column=tokens)
    np.testing.assert_array_equal(burst.time, [5, 45, 118])
    np.testing.assert_array_equal(burst.size, [236 + 36, 543.5 + 460, 208.5 + 552])

    # The first task arrives a day before the others.
    worked = {"end_time": 1, "start_time": -1}
    batch = read(tmp_path, ALIBABA, time_column="start_time", size_column=worked, start=86400, stop=86411)
    np.testing.assert_array_equal(batch.time, [86400, 86410])
    np.testing.assert_array_equal(batch.size, [3, 4])
    header, _, bare = ALIBABA.partition("\n")
    named = read(tmp_path, bare, time_column="start_time", size_column=worked, columns=header.split(","))
    np.testing.assert_array_equal(named.size, [60, 3, 4, 1])

    names = {"time_column": "timestamp", "size_column": "output_length", "time_unit": "ms"}
    moon = read(tmp_path, MOONCAKE, "jsonl", **names)
    np.testing.assert_array_equal(moon.time, [0, 0.25, 3])
    np.testing.assert_array_equal(moon.size, [500, 490, 794])


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_columns_are_named_alike_in_every_format(tmp_path, format):
    rows = [("2024-05-10T08:00:00+00:00", "2024-05-10T08:00:02.5+00:00", "1", "2024-05-10T08:00:10+00:00")]
    rows += [("2024-05-10T08:00:01+00:00", "2024-05-10T10:00:02+02:00", "0", "2024-05-10T08:00:03+00:00")]
    names = ["begin", "end", "class", "due"]
    text = "\n".join([",".join(names), *map(",".join, rows)])
    if format == "jsonl":
        text = "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows)
    trace = read(
        tmp_path,
        text,
        format,
        time_column="begin",
        size_column={"end": 1, "begin": -1},
        priority_column="class",
        deadline_column={"due": 1, "begin": -1},
    )
    np.testing.assert_array_equal(np.diff(trace.time), [1])
    np.testing.assert_array_equal(trace.size, [2.5, 1])
    np.testing.assert_array_equal(trace.priority, [1, 0])
    np.testing.assert_array_equal(trace.deadline, [10, 2])


def test_deadlines_are_to_sizes_what_they_are_in_the_file_whatever_the_unit_of_times(tmp_path):
    columns = {"time_column": "at", "size_column": "work", "deadline_column": "due"}
    seconds = read(tmp_path, "at,work,due\n0,2,8\n1,1,4\n", **columns)
    millis = read(tmp_path, "at,work,due\n0,2000,8000\n1000,1000,4000\n", time_unit="ms", **columns)
    np.testing.assert_array_equal(seconds.time, millis.time)
    for trace in (seconds, millis):
        process, law = trace.workload(mean_size=3.0)
        np.testing.assert_allclose(process.task_deadline, 4.0 * np.asarray(process.task_size), rtol=1e-6)
        assert float(law.mean()) == 3.0


def test_a_window_is_told_in_the_times_of_the_file(tmp_path):
    inside = {"start": "2023-11-16T18:17:04", "stop": "2023-11-16 18:17:06"}
    rows = "".join(f"2023-11-16 18:17:0{second},1,{second}\n" for second in range(1, 9))
    np.testing.assert_array_equal(read(tmp_path, AZURE + rows, "azure-llm", **inside).size, [4, 5])
    np.testing.assert_array_equal(read(tmp_path, SWF, "swf", start=1, stop=2.5).time, [1, 2])
    np.testing.assert_array_equal(
        read(tmp_path, "time,size\n1000,1\n2000,2\n3000,3\n", time_unit="ms", start=2000).time, [2, 3]
    )
    for options, message in (
        ({"start": 3}, "start = '3': must be a time as column 'TIMESTAMP' has them"),
        ({"start": "noon"}, "option start = 'noon': must be a number, or look like"),
        ({"start": "2023-11-16 18:17:04Z"}, "has a time zone, unlike those before"),
        ({"start": inside["stop"], "stop": inside["start"]}, "must be later than start"),
        ({"start": "2024-01-01 00:00:00"}, "holds no tasks between start and stop"),
        ({"start": [1]}, r"start = \[1\]: must be a time"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, AZURE + rows, "azure-llm", **options)


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("csv", {"priority_column": ""}, "priority_column = '': must be the name of a column"),
        ("csv", {"time_column": None}, "time_column = None: must be the name of a column"),
        ("csv", {"time_column": 3}, "time_column = 3: must be the name of a column"),
        ("csv", {"size_column": ""}, "size_column = '': must be the name of a column, or weights"),
        ("csv", {"size_column": {}}, "size_column = {}: must be the name of a column, or weights"),
        ("csv", {"size_column": ["size"]}, r"size_column = \['size'\]: must be the name of a column"),
        ("csv", {"size_column": {"size": "2"}}, "weight of 'size' = '2': must be a number"),
        ("csv", {"size_column": {"size": float("nan")}}, "weight of 'size' = nan: must be a number"),
        ("csv", {"size_column": {"size": 0}}, "one of the weights must not be 0"),
        ("csv", {"time_unit": "minutes"}, "unknown time_unit 'minutes'"),
        ("csv", {"columns": "time,size"}, "columns = 'time,size': must be a list of names"),
        ("jsonl", {"columns": ["time", "size"]}, "unknown option of trace format 'jsonl' 'columns'"),
        ("azure-llm", {"size_column": "GeneratedTokens"}, "unknown option of trace format 'azure-llm'"),
        ("azure-llm", {"prefill_weight": "0.5"}, "prefill_weight = '0.5': must be a number"),
        ("azure-llm", {"prefill_weight": float("nan")}, "prefill_weight = nan: must be a number, not NaN"),
        ("azure-llm", {"decode_weight": -1}, "decode_weight = -1: must be at least 0"),
        ("azure-llm", {"decode_weight": 0}, "prefill_weight = 0, decode_weight = 0: one must be above 0"),
        (["csv"], {}, r"unknown trace format \"\['csv'\]\""),
    ],
)
def test_options_that_cannot_be_are_refused_before_a_file_is_read(tmp_path, format, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        jaxlb.read_trace(tmp_path / "none", format, **options)
    assert "\n" not in str(caught.value)


def test_sums_of_numbers_and_times_are_refused(tmp_path):
    text = "time,size,end\n2024-05-10 00:00:00,1,2024-05-10 00:00:01\n"
    with pytest.raises(ValueError, match="'end': a time of day: subtract another, by weights 1 and -1"):
        read(tmp_path, text, size_column="end")
    with pytest.raises(ValueError, match="'end' and 'size': some are numbers, some times of day"):
        read(tmp_path, text, size_column={"end": 1, "size": -1})
    with pytest.raises(ValueError, match="'end': a time of day"):
        read(tmp_path, text, priority_column="end")


@pytest.mark.parametrize(
    ("text", "format"),
    [(GOOD, "azure-llm"), (SWF, "swf"), (SWIM, "swim"), ("time,size\n0,1\n1,2\n", "csv")],
)
def test_gzip_is_told_by_its_bytes_and_damage_is_told(tmp_path, text, format):
    plain = read(tmp_path, text, format)
    packed = gzip.compress(text.encode())
    zipped = read(tmp_path, packed, format)  # still named .csv
    np.testing.assert_array_equal(plain.time, zipped.time)
    np.testing.assert_array_equal(plain.size, zipped.size)
    for damaged in (packed[:-12], packed[:-8] + b"\0\0" + packed[-6:]):
        with pytest.raises(ValueError, match="a damaged gzip file"):
            read(tmp_path, damaged, format)


def test_comments_of_swf_hold_any_bytes(tmp_path):
    trace = read(tmp_path, b"; Installation: Universit\xe9 \0\n" + SWF.encode(), "swf")
    np.testing.assert_array_equal(trace.time, [1, 2])


FILES = {"azure-llm": GOOD, "csv": "time,size\n0,1\n1,2\n", "jsonl": MOONCAKE, "swf": SWF, "swim": SWIM}


@pytest.mark.parametrize(("true", "asked"), list(itertools.permutations(FILES, 2)))
def test_another_format_is_told(tmp_path, true, asked):
    known = r"\(formats: azure-llm, csv, jsonl, swf, swim\)"
    with pytest.raises(ValueError, match=f":1: .*; it looks like '{true}', not '{asked}' {known}"):
        read(tmp_path, FILES[true], asked)


def test_what_looks_like_no_format_is_told_without_a_guess(tmp_path):
    with pytest.raises(ValueError, match=r":1: 3 columns where 18 are expected; it does not look like 'swf'"):
        read(tmp_path, "1 2 3\n", "swf")


def test_numbers_that_float32_cannot_hold_are_refused_by_name(tmp_path):
    for size in ("1e308", "1e39", "1e-39"):
        with pytest.raises(ValueError, match=r"trace.csv: size = .*: must be within float32"):
            read(tmp_path, f"time,size\n0,1\n1,{size}\n")
    with pytest.raises(ValueError, match=r"trace.csv: deadline = .*: must be within float32"):
        read(tmp_path, "time,size,due\n0,1,1\n1,1,1e300\n", deadline_column="due")
    with pytest.raises(ValueError, match=r"trace.csv: time = .*: must be within float32"):
        read(tmp_path, "time,size\n0,1\n1e300,1\n")
    close = read(tmp_path, "time,size\n0,1\n1e-30,1\n1e10,1\n")
    with pytest.raises(ValueError, match=r"trace.csv: gap, in mean gaps, = 2e-40: must be within float32"):
        jaxlb.make("stable", trace=close)
    apart = read(tmp_path, "time,size\n0,1e-30\n1,1e10\n")
    with pytest.raises(ValueError, match=r"trace.csv: size, at a mean of 1, = 2e-40: must be within float32"):
        jaxlb.make("stable", trace=apart)
    with pytest.raises(ValueError, match="priorities must be whole numbers from 0, below"):
        read(tmp_path, "time,size,p\n0,1,0\n1,1,4294967296\n", priority_column="p")
