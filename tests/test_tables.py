"""Tables: kinds of columns, files, what is refused, numbers against scikit-learn and pandas."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advinterp.tables import (
    RawTable,
    columns_of,
    encode,
    make_table,
    pack,
    read_table,
    unpack,
)

N = 40
RNG = np.random.default_rng(0)
SOUND = pd.DataFrame(
    {
        "age": RNG.integers(18, 80, N),
        "job": RNG.choice(["nurse", "smith", "clerk"], N),
        "member": RNG.random(N) < 0.5,
        "income": np.tile(["low", "high"], N // 2),
    }
)


def kind_of(*values, dtype=None):
    return columns_of(pd.DataFrame({"a": pd.Series(list(values), dtype=dtype)}))[0].kind


@pytest.mark.parametrize(
    ("values", "dtype", "kind"),
    [
        ([1, 2], "int8", "number"),
        ([1, None], "Int64", "number"),
        ([1.5, None], "float32", "number"),
        ([1, 2.5], object, "number"),
        ([decimal.Decimal("1.5"), None], object, "number"),
        ([None, None], object, "number"),
        ([True, None], "boolean", "boolean"),
        ([True, None], object, "boolean"),
        (["1", "2"], object, "category"),
        (["1", "2"], "string", "category"),
        ([1, 2], "category", "category"),
        ([1, "a"], object, "category"),
        ([datetime.date(2020, 1, 2), None], object, "date"),
        (["2020-01-02"], "datetime64[ns]", "date"),
        ([datetime.timedelta(3)], None, "date"),
        (["2020-01-02 12:00"], object, "date"),
        (["2.1.2021", "12.11.22"], object, "date"),
        (["1.2", "10.20.30.40x"], object, "category"),
    ],
)
def test_kinds(values, dtype, kind):
    assert kind_of(*values, dtype=dtype) == kind


@pytest.mark.parametrize("cell", [[1], {1: 2}, 1j, b"x", np.zeros(2)])
def test_cells_that_are_no_values(cell):
    with pytest.raises(TypeError, match="column 'a' has cells"):
        columns_of(pd.DataFrame({"a": [cell, cell]}))


def test_order_of_a_categorical_is_kept():
    sizes = pd.Categorical(["L", "S", None, "M"], categories=["S", "M", "L", "XL"])
    (column,) = columns_of(pd.DataFrame({"size": sizes}))
    assert column.levels == ("S", "M", "L")
    assert column.values.tolist() == [2, 0, -1, 1]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
CELLS = {
    "number": st.one_of(st.none(), st.floats(allow_nan=False), st.integers(-(2**40), 2**40)),
    "word": st.one_of(st.none(), TEXT),
    "boolean": st.one_of(st.none(), st.booleans()),
}


@given(st.data(), st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4))
def test_pack_keeps_everything(data, chosen):
    n = data.draw(st.integers(1, 6))
    frame = pd.DataFrame(
        {
            f"{kind}{i}": pd.Series(
                data.draw(st.lists(CELLS[kind], min_size=n, max_size=n)), dtype=object
            )
            for i, kind in enumerate(chosen)
        }
    )
    raw = RawTable(columns_of(frame), target="word0")
    again = unpack(pack(raw))
    assert again.target == "word0"
    for one, other in zip(raw.columns, again.columns, strict=True):
        assert (one.name, one.kind, one.levels) == (other.name, other.kind, other.levels)
        assert one.values.tobytes() == other.values.tobytes()
    for column, name in zip(again.columns, frame):
        if column.levels:
            words = [column.levels[i] if i >= 0 else None for i in column.values]
            assert words == [None if pd.isna(cell) else str(cell) for cell in frame[name]]


ANY = st.one_of(*CELLS.values(), st.just(np.nan), st.just(float("inf")), st.dates(), st.just([1]))


@given(st.data(), st.integers(1, 12), st.sampled_from([None, "drop", "median"]))
def test_any_table_is_taken_or_refused_in_a_sentence(data, n, missing):
    """Whatever the cells are: finite numbers of the right shape, or one line that says why not."""
    cells = data.draw(st.sampled_from([*CELLS.values(), ANY, st.integers(0, 2)]))
    frame = pd.DataFrame(
        {
            "a": pd.Series(data.draw(st.lists(cells, min_size=n, max_size=n)), dtype=object),
            "b": pd.Series(data.draw(st.lists(cells, min_size=n, max_size=n)), dtype=object),
            "y": [i % 2 for i in range(n)],
        }
    )
    try:
        table = make_table(columns_of(frame), "y", missing=missing)
    except (ValueError, TypeError) as error:
        assert "\n" not in str(error).strip()
        return
    encoded = encode(table, np.arange(len(table.y) // 2, len(table.y)))
    assert encoded.x.shape == (len(table.y), len(encoded.feature_names))
    assert np.isfinite(encoded.x).all()


# ---------------------------------------------------------------- files


def test_numbers_of_a_csv_are_exact(tmp_path):
    numbers = RNG.random(3000) * 10.0 ** RNG.integers(-30, 30, 3000)
    pd.DataFrame({"a": numbers}).to_csv(tmp_path / "t.csv", index=False)
    (column,) = read_table(tmp_path / "t.csv").columns
    assert np.array_equal(column.values, numbers)


def test_csv_gives_what_the_frame_gives(tmp_path):
    file = tmp_path / "t.csv"
    frame = SOUND.assign(much=RNG.random(N) * 10.0 ** RNG.integers(-30, 30, N))
    frame.to_csv(file, index=False)
    tsv = tmp_path / "t.tsv.gz"
    frame.to_csv(tsv, index=False, sep="\t")
    expected = pack(RawTable(columns_of(frame)))
    assert pack(read_table(file)) == expected
    assert pack(read_table(tsv)) == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is no table"),
        ("a.csv", b"a,b\n", "0 rows"),
        ("a.csv", b"a,b,a\n1,2,3\n", "columns 'a' occur twice"),
        ("a.csv", b"a;b\n1,5;2\n1,5;3\n", "not separated by"),
        ("a.csv", b"a;b\n1;2\n", "not separated by ','"),
        ("a.csv", b"a,b\n1,2,3\n", "more cells"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "is no table"),
        ("a.csv", "gr\u00f6\u00dfe\n1\n".encode("latin-1"), "not in UTF-8"),
        ("a.csv.gz", b"a,b\n1,2\n", "is no table"),
        ("a.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", "store_data wrote"),
        ("a.safetensors", b"", "store_data wrote"),
        ("a.xlsx", b"PK", "ends in .csv"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, said):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        read_table(file)
    assert str(file) in str(caught.value)


def test_parquet(tmp_path):
    file = tmp_path / "t.parquet"
    try:
        SOUND.to_parquet(file)
    except ImportError:
        file.write_bytes(b"PAR1")
        with pytest.raises(ImportError, match="pip install pyarrow"):
            read_table(file)
    else:
        assert pack(read_table(file)) == pack(RawTable(columns_of(SOUND)))
        file.write_bytes(b"PAR1")
        with pytest.raises(ValueError, match="is no Parquet file"):
            read_table(file)


def test_a_file_that_unpacks_to_a_huge_one(tmp_path, monkeypatch):
    file = tmp_path / "t.csv.gz"
    SOUND.to_csv(file, index=False)
    monkeypatch.setattr("advinterp.tables._LARGEST", 100)
    with pytest.raises(ValueError, match="unpacked it has more than"):
        read_table(file)


# ---------------------------------------------------------------- what a table must be


def made(frame=SOUND, target="income", **options):
    return make_table(columns_of(frame), target, **options)


def changed(**columns):
    return SOUND.assign(**columns)


ROWS = [f"row {i}" for i in range(N)]
REFUSED = {
    "no target": (SOUND, dict(target=None), "target=None: expected one of the columns 'age'"),
    "another target": (SOUND, dict(target="incone"), "did you mean 'income'"),
    "drop unknown": (SOUND, dict(drop=["jop"]), "drop='jop'.*did you mean 'job'"),
    "drop target": (SOUND, dict(drop="income"), "holds the target"),
    "groups unknown": (SOUND, dict(groups="age2"), "groups='age2'"),
    "nothing left": (SOUND, dict(drop=["age", "job", "member"]), "nothing to learn from"),
    "one class": (changed(income="low"), {}, "one class, 'low'"),
    "small class": (changed(income=["rare", *SOUND.income[1:]]), {}, r"'rare' \(1\)"),
    "fractions": (SOUND.assign(income=RNG.random(N)), {}, "such as 0"),
    "names": (changed(income=list(map(str, range(N)))), {}, "classes '0'"),
    "no class in a row": (changed(income=[None, *SOUND.income[1:]]), {}, "1 rows have no class"),
    "dates": (changed(day=pd.Timestamp("2020-02-03")), {}, "'day' hold dates.*drop="),
    "constant": (
        changed(one=1, two="x"),
        {},
        r"'one', 'two' have one value: say drop=\['one', 'two'\]",
    ),
    "empty": (changed(none=None), {}, "'none' are empty"),
    "infinite": (changed(age=[np.inf, *[1, 2, 3] * 13]), {}, "'age' hold infinite"),
    "row names": (changed(who=ROWS, why=ROWS), {}, "'who', 'why' have too many"),
    "almost numbers": (
        changed(x=["?", *map(str, range(N - 1))]),
        {},
        r"'x' has numbers and '\?' in it",
    ),
    "index": (SOUND.reset_index(names="row"), {}, "columns 'row' number the rows"),
    "gaps": (changed(age=[None, *range(N - 1)]), {}, "'age' 1; say missing='drop'"),
    "rule": (SOUND, dict(missing="mean"), "'drop' or 'median'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    frame, options, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as caught:
        made(frame, **options)
    assert "\n" not in str(caught.value)


def test_what_is_left_out_is_not_refused():
    frame = changed(day=pd.Timestamp("2020-02-03"), one=1)
    assert len(made(frame, drop=["day", "one"]).columns) == 3


def test_class_names():
    assert made(changed(income=np.tile([3, 10], N // 2))).class_names == ["3", "10"]
    assert made(changed(income=np.tile([1.0, 0.0], N // 2))).class_names == ["0", "1"]
    assert made(SOUND, "member").class_names == ["False", "True"]
    assert made().class_names == ["high", "low"]
    assert made().y.tolist() == [1, 0] * (N // 2)


# ---------------------------------------------------------------- missing cells, numbers


def gappy():
    frame = changed(
        age=SOUND.age.astype(float).where(np.arange(N) % 5 > 0),
        member=SOUND.member.astype(object).where(np.arange(N) % 7 > 0),
        job=SOUND.job.where(np.arange(N) % 9 > 0),
    )
    frame.loc[3, "income"] = None
    return frame


def test_missing_drop():
    frame = gappy()
    table = made(frame, missing="drop")
    assert table.rows.tolist() == list(frame.dropna().index)
    assert encode(table, np.arange(10)).x.shape == (len(table.rows), 1 + 3 + 1)


def test_missing_median():
    frame = gappy()
    table = made(frame, missing="median")
    assert len(table.y) == N - 1
    encoded = encode(table, np.arange(20))
    kept = frame[frame.income.notna()]
    age = kept.age.fillna(kept.age.iloc[:20].median()).to_numpy()
    expected = (age - age[:20].mean()) / age[:20].std()
    np.testing.assert_allclose(encoded.x[:, 0], expected, rtol=1e-5, atol=1e-6)
    column = encoded.feature_names.index("job=missing")
    assert encoded.x[:, column].tolist() == kept.job.isna().astype(float).tolist()
    members = [name for name in encoded.feature_names if name.startswith("member")]
    assert members == ["member=False", "member=True", "member=missing"]
    words = encode(made(frame.assign(job=kept.job.fillna("missing")), missing="median"), [0])
    same = words.x[:, words.feature_names.index("job=missing")]
    assert np.array_equal(same, encoded.x[:, column])
    one_hot = encoded.x[:, [name != "age" for name in encoded.feature_names]]
    assert (one_hot.sum(1) == 2).all()
    assert any("2 with a category for their empty" in note for note in encoded.notes)
    assert any("empty numbers filled" in note for note in encoded.notes)


def test_the_test_rows_decide_nothing():
    frame = changed(age=SOUND.age.astype(float))
    other = frame.copy()
    other.loc[30:, "age"] *= 1000
    train = np.arange(30)
    one, two = (encode(made(f), train).x for f in (frame, other))
    assert np.array_equal(one[:30], two[:30])
    assert not np.array_equal(one[30:], two[30:])


def test_a_column_that_is_constant_in_training():
    frame = changed(age=[1.0] * 30 + [2.0] * 10)
    x = encode(made(frame), np.arange(30)).x
    assert x[:, 0].tolist() == [0.0] * 30 + [1.0] * 10
