"""Submitting to a Slurm with limits: one line for each refusal, and the same command goes on."""

import json
import signal

import fake_slurm
import pytest
from cluster_runs import sweep_file

from w2s_jax.cli.main import main
from w2s_jax.core import errors
from w2s_jax.sweep import on_slurm, slurm_submission
from w2s_jax.testing import write_tiny_task

submitit = pytest.importorskip("submitit", reason="submitit is not installed")
# The package is installed where the slow tests run.
pytestmark = pytest.mark.slow

#: A loss and five seeds: 1 pretraining of each of two models, 5 weak models, ceilings and students.
PHASES, JOBS = 17, 18


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    points = "product(over('losses', [('xent',)]), over('seed', range(5)))"
    return sweep_file(folder / "sweep.py", write_tiny_task(folder / "data"), points)


@pytest.fixture
def submit(recipe, tmp_path, monkeypatch, capsys):
    """Submit the sweep to a fake Slurm; return the exit status, stdout and stderr."""
    slurm, workdir = tmp_path / "slurm", tmp_path / "sweep"

    def submit(*programs, **limits):
        if not slurm.exists() or limits:
            monkeypatch.setenv("PATH", fake_slurm.install(slurm, *programs, **limits))
        command = ["sweep", f"--config={recipe}", f"--workdir={workdir}", "--executor=slurm"]
        status = main(command)
        return status, *capsys.readouterr()

    submit.slurm, submit.jobs = slurm, workdir / "slurm" / "jobs.json"
    return submit


def sizes(submit):
    return [job["size"] for job in fake_slurm.queue(submit.slurm)]


def test_without_limits_each_array_is_one_job_and_the_last_waits_for_all(submit):
    status, out, err = submit()
    assert (status, err) == (0, "") and f"{PHASES} phases submitted as {PHASES} jobs" in out
    jobs = fake_slurm.queue(submit.slurm)
    assert sum(job["size"] for job in jobs) == JOBS
    # Whole arrays are named as such.
    arrays = sorted(str(job["id"]) for job in jobs[:-1])
    assert jobs[-1]["dependency"] == f"afterany:{':'.join(arrays)}"
    status, out, err = submit()
    assert (status, err) == (0, "") and "0 phases submitted as 0 jobs, 17 were in the queue" in out


@pytest.mark.parametrize("limits", [{"array": 3}, {"hidden": 3}, {"hidden": 1}, {"array": 0}])
def test_arrays_are_as_large_as_the_cluster_allows(submit, limits):
    status, _, err = submit(**limits)
    assert (status, err) == (0, "")
    assert max(sizes(submit)) == max(1, min(3, *limits.values())) and sum(sizes(submit)) == JOBS
    # A limit that scontrol prints is not found out by refusals.
    asked = (submit.slurm / "calls").read_text().count("sbatch")
    assert (asked == len(sizes(submit))) == ("array" in limits)


@pytest.mark.parametrize("limit", [1, 4, 11, PHASES])
def test_jobs_above_a_users_limit_are_one_line_and_the_same_command_goes_on(submit, limit):
    status, _, err = submit(jobs=limit)
    assert status == 2 and err.count("\n") == 1 and "QOS policy" in err
    assert f"{limit} phases are in the queue; run the same command again" in err
    assert sum(sizes(submit)) == limit and on_slurm.RESULTS not in json.loads(
        submit.jobs.read_text()
    )
    fake_slurm.install(submit.slurm, "sbatch")  # no limit, and those jobs have ended
    status, out, err = submit()
    assert (status, err) == (0, "")
    # Nothing has been computed, so all phases are missing.
    assert sum(sizes(submit)) == JOBS and "results and report: job" in out


def test_a_refused_last_job_is_submitted_by_the_next_command(submit):
    assert submit(jobs=PHASES)[0] == 2
    (submit.slurm / "limits.json").write_text("{}")
    status, out, err = submit()
    assert (status, err) == (0, "") and sum(sizes(submit)) == JOBS
    assert "0 phases submitted as 0 jobs, 17 were in the queue; results and report: job" in out


