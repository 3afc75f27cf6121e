"""What every command shares: Hydra's entry, one-line errors, exit codes. Imports nothing heavy, so --help is quick."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segmod.ground.errors import UserError, one_line, reason
from segmod.ground.files import FULL, UnwritableError
from segmod.ground.signals import Stopped, tell_stop
from segmod.runs import sweeps
from segmod.runs.folders import register_resolvers
from segmod.runs.hydra_private import let_errors_through
from segmod.runs.keys import Kind, kind, readable
from segmod.runs.launch import is_leader, job_environment, prepare_process
from segmod.runs.values import check_values

_PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())
"""Root of the configs: inside an installed package, beside the package in a checkout."""

_EXTRAS = {"optuna", "joblib", "submitit", "ray"}  # of segmod, for plugins of Hydra

log = logging.getLogger("segmod")


def run(name: str) -> int:
    """Run a command: Hydra composes ``conf/<name>.yaml``, ``segmod.commands.<name>.main`` does the job.

    The module of the command is imported once its config is composed, so ``--help`` needs no torch. Where it has a
    function ``after``, that is called with what the jobs returned, once all of a sweep are done.

    A traceback is printed for what is not the user's mistake alone; SEGMOD_TRACEBACK=1 prints it always.

    Returns:
        The exit code: 0 done; 1 a user's mistake, told in one line on stderr; 2 usage; 128 + n stopped by signal n.
    """
    try:
        prepare_process()
        HydraConfig.instance().cfg = None  # of an earlier command of this process
        own = [folder.resolve() for folder in search_path()[1:]]
        job = _arrive(name, [str(folder) for folder in (Path.cwd(), *own, *(folder.parent for folder in own))])
        returned = job.args[1]
        require_named_lengths(sys.argv[1:])
        let_errors_through()
        with sweeps.concluded():
            hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=name)(job)()
        after = getattr(sys.modules.get(f"segmod.commands.{name}"), "after", None)
        if after is not None and returned:
            after(returned)
        code = 0
    except BaseException as error:
        code = _report(error, name)
    if _reader_left() and code == 0:
        code = 128 + signal.SIGPIPE
    return code


class _Job(partial[Any]):
    """What Hydra calls for each job; a launcher may take it to another process, which it then prepares."""

    def __reduce__(self) -> Any:
        return _arrive, (self.args[0], sys.path)


def _arrive(name: str, folders: Iterable[str]) -> _Job:
    """Make this process one that runs jobs of a command.

    Args:
        name: Of the command.
        folders: Where data, nets and losses of one's own lie.
    """
    register_resolvers()
    sys.path.extend(folder for folder in dict.fromkeys(folders) if folder not in sys.path)
    job = _Job(_run_job, name, [])
    job.__module__ = f"segmod.commands.{name}"  # after which Hydra names the job and its log
    return job


def run_plain(name: str) -> int:
    """Run a command that takes words in place of a config; returns the exit code, as `run` does."""
    try:
        prepare_process()
        import_module(f"segmod.commands.{name}").main(sys.argv[1:])
    except BaseException as error:
        return _report(error, name)
    return 0


def _reader_left(text: str = "") -> bool:
    """Whether nobody reads stdout to its end, as with ``| head``; what it still holds is written, or leads to nowhere.

    Args:
        text: Written too, where stdout may hold nothing that would show it.
    """
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more as it ends
        return True
    return False


def _run_job(name: str, returned: list[Any], cfg: DictConfig) -> Any:
    with job_environment(cfg):
        try:
            check_choices(cfg, name)
            check_values(cfg, name)
            returned.append(import_module(f"segmod.commands.{name}").main(cfg))
            return returned[-1]
        except Exception as error:
            if not is_multirun():  # leave here: Hydra would print lines of its own
                sys.exit(_report(error, name))
            # tell it now; Hydra goes on with the other jobs and raises the first error at the end
            log.error("segmod: error in %s: %s", cfg.get("run_dir", name), one_line(str(error)))
            raise
        finally:
            if name == "train" and is_leader():
                _remove_if_unclaimed(Path(cfg.run_dir), Path(os.path.abspath(Path(cfg.runs).expanduser())))


def _remove_if_unclaimed(directory: Path, root: Path) -> None:
    """Remove the folder that Hydra made for a run which was then refused, and those above it, ``root`` the last."""
    if not (directory / ".hydra").exists():
        (directory / "train.log").unlink(missing_ok=True)
        with suppress(OSError):  # the first that is not empty ends it
            for folder in (directory, *(parent for parent in directory.parents if root in (parent, *parent.parents))):
                folder.rmdir()


def require_named_lengths(words: list[str]) -> None:
    """Check that the jobs of a sweep over lengths have folders of their own: the length names none.

    Raises:
        UserError: They would train one run.
    """
    for word in words:
        key, _, value = word.partition("=")
        many = "," in value or value.startswith(("range(", "choice("))
        if kind(key) is Kind.LENGTH and many and not any(f"${{{key}}}" in other for other in words):
            raise UserError(f"{word}: a longer training goes on with a shorter one: give each a name='NAME-${{{key}}}'")


def is_multirun() -> bool:
    """Whether this job is one of several."""
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def overrides() -> list[str]:
    """Command-line overrides of this job, with a sweep's own."""
    # as they were typed: an interpolation in one is not of Hydra's own config
    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(typed)


