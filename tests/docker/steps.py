"""Runs a Dockerfile's steps in a folder, by chroot, where there is no container engine. On Linux, as root, by hand.

    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm base
    python tests/docker/steps.py docker/cpu.Dockerfile --base base --work /tmp/steps -- ship --batch 1

``base`` stands for every FROM that names no earlier stage, and is copied, never changed. ENV, ARG, WORKDIR, USER, COPY,
RUN, ENTRYPOINT and CMD are followed as Docker follows them, and what comes after ``--`` is given to the entrypoint. Not
followed: layers, caches, capabilities. Needs the package ``dockerfile-parse``.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = Path(__file__).resolve().parents[2]


@dataclass
class Stage:
    """One FROM and what its steps have set so far."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def expanded(self, text: str) -> str:
        """``text`` with $NAME and ${NAME} put in, as Docker does it outside of RUN."""
        known = {**self.arguments, **self.environment}
        return re.sub(r"\$\{?(\w+)\}?", lambda match: known.get(match[1], ""), text)

    def inside(self, path: str) -> Path:
        """Where a path of the image lies on this machine."""
        return self.root / os.path.normpath(Path(self.folder, path)).lstrip("/")


@dataclass(frozen=True)
class Options:
    base: Path
    work: Path
    build_args: Mapping[str, str]
    binds: Sequence[str]
    environment: Mapping[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="a root folder that stands for the base image")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the stages' roots; what is in it goes")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--bind", action="append", default=[], metavar="PATH", help="shown at the same path, read-only")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for every RUN, not the image")
    parser.add_argument("arguments", nargs="*", help="for the entrypoint, instead of CMD")
    given = parser.parse_args()
    options = Options(given.base, given.work, _pairs(given.build_arg), given.bind, _pairs(given.env))
    last = build(given.dockerfile, options)
    words = [*last.entrypoint, *(given.arguments or last.command)]
    _say(shlex.join(words))
    return _run(last, words, {}, options).returncode


def build(dockerfile: Path, options: Options) -> Stage:
    """Run every step up to the end; the last stage."""
    parse = importlib.import_module("dockerfile_parse").DockerfileParser
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for step in parse(fileobj=dockerfile.open("rb")).structure:
        word, value = step["instruction"].upper(), step["value"]
        if word == "COMMENT":
            continue
        _say(f"{word} {value}")
        if word == "FROM":
            stage = _begin(value, stages, options)
            continue
        assert stage is not None, f"{word} before FROM"
        _step(stage, word, value, stages, options)
    assert stage is not None, "no FROM"
    return stage


