import json

import pytest

from recipes.common.records import Records


def records(path):
    return Records(path, lambda record: record.get("name"))


def test_what_is_added_is_there_in_the_file_at_once_and_again_later(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    first = records(path)
    assert not first
    for i, record in enumerate(
        ({"name": "a", "loss": 1.5}, {"versions": "1"}, {"name": "b"}, {"name": "a", "loss": 2})
    ):
        first.add(record)
        assert [json.loads(line) for line in path.read_text().splitlines()][i:] == [record]
    assert first == records(path) == {"a": {"name": "a", "loss": 2}, "b": {"name": "b"}}


def test_a_line_torn_by_a_kill_costs_that_record_alone(tmp_path):
    path = tmp_path / "results.jsonl"
    lines = [b'{"name": "a"}\n', b'{"name": "b"}\n', b'{"name": "c"}\n']
    for cut in range(1, len(lines[1])):
        path.write_bytes(lines[0] + lines[1][:cut])
        after = records(path)
        whole = cut == len(lines[1]) - 1  # the line's end alone is not there
        assert list(after) == ["a", "b"][: 1 + whole]
        assert path.read_bytes() == lines[0] + lines[1][:cut]  # another process may be writing it
        after.add({"name": "c"})
        assert list(records(path)) == list(after) == [*["a", "b"][: 1 + whole], "c"]
        assert path.read_bytes().endswith(b"\n" + lines[2])


def test_what_is_whole_and_not_a_record_is_an_error(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"nothing": 1}\n')
    with pytest.raises(KeyError):
        Records(path, lambda record: record["name"])
