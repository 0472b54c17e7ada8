"""Manifests: locks of outputs, keys of runs, and digests of outputs."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from mt.core import manifest
from mt.core.config import UserError, option


@dataclasses.dataclass(frozen=True)
class Config:
    output: str = option(help="where", role="output")
    size: int = option(1, "a setting")
    workers: int = option(1, "not a setting", role="runtime")
    overwrite: bool = option(False, "replace", role="runtime")


@dataclasses.dataclass(frozen=True)
class PrefixConfig:
    output_prefix: str = option(help="where", role="output")


def make(output, source, size=1, **runtime):
    """A command that writes its input `size` times."""
    config = Config(str(output), size, **runtime)
    run = manifest.begin("copy", config, [source])
    if run.finished:
        return "up to date", run.manifest
    with manifest.atomic_write(output / "out.txt") as file:
        file.write(source.read_bytes() * size)
    return "made", run.finish([manifest.record(output / "out.txt", output)], {"documents": size})


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("abc")
    return path


def test_a_second_run_is_up_to_date_and_runtime_settings_do_not_matter(tmp_path, source):
    assert make(tmp_path / "a", source)[0] == "made"
    assert make(tmp_path / "a", source, workers=7)[0] == "up to date"


def test_another_setting_is_refused_with_the_difference_unless_overwrite_is_given(tmp_path, source):
    make(tmp_path / "a", source)
    with pytest.raises(UserError, match=r"holds another run of `mt copy` \(size was 1, is 2\)"):
        make(tmp_path / "a", source, size=2)
    assert make(tmp_path / "a", source, size=2, overwrite=True)[0] == "made"
    assert (tmp_path / "a" / "out.txt").read_text() == "abcabc"


def test_a_changed_input_makes_a_chain_of_stages_stale(tmp_path, source):
    make(tmp_path / "a", source)
    make(tmp_path / "b", tmp_path / "a" / "out.txt")
    assert make(tmp_path / "b", tmp_path / "a" / "out.txt")[0] == "up to date"
    make(tmp_path / "a", source, size=3, overwrite=True)
    assert make(tmp_path / "b", tmp_path / "a" / "out.txt", overwrite=True)[0] == "made"


def test_an_output_that_was_changed_is_made_again(tmp_path, source, capsys):
    make(tmp_path / "a", source)
    out = tmp_path / "a" / "out.txt"
    out.write_text("xyz")  # the same size
    assert make(tmp_path / "a", source)[0] == "made"
    assert out.read_text() == "abc"
    assert (
        capsys.readouterr().err
        == f"mt: {out}: is not what was written when this run ended; the output is made again\n"
    )


def test_a_copied_output_with_other_times_is_still_up_to_date(tmp_path, source):
    make(tmp_path / "a", source)
    os.utime(tmp_path / "a" / "out.txt", (1, 1))
    assert make(tmp_path / "a", source)[0] == "up to date"


def test_a_directory_with_files_of_another_program_is_refused(tmp_path, source):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="mt did not write it"):
        make(tmp_path / "a", source, overwrite=True)
    assert (tmp_path / "a" / "thesis.txt").exists()


def test_an_unfinished_run_resumes_with_the_same_settings_and_is_refused_with_others(tmp_path, source):
    run = manifest.begin("copy", Config(str(tmp_path / "a")), [source])
    (tmp_path / "a" / "part").write_text("work done")
    run.lock.close()  # as at the end of the process
    again = manifest.begin("copy", Config(str(tmp_path / "a")), [source])
    assert not again.finished
    assert (tmp_path / "a" / "part").exists()
    again.lock.close()
    with pytest.raises(UserError, match="unfinished run"):
        manifest.begin("copy", Config(str(tmp_path / "a"), 2), [source])
    manifest.begin("copy", Config(str(tmp_path / "a"), 2, overwrite=True), [source])
    assert not (tmp_path / "a" / "part").exists()


def test_an_unfinished_run_that_left_no_file_is_replaced(tmp_path, source):
    manifest.begin("copy", Config(str(tmp_path / "a")), [source]).lock.close()
    assert not manifest.begin("copy", Config(str(tmp_path / "a"), 2), [source]).finished


def test_two_processes_do_not_write_the_same_output(tmp_path, source):
    run = manifest.begin("copy", Config(str(tmp_path / "a")), [source])
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_manifest import *\n"
        "from pathlib import Path\n"
        "try: manifest.begin('copy', Config(sys.argv[2]), [Path(sys.argv[3])])\n"
        "except UserError as error: print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__), str(tmp_path / "a"), str(source)],
        capture_output=True,
        text=True,
    )
    assert "another mt process is writing it" in ended.stdout, ended.stderr
    run.release()


def test_a_failed_write_leaves_no_file(tmp_path):
    def stop_halfway():
        with manifest.atomic_write(tmp_path / "f") as file:
            file.write(b"half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop_halfway()
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_manifest_is_named(tmp_path, source):
    make(tmp_path / "a", source)
    (tmp_path / "a" / "manifest.json").write_text('{"verb": "co')
    with pytest.raises(UserError, match="not valid JSON"):
        make(tmp_path / "a", source)


def test_the_identity_of_a_large_file_changes_with_its_modification_time(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(8 << 20))
    before = manifest.identity(path)
    with open(path, "r+b") as file:
        file.seek(3_333_333)
        file.write(b"x")
    os.utime(path, ns=(1, before["mtime_ns"] + 1))
    assert manifest.identity(path) != before


def test_another_programs_manifest_is_a_plain_file_of_an_input_and_is_refused_in_an_output(tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text('{"name": "extension", "outputs": ["a"]}')
        (tmp_path / name / "a").write_text("x")
    assert manifest.manifest_of(tmp_path / "in") is None
    assert manifest.manifest_of(tmp_path / "in/a") is None
    assert [f["name"] for f in manifest.identity(tmp_path / "in")["files"]] == ["a", "manifest.json"]
    for overwrite in (False, True):
        with pytest.raises(
            UserError,
            match=r"out/manifest\.json: is there already, and mt did not write it; choose another output",
        ):
            manifest.begin("copy", Config(str(tmp_path / "out"), overwrite=overwrite), [tmp_path / "in"])
    assert (tmp_path / "out/a").exists()


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        manifest.identity(tmp_path / "none")


def test_a_setting_added_later_is_part_of_the_key_only_if_it_is_not_its_default(tmp_path):
    before = dataclasses.make_dataclass(
        "Before", [("output", str, option(help="", role="output")), ("n", int, option(1))], frozen=True
    )
    added = [("m", float, option(1.0, added=True)), ("t", tuple[int, ...], option((), added=True))]
    after = dataclasses.make_dataclass("After", added, bases=(before,), frozen=True)
    first = manifest.begin("data clean", before(output=str(tmp_path / "a")), [])
    first.finish([], {})
    again = manifest.begin("data clean", after(output=str(tmp_path / "a")), [])
    assert again.finished, "the same key"
    with pytest.raises(UserError, match="holds another run"):
        manifest.begin("data clean", after(output=str(tmp_path / "a"), m=0.5), [])
    with pytest.raises(UserError, match="holds another run"):
        manifest.begin("data clean", after(output=str(tmp_path / "a"), t=(1,)), [])


@pytest.mark.parametrize("name", ["../precious.txt", "{folder}/precious.txt", "link", "pipe", "a\0b", ""])
@pytest.mark.parametrize("settings", [{"size": 1}, {"size": 2, "overwrite": True}])
def test_a_finished_output_whose_manifest_names_other_places_is_refused(tmp_path, source, name, settings):
    make(tmp_path / "a", source)
    victim = tmp_path / "precious.txt"
    victim.write_text("abc")
    (tmp_path / "a/link").symlink_to(victim)
    os.mkfifo(tmp_path / "a/pipe")
    sealed = json.loads((tmp_path / "a/manifest.json").read_text())
    sealed["outputs"][0]["name"] = name.format(folder=tmp_path)
    (tmp_path / "a/manifest.json").write_text(json.dumps(sealed))
    if settings["size"] == 1:
        with pytest.raises(UserError, match=r"a/manifest\.json, outputs: .* must be the relative path"):
            make(tmp_path / "a", source, **settings)
    else:  # a folder is emptied whatever the names are
        assert make(tmp_path / "a", source, **settings)[0] == "made"
        assert not (tmp_path / "a/pipe").exists()
    assert victim.read_text() == "abc"


@pytest.mark.parametrize(
    "place", ["out.txt", ".out.txt.partial", "run.json", "manifest.json", ".manifest.json.partial"]
)
@pytest.mark.parametrize("target", ["victim", "nowhere"])
def test_links_in_an_unfinished_output_are_replaced_and_not_followed(tmp_path, source, place, target):
    victim, out = tmp_path / "victim", tmp_path / "a"
    victim.write_text("")  # as a run.json whose writer was killed
    manifest.begin("copy", Config(str(out)), [source]).lock.close()
    (out / place).unlink(missing_ok=True)
    (out / place).symlink_to(tmp_path / target)
    refusals = {
        ("manifest.json", "victim"): "not valid JSON",
        ("run.json", "nowhere"): "is not empty and mt did not write it",  # the link is all that there is
    }
    if (place, target) in refusals:
        with pytest.raises(UserError, match=refusals[place, target]):
            make(out, source)
    else:
        assert make(out, source)[0] == "made"
        assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "out.txt"]
        assert not any(p.is_symlink() for p in out.iterdir())
    assert victim.read_text() == ""
    assert not (tmp_path / "nowhere").exists()


def test_the_claim_of_a_run_that_goes_on_is_whole_at_every_moment(tmp_path, source):
    out = tmp_path / "a"
    manifest.begin("copy", Config(str(out), 12345678), [source]).lock.close()
    before = json.loads((out / "run.json").read_text())
    assert before["settings"] == {"size": 12345678}
    run = manifest.begin("copy", Config(str(out), 2), [source])
    now = json.loads((out / "run.json").read_text())
    assert (now["settings"], now["key"]) == ({"size": 2}, run.key)
    assert now["pid"] == os.getpid()
    run.release()


def test_pipes_and_devices_are_no_inputs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(UserError, match="which cannot be read twice"):
            manifest.identity(path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder/pipe")
    assert manifest.identity(tmp_path / "folder")["files"] == [], "in a folder they are passed over"


def test_compiled_code_is_kept_in_the_users_cache_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for before, after in ((None, str(tmp_path / "mt/inductor")), ("/elsewhere", "/elsewhere")):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before or "")  # and so it is restored afterwards
        if before is None:
            monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        manifest.keep_compiled_code_private()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == after


def test_many_inputs_are_identified_as_each_alone_and_listed_one_a_line(tmp_path, source, monkeypatch):
    made = tmp_path / "made"
    made.mkdir()
    make(made / "a", source)
    (made / "p_text.bin").write_text("tokens")
    prefix = manifest.begin("tokens", PrefixConfig(output_prefix=str(made / "p")), [], output=made / "p")
    prefix.finish([manifest.record(made / "p_text.bin", made)], {})
    for number in range(300):
        (made / f"{number}.txt").write_text(f'"{number}" \n' * (number % 3))
    inputs = sorted(p for p in made.rglob("*") if p.is_file() and "manifest" not in p.name)
    places = {}
    together = [manifest.identity(p, places) for p in inputs]
    assert together == [manifest.identity(p) for p in inputs]
    assert {"out.txt", "p_text.bin"} == {i["name"] for i in together if "key" in i}
    run = manifest.begin("copy", Config(str(tmp_path / "many")), inputs)
    sealed = run.finish([], {"names": {"é": [1.5, None]}}, rows=[{"n": [i, "é\n"]} for i in range(150)])
    text = (tmp_path / "many/manifest.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(sealed)) == manifest.read_json(run.path("manifest.json"))
    assert len(text.splitlines()) < 302 + 150 + 40
    monkeypatch.setattr(manifest, "MOST_INPUTS", 301)
    with pytest.raises(UserError, match="302 inputs are more than the 301 that its manifest can list; join"):
        manifest.begin("copy", Config(str(tmp_path / "more")), inputs)
    assert not (tmp_path / "more").exists()


def test_an_input_whose_name_is_not_utf8_is_refused_before_any_work(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.jsonl")
    path.write_bytes(b"{}\n")
    with pytest.raises(UserError, match="its name is not UTF-8, as all text in a manifest; rename it"):
        manifest.begin("copy", Config(str(tmp_path / "out")), [path])
    assert not (tmp_path / "out").exists()
