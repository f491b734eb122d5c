"""A folder of models, each optimized by itself: by several workers, and again where it was left.

What became of a model is one line of JSON in the journal of the output folder, added as soon as the
model is finished. The next run leaves alone what is finished and has not changed.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import importlib.metadata
import json
import os
import pathlib
import secrets
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from onnxopt.errors import ModelError, OnnxoptError, OptionError
from onnxopt.model import external_files, load
from onnxopt.optimizer import optimize
from onnxopt.parallel import Alone, Crew
from onnxopt.parallel.crew import Lost
from onnxopt.parallel.quiet import let_others_time, share_machine, working
from onnxopt.recipe import Recipe, budget_from
from onnxopt.report.document import document
from onnxopt.report.json_file import json_text, write_json
from onnxopt.report.page import pages_are_possible, write_page
from onnxopt.report.run import RunReport
from onnxopt.runtime.compare import Tolerance
from onnxopt.runtime.probe import environment
from onnxopt.settings import Settings

__all__ = ["JOURNAL", "BatchReport", "Row", "State", "optimize_folder"]

State = Literal["optimized", "unchanged", "failed"]

#: Lines of JSON, one a model that is finished; the last of a model counts.
JOURNAL = "batch.jsonl"
#: Settings of a recipe that are about where one result goes, or about the workers themselves.
_NOT_FOR_ONE_MODEL = ("in_place", "dry_run")
_OF_THE_CREW = ("workers", "scheduler")
_BLOCK = 1 << 20
#: A process does one model at a time, whatever the threads that it is given work with.
_one_at_a_time = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of one model.

    Attributes:
        model: Its path in the folder of models.
        state: What was made of it. ``unchanged``: the output is the input.
        error: What went wrong, if it failed.
        report: Path of its report in the output folder; empty if it failed.
        page: Path of the page of that; empty where pages cannot be made.
        bytes_before: Size of the original with its external data.
        bytes_after: Size of the result with its external data.
        latency_before: Median seconds of one run; None where it was not timed.
        latency_after: The same of the result.
        speed: How many times faster: ``median``, ``low``, ``high``; None where it was not timed.
        sqnr_db: Signal to noise of the worst output, where a lossy pass changed the model.
        undone: Passes that were left out.
        seconds: Time it took.
        fingerprint: Of the original, its samples' files and the settings.
        kept: Whether this is from an earlier run.
    """

    model: str
    state: State
    error: str = ""
    report: str = ""
    page: str = ""
    bytes_before: int | None = None
    bytes_after: int | None = None
    latency_before: float | None = None
    latency_after: float | None = None
    speed: Mapping[str, Any] | None = None
    sqnr_db: float | None = None
    undone: Sequence[str] = ()
    seconds: float = 0.0
    fingerprint: str = ""
    kept: bool = False