def test_other_refusals_are_not_tried_again(submit, monkeypatch):
    monkeypatch.setattr(slurm_submission, "dependency", lambda *_: "afterany:" + "1:" * 2000)
    status, _, err = submit(dependency=1024)
    assert status == 2 and err.count("\n") == 1 and "parameter too long; 2 phases are in" in err
    calls = (submit.slurm / "calls").read_text()
    assert calls.count("sbatch") == 2


@pytest.mark.parametrize("missing", ["sbatch", "srun", "squeue"])
def test_a_host_with_a_part_of_slurm_is_refused(submit, missing, tmp_path):
    rest = set(fake_slurm.PROGRAMS) - {missing}
    status, _, err = submit(*rest)
    assert status == 2 and err.count("\n") == 1 and f"needs {missing}, which is not on" in err
    assert not (tmp_path / "sweep").exists()


def test_long_dependencies_are_shortened():
    jobs = [f"{array}_{task}" for array in range(1000, 1300) for task in range(3)]
    alone = slurm_submission.dependency(["1000_1", "1001_0", "1001_1", "1001_2", "7"], jobs)
    assert alone == "afterany:1000_1:1001:7"
    some = [job for job in jobs if not job.endswith("_2")][:300]
    line = slurm_submission.dependency(some, jobs)
    assert len(line) <= slurm_submission.LONGEST_DEPENDENCY and "_" not in line


def test_results_wait_by_name_where_a_list_of_jobs_would_be_too_long(submit, monkeypatch):
    monkeypatch.setattr(slurm_submission, "LONGEST_DEPENDENCY", 12)
    assert submit()[0] == 0
    *others, last = fake_slurm.queue(submit.slurm)
    assert last["dependency"] == "singleton" and {job["name"] for job in others} == {last["name"]}


@pytest.mark.parametrize(
    "error", [OSError(2, "No such file", "scontrol"), RuntimeError("timed out too many times")]
)
def test_a_job_that_is_not_queued_again_says_so_in_one_line(monkeypatch, capsys, error):
    def again(*_):
        raise error

    def work(workdir, names, should_stop):
        signal.raise_signal(signal.SIGUSR2)
        assert should_stop()
        raise errors.Interrupted("saved")

    before = signal.signal(signal.SIGUSR2, again)
    environment = type("Environment", (), {"_usr_sig": lambda self: signal.SIGUSR2})
    monkeypatch.setattr(submitit, "JobEnvironment", environment)
    monkeypatch.setattr(on_slurm, "work", work)
    try:
        with pytest.raises(SystemExit) as ended:
            on_slurm.PhaseJob("/nowhere")(["weak-0"])
    finally:
        signal.signal(signal.SIGUSR2, before)
    err = capsys.readouterr().err
    assert ended.value.code == 75 and err.count("\n") == 1
    assert str(error) in err and "run the same w2s sweep command to resume" in err


def test_an_error_of_a_job_is_one_line(monkeypatch, capsys):
    def refuse(*_, **__):
        raise errors.InputError("the sweep no longer plans phase 'weak-0'")

    monkeypatch.setattr(on_slurm, "work", refuse)
    monkeypatch.setattr(on_slurm, "finish", refuse)
    environment = type("Environment", (), {"_usr_sig": lambda self: signal.SIGUSR2})
    monkeypatch.setattr(submitit, "JobEnvironment", environment)
    before = signal.getsignal(signal.SIGUSR2)
    for job in (lambda: on_slurm.PhaseJob("/nowhere")(["weak-0"]), lambda: on_slurm.finish_job("")):
        with pytest.raises(SystemExit) as ended:
            job()
        assert ended.value.code == 2
        assert capsys.readouterr().err == "w2s: the sweep no longer plans phase 'weak-0'\n"
    signal.signal(signal.SIGUSR2, before)