def _begin(value: str, stages: dict[str, Stage], options: Options) -> Stage:
    words = value.split()
    earlier = stages.get(words[0])
    root = options.work / f"stage{len(stages)}"
    subprocess.run(["cp", "-a", str(earlier.root if earlier else options.base), str(root)], check=True)
    stage = Stage(root, {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
    stages[words[2] if len(words) == 3 else str(len(stages))] = stage
    return stage


def _step(stage: Stage, word: str, value: str, stages: Mapping[str, Stage], options: Options) -> None:
    match word:
        case "ENV":
            stage.environment |= _pairs(shlex.split(stage.expanded(value)))
        case "ARG":
            name, _, default = value.partition("=")
            stage.arguments[name] = options.build_args.get(name, stage.expanded(default))
        case "WORKDIR":
            stage.folder = str(Path(stage.folder, stage.expanded(value)))
            stage.inside(".").mkdir(parents=True, exist_ok=True)
        case "USER":
            stage.user = value
        case "ENTRYPOINT":
            stage.entrypoint, stage.command = json.loads(value), []
        case "CMD":
            stage.command = json.loads(value)
        case "COPY":
            _copy(stage, stage.expanded(value), stages)
        case "RUN":
            if _run(stage, ["/bin/sh", "-c", value], {**stage.arguments, **options.environment}, options).returncode:
                sys.exit(f"this RUN failed: {value}")
        case _:
            sys.exit(f"{word} is none of the instructions that are followed here")


def _copy(stage: Stage, value: str, stages: Mapping[str, Stage]) -> None:
    words = value.split()
    flags = _pairs(word[2:] for word in words if word.startswith("--"))
    *sources, target = (word for word in words if not word.startswith("--"))
    to = stage.inside(target)
    if target.endswith("/") or len(sources) > 1:
        to.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if "from" in flags:
            from_ = stages[flags["from"]].root / source.lstrip("/")
            subprocess.run(["cp", "-aT", str(from_), str(to)], check=True)
            continue
        for file in _context_files(CONTEXT / source):
            whole = (CONTEXT / source).is_file()
            here = (to / file.name if to.is_dir() else to) if whole else to / file.relative_to(CONTEXT / source)
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, here)
            if "chmod" in flags:
                here.chmod(int(flags["chmod"], 8))


def _context_files(path: Path) -> Iterator[Path]:
    """The files at or below ``path`` that .dockerignore lets into the context."""
    rules = [line for line in (CONTEXT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    tracked = subprocess.run(
        ["git", "-C", str(CONTEXT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.split("\0")):
        if not ignored(name, rules):
            yield CONTEXT / name


def ignored(name: str, rules: Sequence[str]) -> bool:
    """Whether a file is left out of the context: the last rule that fits it, or a folder above it, decides."""
    parts = Path(name).parts
    paths = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    out = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        # Docker's ** stands for any folders, none among them; its * stops at a slash, unlike fnmatch's.
        if any(_fits(path, pattern) for path in paths):
            out = not rule.startswith("!")
    return out


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(path.rpartition("/")[2], pattern.removeprefix("**/"))
    same_depth = path.count("/") == pattern.count("/")
    return same_depth and fnmatch.fnmatchcase(path, pattern)


def _run(
    stage: Stage, words: Sequence[str], further: Mapping[str, str], options: Options
) -> subprocess.CompletedProcess[bytes]:
    user = stage.user if stage.user.isdecimal() else _user_id(stage)
    home = {"HOME": _home(stage, user)}
    environment = [f"{name}={value}" for name, value in (home | stage.environment | dict(further)).items()]
    command = ["chroot", f"--userspec={user}:{user}", str(stage.root), "/usr/bin/env", "-i", f"--chdir={stage.folder}"]
    with _mounted(stage.root, options.binds):
        return subprocess.run([*command, *environment, *words], check=False)


def _user_id(stage: Stage) -> str:
    return next(line.split(":")[2] for line in _users(stage) if line.startswith(f"{stage.user}:"))


def _home(stage: Stage, user: str) -> str:
    return next((line.split(":")[5] for line in _users(stage) if line.split(":")[2] == user), "/")


def _users(stage: Stage) -> list[str]:
    return (stage.root / "etc/passwd").read_text(encoding="utf-8").splitlines()


@contextlib.contextmanager
def _mounted(root: Path, binds: Sequence[str]) -> Iterator[None]:
    """What Docker shows in every container, and ``binds``; gone again afterwards."""
    done: list[Path] = []
    try:
        for source in ("/proc", "/dev", "/etc/resolv.conf", "/etc/hosts", *binds):
            target = root / source.lstrip("/")
            if Path(source).is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            subprocess.run(["mount", "--bind", source, str(target)], check=True)
            done.append(target)
            if source in binds:
                subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True)
        shared = root / "dev/shm"
        shared.mkdir(exist_ok=True)
        yield
    finally:
        for target in reversed(done):
            subprocess.run(["umount", "--lazy", str(target)], check=True)


def _say(text: str) -> None:
    sys.stdout.write(f"== {text}\n")
    sys.stdout.flush()


def _pairs(texts: Sequence[str] | Iterator[str]) -> dict[str, str]:
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


if __name__ == "__main__":
    sys.exit(main())