@dataclasses.dataclass(frozen=True)
class BatchReport:
    """What became of all models.

    Attributes:
        models: Their folder.
        output: The folder of the results.
        rows: What became of each, by name.
        seconds: Time of this run.
        workers: How many models were worked on at once.
        environment: Machine and versions.
    """

    models: str
    output: str
    rows: Sequence[Row]
    seconds: float
    workers: int
    environment: Mapping[str, Any]

    @property
    def failed(self) -> list[Row]:
        """The models that failed."""
        return [row for row in self.rows if row.state == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One model.

    Attributes:
        name: Its path in the folder of models.
        models: That folder.
        output: The folder of results.
        recipe: How it is optimized.
        known: What became of it before.
        shared: Name of the file, in a machine's folder for temporary ones, by which its workers
            agree on quiet; None for one worker.
        options: Options of ``onnxopt optimize`` that say the same as the recipe.
    """

    name: str
    models: pathlib.Path
    output: pathlib.Path
    recipe: Recipe
    known: Row | None
    shared: str | None
    options: Sequence[str]


def optimize_folder(
    models: str | os.PathLike[str],
    output: str | os.PathLike[str],
    recipe: Recipe,
    crew: Crew,
    *,
    options: Sequence[str] = (),
    on_step: Callable[[str], None] = lambda step: None,
) -> BatchReport:
    """Optimize all ``.onnx`` files of a folder and of those in it.

    Results have the same paths in the output folder, each with its report beside it. Samples beside
    a model, ``NAME.npz`` or a folder ``NAME`` of ``.npz`` files, go before those of the recipe.
    Times are measured while no other worker of that machine works.

    Args:
        models: The folder.
        output: The folder of results; made if it does not exist.
        recipe: Settings for each of them.
        crew: Who does it.
        options: Options of ``onnxopt optimize`` that say the same as the recipe, for reports.
        on_step: Told how many models are finished.

    Raises:
        OptionError: When the recipe says where to write.
        ModelError: When there are no models, or the output folder cannot be written to.
        OnnxoptError: When the recipe's settings are wrong.
    """
    start = time.perf_counter()
    models, output = pathlib.Path(models), pathlib.Path(output)
    for name in _NOT_FOR_ONE_MODEL:
        if recipe.settings.get(name):
            raise OptionError(f"a batch writes to a folder: take '{name}' out of the recipe")
    names = _models(models, output)
    budget_from(recipe.budget)  # before anything is done that would be in vain
    rows = _done_before(output)
    shared = None if isinstance(crew, Alone) else f"onnxopt-batch-{secrets.token_hex(8)}"
    try:
        jobs = (
            _Job(
                name,
                models.absolute(),
                output.absolute(),
                recipe,
                rows.get(name),
                shared,
                options,
            )
            for name in names
        )
        found: dict[str, Row] = {}
        on_step(f"optimizing models, 0 of {len(names):,} finished")
        with (output / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write("\n" if journal.tell() else "")  # the last line may have been cut off
            for outcome in crew.outcomes(_do, jobs):
                if isinstance(outcome, Lost):
                    outcome = Row(outcome.job.name, "failed", str(outcome.error))
                found[outcome.model] = outcome
                if not outcome.kept:
                    journal.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
                    journal.flush()
                on_step(f"optimizing models, {len(found):,} of {len(names):,} finished")
    finally:
        for left in pathlib.Path(tempfile.gettempdir()).glob(f"{shared}.*") if shared else ():
            left.unlink(missing_ok=True)
    return BatchReport(
        str(models),
        str(output),
        [found[name] for name in names],
        time.perf_counter() - start,
        crew.size,
        environment(int(recipe.settings.get("threads", 1))),
    )


def _models(models: pathlib.Path, output: pathlib.Path) -> list[str]:
    """Paths of the models in their folder, in order; makes the output folder."""
    if not models.is_dir():
        raise ModelError(f"{models} is no folder: name the folder that holds the models")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"cannot write to {output}: {error.strerror or error}") from error
    if not os.access(output, os.W_OK):
        raise ModelError(f"cannot write to {output}: permission denied")
    if models.samefile(output):
        raise ModelError(f"{output} holds the models: name another folder for the results")
    inside = output.resolve()
    names = sorted(
        path.relative_to(models).as_posix()
        for path in models.rglob("*.onnx")
        if inside not in path.resolve().parents and path.is_file()
    )
    if not names:
        raise ModelError(f"{models} holds no .onnx files")
    return names


def _done_before(output: pathlib.Path) -> dict[str, Row]:
    """What the journal says, by model; a line that was cut off says nothing."""
    rows: dict[str, Row] = {}
    try:
        lines = (output / JOURNAL).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return rows
    for line in lines:
        try:
            row = Row(**json.loads(line))
        except (ValueError, TypeError):
            continue
        rows[row.model] = row
    return rows


def _do(model: pathlib.Path | bytes | None, job: _Job) -> Row:
    """Do a job, in a process of the crew."""
    del model
    start = time.perf_counter()
    with _one_at_a_time:
        temporary = pathlib.Path(tempfile.gettempdir())
        share_machine(None if job.shared is None else temporary / job.shared)
        with working():
            try:
                row = _finished(job)
            except OnnxoptError as error:
                row = Row(job.name, "failed", " ".join(str(error).split()))
            except Exception as error:
                what = f"unexpected {type(error).__name__}: {error}; this is a defect of onnxopt"
                row = Row(job.name, "failed", " ".join(what.split()))
    return row if row.kept else dataclasses.replace(row, seconds=time.perf_counter() - start)


def _finished(job: _Job) -> Row:
    """The model's row, with its result and reports in their places."""
    source, target = job.models / job.name, job.output / job.name
    settings = _settings(source, job.recipe)
    fingerprint = _fingerprint(source, settings, job.recipe)
    known = job.known
    if known is not None and known.fingerprint == fingerprint and _is_there(known, target):
        return dataclasses.replace(known, kept=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_away(target)
    result = optimize(source, target, settings, on_step=lambda step: let_others_time())
    command = shlex.join(["onnxopt", "optimize", str(source), str(target), *job.options])
    contents = document("optimize", result.to_dict(), command)
    report = target.with_name(f"{target.name}.json")
    write_json(report, contents)
    page = report.with_suffix(".html") if pages_are_possible() else None
    if page is not None:
        write_page(page, [json.loads(json_text(contents))])
    return _row(job, result, fingerprint, report, page)


def _clear_away(target: pathlib.Path) -> None:
    """Take away what a worker that was killed had not finished; its names begin with a dot."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _row(
    job: _Job,
    result: RunReport,
    fingerprint: str,
    report: pathlib.Path,
    page: pathlib.Path | None,
) -> Row:
    before, after = result.before, result.after
    speed = result.speed
    fidelity = result.fidelity
    return Row(
        model=job.name,
        state="optimized" if result.changed else "unchanged",
        report=report.relative_to(job.output).as_posix(),
        page="" if page is None else page.relative_to(job.output).as_posix(),
        bytes_before=before.bytes,
        bytes_after=after.bytes,
        latency_before=None if before.latency is None else before.latency.median,
        latency_after=None if after.latency is None else after.latency.median,
        speed=None if speed is None else dataclasses.asdict(speed),
        sqnr_db=None if fidelity is None else min(fidelity.sqnr_db, 1e9),
        undone=[each.name for each in result.undone],
        fingerprint=fingerprint,
    )


def _settings(source: pathlib.Path, recipe: Recipe) -> Settings:
    """The recipe's settings, as far as they are about inputs that this model has."""
    chosen = {key: value for key, value in recipe.settings.items() if key not in _OF_THE_CREW}
    if recipe.values or "shapes" in chosen:
        from onnxopt.data import value_from_text

        inputs = {value.name or "": value for value in load(source).graph.inputs}
        chosen["values"] = {
            name: value_from_text(text, inputs[name])
            for name, text in recipe.values.items()
            if name in inputs
        }
        shapes = chosen.get("shapes", {})
        chosen["shapes"] = {name: shape for name, shape in shapes.items() if name in inputs}
    own = next(filter(pathlib.Path.exists, _own_samples(source)), None)
    if own is not None:
        chosen["data"] = own
    chosen["tolerance"] = Tolerance(**recipe.tolerance)
    chosen["budget"] = budget_from(recipe.budget)
    return Settings(**{"details": True, **chosen})


def _own_samples(source: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where samples of a model alone may be."""
    yield source.with_suffix(".npz")
    folder = source.with_suffix("")
    if folder.is_dir() and any(folder.glob("*.npz")):
        yield folder


def _fingerprint(source: pathlib.Path, settings: Settings, recipe: Recipe) -> str:
    """What a result depends on: the model's bytes, when its samples were written, the settings."""
    total = hashlib.blake2b(digest_size=16)
    for path in (source, *(source.parent / name for name in external_files(source))):
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                total.update(block)
    samples = [] if settings.data is None else [pathlib.Path(settings.data)]
    for path in [*samples, *(each for one in samples for each in sorted(one.glob("*.npz")))]:
        if path.exists():
            status = path.stat()
            total.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    parts = (recipe.settings, recipe.tolerance, recipe.values, recipe.budget)
    total.update(repr([sorted(part.items(), key=str) for part in parts]).encode())
    total.update(importlib.metadata.version("onnxopt").encode())
    return total.hexdigest()


def _is_there(row: Row, target: pathlib.Path) -> bool:
    """Whether what a row tells of is still in its place."""
    if row.state == "failed" or not target.is_file():
        return False
    names = external_files(target)
    size = target.stat().st_size + sum((target.parent / n).stat().st_size for n in names)
    root = target.parents[len(pathlib.PurePosixPath(row.model).parts) - 1]
    files = [row.report, *([row.page] if row.page else [])]
    return size == row.bytes_after and all((root / each).is_file() for each in files)
