"""The command `advinterp`, as a user meets it: what it calls, what it prints, codes and help."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from fastcore.docments import docments

from advinterp import cli
from advinterp.cli import main

COMMANDS = ["compare", "demo", "reproduce", "study", "report", "data", "info"]
MAIN = [sys.executable, "-c", "import sys; from advinterp.cli import main; sys.exit(main())"]


class Recorder:
    """Stands for a function behind a command: keeps its arguments, returns or raises."""

    def __init__(self, result=None, error=None):
        self.result = result
        self.error = error
        self.calls = []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        if self.error is not None:
            raise self.error
        return self.result


class FakeResults:
    def __init__(self, empty=False):
        self.empty = empty

    def show(self):
        return "the table"

    def report(self):
        return "folder/report.html"


@pytest.fixture
def compare(monkeypatch):
    recorder = Recorder(FakeResults())
    monkeypatch.setattr("advinterp.comparison.compare", recorder)
    return recorder


@pytest.fixture
def reproduce(monkeypatch):
    recorder = Recorder("folder/A.html")
    monkeypatch.setattr("advinterp.papers.reproduce.reproduce", recorder)
    return recorder


def test_demo_compares_two_data_sets_on_one_page(compare, monkeypatch, capsys, tmp_path):
    """What it trains is kept, so that a second call goes on; the page is that of both."""
    page = Recorder(("At equal accuracy ...", tmp_path / "report.html"))
    monkeypatch.setattr("advinterp.comparison.side_by_side", page)
    assert main(["demo", "--out", str(tmp_path), "--seeds", "2"]) == 0
    for name, call in zip(("digits", "breast_cancer"), compare.calls):
        settings = dict(seeds=2, out=str(tmp_path / name), resume=True, n_jobs=-1)
        assert call == ((name,), settings)
    assert list(page.calls[0][0][0]) == ["digits", "breast_cancer"]
    out, _ = capsys.readouterr()
    assert out.endswith(f"At equal accuracy ...\n\nreport: {tmp_path / 'report.html'}\n")


# ---------------------------------------------------------------- compare


DEFAULTS = dict(
    strengths="auto",
    measures="quick",
    tolerance=0.01,
    seeds=3,
    epochs=None,
    eps=None,
    size=None,
    missing=None,
    groups=None,
    drop=[],
    out="results",
    device=None,
    resume=False,
    n_jobs=1,
    backend="loky",
    dry_run=False,
)


def test_compare_passes_its_defaults(compare, capsys):
    assert main(["compare"]) == 0
    ((args, kwargs),) = compare.calls
    assert args[:3] == ("breast_cancer", None, None)
    assert list(args[3]) == ["natural", "l1", "adversarial"]
    assert kwargs == DEFAULTS
    report = os.path.join("results", "report.html")
    assert capsys.readouterr() == (f"the table\n\nreport: {report}\n", "")


def test_compare_passes_every_option(compare):
    argv = "compare my.csv --target income --model mlp --methods l1 PGD(LInfBall(.1),steps=3)"
    argv += " --strengths 0.1 0.2 --measures accuracy gini_ig --tolerance 0.02 --seeds 5 --epochs 2"
    argv += " --eps 0.3 --size 32 --missing drop --groups person --drop name city"
    argv += " --out folder --device cpu --resume --jobs -1 --backend dask"
    assert main(argv.split()) == 0
    ((args, kwargs),) = compare.calls
    assert args == ("my.csv", "income", "mlp", ["l1", "PGD(LInfBall(.1),steps=3)"])
    assert kwargs == dict(
        strengths=[0.1, 0.2],
        measures=["accuracy", "gini_ig"],
        tolerance=0.02,
        seeds=5,
        epochs=2,
        eps=0.3,
        size=32,
        missing="drop",
        groups="person",
        drop=["name", "city"],
        out="folder",
        device="cpu",
        resume=True,
        n_jobs=-1,
        backend="dask",
        dry_run=False,
    )


def test_a_dry_run_prints_a_table(compare, capsys):
    compare.result = pd.DataFrame(dict(method=["l1"], strength=[2e-5], runs=[3], minutes=[0.25]))
    assert main(["compare", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "in all about 0.2 minutes" in shown and "2e-05" in shown


@pytest.mark.parametrize(
    "argv, strengths",
    [
        (["--strengths", "0.1"], [0.1]),
        (["--strengths=0.1"], [0.1]),
        (["--strengths", "-0.1", "-1e-3", ".5"], [-0.1, -1e-3, 0.5]),
        (["--strengths", "0.1", "--strengths", "0.2"], [0.1, 0.2]),
        (["--strengths", "0.1", "0.1"], [0.1, 0.1]),
        (["--strengths", "inf", "-inf"], [float("inf"), -float("inf")]),
        (["--strengths", "0.1", "--resume", "--strengths", "0.2"], [0.1, 0.2]),
    ],
)
def test_options_take_several_values(compare, argv, strengths):
    assert main(["compare", *argv]) == 0
    assert compare.calls[0][1]["strengths"] == strengths


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--strengths"], "requires an argument"),
        (["--strengths", "strong"], "--strengths"),
        (["--seeds", "two"], "--seeds"),
        (["a", "--seeds", "1", "2"], "extra argument"),
        (["--epoch", "2"], "No such option"),
        (["a", "b"], "extra argument"),
    ],
)
def test_bad_command_lines_are_refused(compare, capsys, argv, words):
    assert main(["compare", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert compare.calls == []


# ---------------------------------------------------------------- reproduce, study, data, info


def test_reproduce_passes_its_options(reproduce, capsys):
    assert main(["reproduce", "A.table1"]) == 0
    options = ["--preset", "paper", "--out", "x", "--device", "cpu", "--jobs", "2"]
    assert main(["reproduce", "B", *options]) == 0
    assert [args for args, _ in reproduce.calls] == [
        ("A.table1", "quick", "results/reproduce", None, -1, "loky"),
        ("B", "paper", "x", "cpu", 2, "loky"),
    ]
    assert capsys.readouterr() == ("folder/A.html\n" * 2, "")


def test_reproduce_lists_what_there_is(reproduce, capsys):
    assert main(["reproduce", "--list"]) == 0
    listed = capsys.readouterr().out
    assert main(["reproduce"]) == 0
    assert capsys.readouterr().out == listed
    names = [line.split()[0] for line in listed.splitlines()]
    assert "A.table1" in names
    assert len(names) == len(set(names)) > 20
    assert reproduce.calls == []


def test_study_shows_every_run_and_its_error(monkeypatch, capsys):
    rows = [("one", "done", 1.0, ""), ("two", "failed", 2.0, "ValueError: no")]
    runs = pd.DataFrame(rows, columns=["run", "state", "seconds", "error"])
    monkeypatch.setattr("advinterp.jobs.status", Recorder(runs))
    assert main(["study", "status", "folder"]) == 0
    *table, error = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in table] == [
        ["run", "state"],
        ["one", "done"],
        ["two", "failed"],
    ]
    assert error == "two: ValueError: no"


@pytest.mark.parametrize(
    "action, printed", [("table", "the table\n"), ("report", "folder/report.html\n")]
)
def test_study_shows_its_table_and_writes_its_report(monkeypatch, capsys, action, printed):
    open_study = Recorder(FakeResults())
    monkeypatch.setattr("advinterp.comparison.open_study", open_study)
    assert main(["study", action, "folder"]) == 0
    assert open_study.calls == [(("folder",), {})]
    assert capsys.readouterr() == (printed, "")


def test_study_without_results_is_bad_input(monkeypatch, capsys):
    monkeypatch.setattr("advinterp.comparison.open_study", Recorder(FakeResults(empty=True)))
    assert main(["study", "table", "folder"]) == 2
    assert capsys.readouterr().err == "advinterp: out='folder': no run is finished yet\n"


def test_data_lists_every_set(capsys):
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("digits ")] == [
        ["digits", "1797", "+", "0", "package"]
    ]


def test_data_says_how_to_get_what_is_absent(monkeypatch, capsys):
    row = dict(name="x", rows=1, test_rows=2, where="", source="the authors")
    rows = [dict(row, public=True), dict(row, public=False), dict(row, where="cache")]
    monkeypatch.setattr("advinterp.data.data_table", Recorder(rows))
    assert main(["data", "list"]) == 0
    ends = [line.split("+ 2")[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert ends == [
        "absent: advinterp data fetch x",
        "absent, no public loader: the authors",
        "cache",
    ]


def test_data_fetches_and_verifies(monkeypatch, capsys):
    fetch = Recorder()
    monkeypatch.setattr("advinterp.data.fetch", fetch)
    assert main(["data", "fetch", "digits", "breast_cancer"]) == 0
    assert fetch.calls == [(("digits",), {}), (("breast_cancer",), {})]
    expected = (
        "digits: sound, 1797 + 0 rows, package\nbreast_cancer: sound, 569 + 0 rows, package\n"
    )
    assert capsys.readouterr().out == expected
    assert main(["data", "verify", "digits"]) == 0
    assert capsys.readouterr().out == expected.splitlines(keepends=True)[0]
    assert len(fetch.calls) == 2


def test_data_verifies_all_that_are_here(monkeypatch, capsys):
    rows = [dict(name="digits", where="package"), dict(name="mnist", where="")]
    monkeypatch.setattr("advinterp.data.data_table", Recorder(rows))
    assert main(["data", "verify"]) == 0
    assert capsys.readouterr().out == "digits: sound, 1797 + 0 rows, package\n"


def test_info_names_what_a_bug_report_needs(monkeypatch, capsys):
    monkeypatch.setenv("ADVINTERP_DATA", "somewhere")
    assert main(["info"]) == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["ADVINTERP_DATA"] == "somewhere"
    assert rows["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"advinterp", "torch", "fastai", "machine", "accelerator", "cache"} < set(rows)


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("eps=-1: expected more"), 2),
        (FileNotFoundError("no such folder"), 2),
        (RuntimeError("2 of 3 runs failed"), 1),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(compare, capsys, error, code):
    compare.error = error
    assert main(["compare"]) == code
    assert capsys.readouterr() == ("", f"advinterp: {error}\n")
    with pytest.raises(type(error)) as raised:
        main(["--traceback", "compare"])
    assert raised.value is error


def test_interruption_says_how_to_go_on(compare, capsys):
    compare.error = KeyboardInterrupt()
    assert main(["compare"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "advinterp: stopped; finished runs are kept, --resume continues\n"


def test_errors_of_the_program_are_not_hidden(compare):
    compare.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["compare"])


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "Missing command"),
        (["fly"], "No such command 'fly'"),
        (["studdy"], "Did you mean 'study'?"),
        (["study"], "Missing argument"),
        (["study", "delete", "folder"], "'delete'"),
        (["study", "status"], "Missing argument"),
        (["reproduce", "A", "--preset", "slow"], "'slow'"),
        (["data", "remove"], "'remove'"),
        (["data", "fetch"], "name at least one data set"),
        (["data", "verify", "digitz"], "digits"),
        (["reproduce", "A.tabel1"], "A.table1"),
        (["compare", "digitz"], "digitz"),
        (["compare", "--data", "digits", "--dry-run"], "--dry-run: has no meaning beside --data"),
        (["compare", "--data", "digits", "--eps", "0.2"], "--eps: has no meaning beside --data"),
        (["compare", "--data", "digits", "--drop", "a"], "--drop: has no meaning beside --data"),
        (["study", "table", "no/such/folder"], "no/such/folder"),
    ],
)
def test_unknown_names_are_bad_input(capsys, argv, words):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


# ---------------------------------------------------------------- help


def words_of(text):
    return " ".join(text.split())


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command(capsys, flag):
    assert main([flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split()[0] for line in out.splitlines()[-7:]] == COMMANDS
    assert "--traceback" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_holds_the_comment_of_each_parameter(capsys, command):
    function = getattr(cli, f"_{command}")
    assert main([command, "--help"]) == 0
    shown = words_of(capsys.readouterr().out)
    assert function.__doc__ in shown
    for name, comment in docments(function, returns=False).items():
        assert comment, name
        assert words_of(comment) in shown
        assert name.strip("_").replace("_", "-") in shown


def test_help_does_not_wait_for_torch():
    code = "import sys; from advinterp.cli import main; main(sys.argv[1:]); "
    code += "print([m for m in ('torch', 'numpy', 'pandas', 'matplotlib') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code, "compare", "--help"], capture_output=True, text=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


# ---------------------------------------------------------------- pipes


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(unbuffered):
    """`advinterp data list | head -0`: the pipe is closed before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = dict(os.environ, PYTHONUNBUFFERED=unbuffered)
    result = subprocess.run(
        [*MAIN, "data", "list"], stdout=writing, stderr=subprocess.PIPE, env=environment
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, b"")
