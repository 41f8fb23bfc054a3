"""The count of the package's size, circles and probes, on a small package with one of each."""

from benchmarks import house

FILES = {
    "__init__.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from greedylr_integrations.a import A\n",
    "a.py": """\
from greedylr_integrations.parts import b


class A:
    def ask(self, other, decision):
        import json


        if hasattr(other, "x") or isinstance(other, (int, b.B)) or isinstance(other, int):
            return getattr(other, "y"), getattr(other, json.x)
        return decision[2], other[2], decision[other]
""",
    "parts/__init__.py": "",
    "parts/b.py": """\
import numpy


class B:
    @property
    def made(self):
        import scipy
        from ..a import A

        return A
""",
    "parts/c.py": "\n".join(f"c{i} = {i}" for i in range(7)),
    "d.py": "import os\n\n" + "\n".join(f"c{i}  =  {i}" for i in range(7)),
}


def test_each_thing_is_counted(tmp_path, capsys, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / house.PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    row, places = house.count(tmp_path)
    a, b = "greedylr_integrations/a.py", "greedylr_integrations/parts/b.py"
    asking = FILES["a.py"].splitlines()[8].strip()
    assert places["Probes"] == [f"{a}:9  {asking}"] * 2 + [f"{a}:10  {FILES['a.py'].splitlines()[9].strip()}"]
    assert places["Import circles"] == ["greedylr_integrations.a <-> greedylr_integrations.parts.b"]
    assert places["Imports in functions"] == [f"{a}:6  import json", f"{b}:8  from ..a import A"]
    assert places["Decisions by number"] == [f"{a}:11  return decision[2], other[2], decision[other]"]
    assert places["Duplicate windows"] == [
        f"greedylr_integrations/d.py:{3 + i} = greedylr_integrations/parts/c.py:{1 + i}" for i in range(2)
    ]
    assert row["Files"] == 6
    assert str(row["Largest file"]) == "11 (a.py)"
    assert str(row["Largest class"]) == "8 (a.py: A)"
    assert str(row["Longest method"]) == "7 (a.py: A.ask)"
    monkeypatch.setattr("sys.argv", ["house.py", str(tmp_path), "--row"])
    house.main()
    assert (
        capsys.readouterr().out.splitlines()[2]
        == "| 41 | 6 | 11 (a.py) | 8 (a.py: A) | 7 (a.py: A.ask) | 3 | 1 | 2 | 1 | 2 |"
    )
