import os

import pytest

from greedylr_integrations.atomic import write_whole


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "x.json"
    for content in (b"one", b"two"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["x.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_name_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_whole("x", b"here")
    assert (tmp_path / "x").read_bytes() == b"here"


@pytest.mark.parametrize("name", ["p.unfinished", "p.new", "p"])
def test_a_planted_link_is_not_written_through(tmp_path, name):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / name).symlink_to(precious)
    write_whole(tmp_path / "p", b"new")
    assert precious.read_text() == "precious"
    assert (tmp_path / "p").read_bytes() == b"new"


def test_what_cannot_be_written_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "x"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(path, b"new")
    assert os.listdir(tmp_path) == ["x"]