def choices() -> dict[str, Any]:
    """Chosen option of every config group."""
    return dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}


def named_by_changes(name: str, groups: tuple[str, ...]) -> str:
    """A folder's name and, after it, the overrides of this command line that begin with one of ``groups``."""
    changes = [override for override in overrides() if override.lstrip("+").startswith(groups)]
    return "+".join(filter(None, [name, readable(changes, with_model_and_data=True)]))


def search_path() -> list[Path]:
    """Folders of configs, segmod's own first: ``--config-dir`` and ``hydra.searchpath`` add to them."""
    if HydraConfig.initialized():
        return [Path(source.path) for source in HydraConfig.get().runtime.config_sources if source.schema == "file"]
    words = [part for word in sys.argv[1:] for part in (word.split("=", 1) if word[:13] == "--config-dir=" else [word])]
    added = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--config-dir", "-cd")]
    return [CONF_DIR, *map(Path, added)]


def _report(error: BaseException, config_name: str) -> int:
    """Tell an error to the user; returns the exit code."""
    while not isinstance(error, Stopped) and isinstance(error.__context__, Stopped):
        error = error.__context__  # what its cleaning up has led to
    if isinstance(error, Stopped):
        return tell_stop(error.signum, config_name)
    if isinstance(error, BrokenPipeError) and _reader_left("\n"):
        return 128 + signal.SIGPIPE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    while not isinstance(error, UserError) and isinstance(error.__cause__, UserError):
        error = error.__cause__
    if isinstance(error, UserError):
        line = str(error)
    elif isinstance(error, (HydraException, OmegaConfBaseException)):
        line = explain(error, config_name)
    elif type(error).__name__ == "MisconfigurationException":  # lightning's, not imported here
        line = f"trainer: {error}"
    elif isinstance(error, OSError) and (error.errno in FULL or error.errno == errno.EROFS):
        line = str(UnwritableError(error.errno, reason(error), error.filename or "a file"))
    elif isinstance(error, OSError) and error.filename:
        line = f"{error.filename}: {error.strerror}"
    elif isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        groups = "|".join(_groups_and_keys(config_name)[0])
        no_option = rf"({groups})(@.*)?=(.*,)?(null|true|false|nan|inf|[-+.\d]+(e\d+)?|{{.*}})(,.*)?"
        given = next((match for a in sys.argv[1:] if (match := re.fullmatch(no_option, a, re.IGNORECASE))), None)
        line = f"{given[0]}: choose one of {', '.join(options(given[1]))}, or leave it out" if given else str(error)
    elif isinstance(error, ValueError) and str(error).startswith("Only one of --run, --multirun, --cfg"):
        sys.stderr.write("segmod: error: -m and --cfg do not go together: --cfg job shows one job, without -m\n")
        return 2
    else:
        traceback.print_exception(error)
        return 1
    if os.environ.get("SEGMOD_TRACEBACK") == "1":
        traceback.print_exception(error)
    sys.stderr.write(f"segmod: error: {one_line(line)}\n")
    return 1


