from __future__ import annotations

import getpass
import json
import platform
import subprocess
from pathlib import Path

import jsonschema
import pytest

from deploykit.bench import schema
from deploykit.bench.environment import environment


def test_it_says_what_a_latency_depends_on() -> None:
    found = environment(2, ["kept", "kept"])
    definitions = {"$defs": schema()["$defs"], "$ref": "#/$defs/environment"}
    jsonschema.Draft202012Validator(definitions).validate(found)
    assert set(found) == set(schema()["$defs"]["environment"]["properties"])
    assert found["threads"] == 2
    assert found["denormals"] == ["kept"]
    assert found["libraries"]["numpy"]


def test_it_tells_no_host_no_user_and_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = json.dumps(environment(1, []))
    words = set(text.replace('"', " ").replace(",", " ").replace(":", " ").split())
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    assert platform.node() not in words
    assert getpass.getuser() not in words


def test_git_is_the_commit_and_whether_it_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment(1, [])["git"] is None
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "f"), (*identity, "commit", "-qm", "m")):
        (tmp_path / "f").write_text("one")
        subprocess.run(("git", *words), check=True)
    found = environment(1, [])["git"]
    assert len(found["commit"]) == 40
    assert found["dirty"] is False
    (tmp_path / "f").write_text("two")
    assert environment(1, [])["git"]["dirty"] is True
