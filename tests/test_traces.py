"""Trace files: the real ones, and every way a file can be wrong."""

import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxlb
from jaxlb import workload
from jaxlb.params import with_lane_axis
from jaxlb.workload import traces

REAL = Path(__file__).resolve().parents[2] / "shared" / "traces"
FILES = {
    # file: format, rows in it, rows dropped, mean size, squared coefficient of variation of gaps and sizes
    "azure-llm-2023-code.csv": ("azure-llm", 8819, 0, 27.88, 173, 4.6),
    "azure-llm-2023-conv.csv": ("azure-llm", 19366, 0, 211.1, 1.2, 0.60),
    "nasa-ipsc-1993.swf": ("swf", 18239, 173, 772.2, 90, 12),
    "swim-facebook-2009.tsv": ("swim", 5894, 33, 9.547e9, 13, 307),
}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real traces are not shipped; they lie in ../shared/traces")
@pytest.mark.parametrize("name", FILES)
def test_real_traces(name):
    format, rows, dropped, mean_size, gap_cv2, size_cv2 = FILES[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace = jaxlb.read_trace(REAL / name, format)
    assert [f"dropped {dropped}" in str(warning.message) for warning in caught] == [True] * bool(dropped)
    assert abs(len(trace.time) + dropped - rows) <= 1
    gaps = np.diff(trace.time)
    assert gaps.min() >= 0
    np.testing.assert_allclose(trace.size.mean(), mean_size, rtol=1e-3)
    np.testing.assert_allclose(gaps.var() / gaps.mean() ** 2, gap_cv2, rtol=0.05)
    np.testing.assert_allclose(trace.size.var() / trace.size.mean() ** 2, size_cv2, rtol=0.05)


def write(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD = AZURE + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"


def test_azure_times_keep_their_seven_decimals_and_tokens_can_be_weighted(tmp_path):
    path = write(tmp_path, GOOD)
    trace = jaxlb.read_trace(path, "azure-llm")
    np.testing.assert_allclose(np.diff(trace.time), [0.052], atol=2e-7)
    np.testing.assert_array_equal(trace.size, [10, 8])
    weighted = jaxlb.read_trace(path, "azure-llm", prefill_weight=0.5, decode_weight=2.0)
    np.testing.assert_array_equal(weighted.size, [0.5 * 4808 + 20, 0.5 * 3180 + 16])


def test_csv_columns_are_named_by_the_caller(tmp_path):
    path = write(tmp_path, "at,work,class,due\n0,2,1,5\n1,3,0,6\n3,4,2,7\n")
    names = {"time_column": "at", "size_column": "work", "priority_column": "class", "deadline_column": "due"}
    trace = jaxlb.read_trace(path, "csv", **names)
    np.testing.assert_array_equal(trace.priority, [1, 0, 2])
    np.testing.assert_array_equal(trace.deadline, [5, 6, 7])
    only_deadline = jaxlb.read_trace(
        path, "csv", **{k: v for k, v in names.items() if k != "priority_column"}
    )
    assert only_deadline.priority is None
    np.testing.assert_array_equal(only_deadline.deadline, [5, 6, 7])


def test_disorder_is_sorted_and_counted(tmp_path):
    path = write(tmp_path, "time,size\n5,1\n3,2\n3,3\n-1,4\n")
    with pytest.warns(UserWarning, match=r"2 tasks were out of order, 1 had negative times"):
        trace = jaxlb.read_trace(path, "csv")
    np.testing.assert_array_equal(trace.time, [-1, 3, 3, 5])
    np.testing.assert_array_equal(trace.size, [4, 2, 3, 1])


def test_sizes_of_zero_or_less_are_dropped_and_counted(tmp_path):
    path = write(tmp_path, "time,size\n0,1\n1,0\n2,-3\n3,2\n")
    with pytest.warns(UserWarning, match="dropped 2 tasks"):
        trace = jaxlb.read_trace(path, "csv")
    np.testing.assert_array_equal(trace.time, [0, 3])


@pytest.mark.parametrize(
    ("text", "format", "message"),
    [
        ("", "csv", "no column 'time'"),
        ("time,size\n", "csv", "holds no tasks"),
        ("\n\n", "swim", "holds no tasks"),
        ("when,size\n1,2\n", "csv", r"no column 'time'; the header has 'when, size'"),
        ("time,size\n1,2\n3\n", "csv", ":3: 1 columns where 2 are expected"),
        (GOOD[:-20], "azure-llm", r":3: .*(columns|must be|look like)"),
        ("time,size\n1,2\nnan,3\n", "csv", ":3: time = 'nan': must be finite"),
        ("time,size\n1,inf\n", "csv", ":2: size = 'inf': must be finite"),
        ("time,size\n1,x\n", "csv", ":2: size = 'x': must be a number"),
        (AZURE + "yesterday,1,2\n", "azure-llm", "TIMESTAMP = 'yesterday'"),
        ("time,size\n1,2\n1,3\n", "csv", "two at different times"),
        ("time,size\n1,2\n", "csv", "1 usable tasks"),
        ("1 2 3\n", "swf", ":1: 3 columns where 18"),
        ("job\t1\t1\n", "swim", ":1: 3 columns where 6"),
        (b"\x89PNG\x00\x01\xff\xfe", "csv", "text"),
        (b"time,size\n1,2\x00\n", "csv", "NUL byte"),
    ],
)
def test_bad_files_are_refused_with_a_reason(tmp_path, text, format, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.read_trace(write(tmp_path, text), format)


def test_missing_files_and_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        jaxlb.read_trace(tmp_path / "none.csv", "csv")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        jaxlb.read_trace(tmp_path, "csv")
    with pytest.raises(ValueError, match="unknown trace format 'azure'; did you mean azure-llm"):
        jaxlb.read_trace(write(tmp_path, GOOD), "azure")
    with pytest.raises(
        ValueError, match="unknown option of trace format 'csv' 'size_colum'; did you mean size_column"
    ):
        jaxlb.read_trace(write(tmp_path, GOOD), "csv", size_colum="x")
    with pytest.raises(ValueError, match="priorities must be whole numbers"):
        path = write(tmp_path, "time,size,p\n1,2,0.5\n2,2,1\n")
        jaxlb.read_trace(path, "csv", priority_column="p")


def test_too_many_rows_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "MAX_ROWS", 3)
    with pytest.raises(ValueError, match="more than 3 rows"):
        jaxlb.read_trace(write(tmp_path, "time,size\n" + "1,1\n" * 4), "csv")


def test_lanes_replay_the_trace_from_their_own_place_at_the_wanted_load(tmp_path, key):
    rng = np.random.default_rng(0)
    rows = zip(
        np.cumsum(rng.exponential(size=50)), rng.uniform(1, 9, 50), rng.integers(0, 3, 50), strict=True
    )
    text = "time,size,p\n" + "".join(f"{time},{size},{p}\n" for time, size, p in rows)
    trace = jaxlb.read_trace(write(tmp_path, text), "csv", priority_column="p")
    classes = {"class_probability": [0.2, 0.3, 0.5], "class_slack": [2, 3, 4]}
    env, params = jaxlb.make("heavy-tail", trace=trace, load=0.5, **classes)
    assert env.num_processors == 4
    np.testing.assert_allclose(params.size.mean(), jaxlb.make("heavy-tail")[1].size.mean(), rtol=1e-5)
    lanes = (7,)
    params = with_lane_axis(params, lanes)
    state = workload.start(key, params, lanes)
    begin = np.asarray(state)
    assert len(set(begin.tolist())) > 1
    scale = float(params.size.mean()) / trace.size.mean()
    gaps = []
    for step in range(1, 53):  # once around and beyond
        task, state = workload.draw(jax.random.fold_in(key, step), params, state, lanes)
        place = (begin + step) % 50
        np.testing.assert_allclose(task.size, trace.size[place] * scale, rtol=1e-5)
        np.testing.assert_array_equal(task.priority, trace.priority[place])
        slack = np.array([2.0, 3.0, 4.0], np.float32)[trace.priority[place]]
        np.testing.assert_allclose(task.deadline, slack * task.size / params.speed.mean(), rtol=1e-5)
        gaps.append(np.asarray(task.gap))
    rate = float(workload.arrival_rate(params)[0])
    np.testing.assert_allclose(np.mean(gaps[:50]), 1.0 / rate, rtol=1e-5)
    np.testing.assert_allclose(rate * float(params.size.mean()) / float(params.speed.sum()), 0.5, rtol=1e-5)