def explain(error: BaseException, config_name: str) -> str:
    """One line for what Hydra or OmegaConf refuses: the key or group, and what may stand there."""
    text = "\n".join(str(e) for e in (error, error.__cause__) if e is not None)
    if match := re.search(r"UserError raised while resolving interpolation: (.*)", text):
        return match.group(1)
    if match := re.search(r"[Ee]rror parsing override '(.*?)'\n(.*)", text):
        return f"cannot read the override {match.group(1)!r} ({match.group(2)}): write key=value, quote odd characters"
    if match := re.search(r"LexerNoViableAltException: (.*)", text):
        return f"cannot read the override {match.group(1)!r}: write key=value, quote odd characters"
    if match := re.search(r"Could not (?:find|load) '([\w/]+?)/([^'/]*)'", text):
        group, option = match.groups()
        extra = option.partition("_")[0]
        if group in ("hydra/launcher", "hydra/sweeper") and extra in _EXTRAS:
            return f"{group}={option}: not installed; pip install 'segmod[{extra}]'"
        return f"{group}={option}: no such option; choose one of {', '.join(options(group))}"
    if match := re.search(r"Could not override '([^']+)'\.\s*(?:No match in the defaults list)?", text):
        key = match.group(1)
        if "No match in the defaults list" in text:
            groups, keys = _groups_and_keys(config_name)
            close = difflib.get_close_matches(key, [*groups, *keys], n=1, cutoff=0.5)
            its = f"its groups are {', '.join(groups)}" if groups else f"its keys are {', '.join(keys)}"
            hint = f"did you mean {close[0]}?" if close else its
            return f"segmod-{config_name} has no group '{key}': {hint}"
        full = re.search(r"full_key: (\S+)", text)
        key = full.group(1) if full else key
        return f"no config key '{key}': {_suggest(key, config_name)}"
    if match := re.search(r"(?:Interpolation key|InterpolationKeyError:?) '([^']+)' not found", text):
        full = re.search(r"full_key: (\S+)", text)
        return f"{full.group(1) if full else 'config'}: refers to the key '{match.group(1)}', which is not there"
    if match := re.search(r"Environment variable '(\w+)' not found", text):
        return f"the config needs the environment variable {match.group(1)}: set it"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match.group(1)} is required: give {match.group(1)}=..."
    return re.sub(r"\s*(full_key|object_type|reference_type)[:=]", r"; \1:", text)


def check_choices(cfg: DictConfig, config_name: str) -> None:
    """Check that every group from which a command's config takes an option still has one.

    Raises:
        UserError: One has none; names the options.
    """
    for group, default in _groups_and_keys(config_name)[0].items():
        if default and group not in (cfg if isinstance(default, list) else choices()):
            raise UserError(f"{group} is required: choose one of {', '.join(options(group))}")


def options(group: str) -> list[str]:
    """The options of a config group, those of further folders with them."""
    return sorted({path.stem for folder in search_path() for path in (folder / group).glob("*.yaml")})


def _groups_and_keys(config_name: str) -> tuple[dict[str, Any], list[str]]:
    """Groups, with the option that each has by itself, and keys that a command's config has at its root."""
    cfg: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / f"{config_name}.yaml"))
    groups: dict[str, Any] = {}
    keys = [key for key in cfg if key not in ("defaults", "hydra")]
    for entry in cfg["defaults"]:
        if isinstance(entry, dict):
            groups |= {group: option for group, option in entry.items() if not group.startswith("override ")}
        elif entry != "_self_":
            more = _groups_and_keys(entry)
            groups, keys = groups | more[0], keys + more[1]
    return groups, keys


def _suggest(key: str, config_name: str) -> str:
    """Nearest keys of the config as the other overrides make it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    wrong = key.rpartition(".")[2]
    others = [a for a in sys.argv[1:] if "=" in a and not a.startswith("-") and a.partition("=")[0].lstrip("+~") != key]
    added = search_path()[1:]
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            groups = [a for a in others if "." not in a.partition("=")[0] and "," not in a]
            groups += [f"hydra.searchpath=[{','.join(f'file://{folder.resolve()}' for folder in added)}]"]
            cfg = compose(config_name, overrides=groups)
    except Exception:
        return "--cfg job prints the keys there are"
    keys = _keys(OmegaConf.to_container(cfg))
    last = {k.rpartition(".")[2]: k for k in reversed(keys)}
    close = [last[wrong]] if wrong in last else difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    close += [last[k] for k in difflib.get_close_matches(wrong, last, n=1, cutoff=0.7)]
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}--cfg job prints the keys there are, +{key}=... adds one"


def _keys(node: Any, prefix: str = "") -> list[str]:
    found = [prefix] if prefix else []
    for key, value in node.items() if isinstance(node, dict) else ():
        found += _keys(value, f"{prefix}.{key}" if prefix else str(key))
    return found
