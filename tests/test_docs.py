"""The code in README and docs runs, and its command lines are understood."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

import jaxlb
from jaxlb import cli, learn, metrics
from tests import small

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.+\n)+")


def _python(page: Path) -> list[tuple[int, str]]:
    """The page's blocks that run, each with its line; those of interop.md in tests/test_interop_docs.py."""
    text = "" if page.name == "interop.md" else page.read_text()
    return [
        (text.count("\n", 0, block.start("code")), block["code"])
        for block in FENCED.finditer(text)
        if block["language"] == "python" and not block["reason"]
    ]


def _commands(page: Path) -> list[list[str]]:
    """The arguments of every `jaxlb` in the page's shell blocks, indented ones included."""
    text = page.read_text()
    blocks = [block["code"] for block in FENCED.finditer(text) if block["language"] == "sh"]
    blocks += INDENTED.findall(FENCED.sub("", text))
    found = []
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|;|\|", line):
            # What starts the program, such as srun, may come before its name.
            start = re.search(r"(?:^|\s)jaxlb(?=\s|$)", command)
            if start and not command.strip().startswith("pip"):
                found.append(shlex.split(command[start.end() :], comments=True))
    return found


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _run(page: Path, blocks: list[tuple[int, str]]) -> None:
    """In order and in one namespace, as a reader would type it."""
    namespace = {"__name__": "page"}
    # What a page adds to tables is not there for the next one.
    with mock.patch.dict(metrics.FIGURES), mock.patch.dict(learn.TRAINERS):
        for line, code in blocks:
            # Empty lines above, so that a traceback names the line of the page.
            exec(compile("\n" * line + code, _name(page), "exec"), namespace)


def _light(page: Path) -> list[tuple[int, str]]:
    """The blocks that train nothing: trainings take long to compile."""
    return [(line, code) for line, code in _python(page) if "train_" not in code]


READ_FIRST = [ROOT / "README.md"]
TRAIN = [page for page in PAGES if _light(page) != _python(page)]
LIGHT = [page for page in PAGES if _light(page) and (page in READ_FIRST or page not in TRAIN)]


@pytest.mark.parametrize("page", small.mostly_slow(LIGHT, READ_FIRST), ids=_name)
def test_python_runs(page):
    _run(page, _light(page))


@pytest.mark.slow
@pytest.mark.parametrize("page", TRAIN, ids=_name)
def test_python_that_trains_runs(page):
    _run(page, _python(page))


@pytest.mark.parametrize("page", [page for page in PAGES if _commands(page)], ids=_name)
def test_commands_are_understood(page):
    for arguments in _commands(page):
        # What an earlier command wrote is not there, and completions would be written to where a shell looks.
        if "--config" not in arguments and not arguments[0].startswith("--tyro"):
            cli._parse(arguments)


def test_blocks_are_found():
    """Were the patterns to fail, nothing above would run."""
    assert sum(len(_python(page)) for page in PAGES) > 20
    assert ["verify", "--quick"] in _commands(ROOT / "README.md")
    assert ["verify", "--out", "docs"] in _commands(ROOT / "docs" / "verification.md")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page):
    """As a code host shows the page; what the site makes of it, tests/test_site.py knows."""
    text = FENCED.sub("", page.read_text())
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target


def test_a_name_is_a_function_or_a_module():
    for name in jaxlb.__all__:
        module = importlib.util.find_spec(f"jaxlb.{name}")
        assert module is None, f"jaxlb.{name} is a function, and {module.origin} a module"


def test_names_that_docs_mention_exist():
    """With `import jaxlb` alone, as people type them."""
    named = re.compile(r"(?<![\w/.])jaxlb(?:\.[A-Za-z_]\w*)+")
    found = {name for page in PAGES for name in named.findall(page.read_text(encoding="utf-8"))}
    files = re.compile(r"\.(md|py|json|png|ipynb|yaml|gif)$")
    names = sorted(name for name in found if not files.search(name))
    assert len(names) > 60
    program = f"""import operator, jaxlb
for name in {names}:
    try:
        operator.attrgetter(name.removeprefix("jaxlb."))(jaxlb)
    except ImportError as missing:  # a name that needs another library, and says which
        assert "pip install" in str(missing), name
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_table_of_seed_is_what_was_measured():
    """docs/gnn.md says what docs/results/gnn.md has."""
    page = (ROOT / "docs" / "gnn.md").read_text()
    tables = re.findall(r"^\| .*original.*(?:\n\|.*)+", page, re.MULTILINE)
    assert len(tables) == 1
    measured = (ROOT / "docs" / "results" / "gnn.md").read_text()
    rows = dict(re.findall(r"^\| snapshot: ([^|]+?) \|(.+)\|$", measured, re.MULTILINE))
    named = {
        "Round Robin": "rr",
        "LWR": "lwr",
        "predictive": "drift-aware",
        "message": "gnn, seed 2",
        "oracle": "oracle",
    }
    for line in tables[0].splitlines()[2:]:
        _, who, _, agreement, _, violations, _ = (cell.strip() for cell in line.split("|"))
        source = next(rows[row] for start, row in named.items() if who.startswith(start)).split("|")
        rate, half = (float(number) for number in source[0].split("±"))
        assert violations == f"{rate:.2f} ± {half:.2f} %"
        assert float(agreement.removesuffix(" %")) == float(source[-1])


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == jaxlb.__version__
