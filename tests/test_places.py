"""The project in unusual places: odd paths, other folders, read-only, without a network.

Each test runs the README's snippet in a new process, or `chainlit run app.py` with one person.
"""

import ast
import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from app_server import PROMPT, Person, copy_app, need_chainlit, serving
from conftest import ROOT, run

from support.files import read_text
from support.inspection.memorization import verbatim_share, verbatim_spans
from support.python_version import NEWEST, OLDEST, require_python
from utils import text_to_token_ids

TESTS = ROOT / "tests"
README = (ROOT / "README.md").read_text(encoding="utf-8")
(SNIPPET,) = re.findall(r"^```python\n([^`]*pretrain-story[^`]*)```", README, re.MULTILINE)

NO_NETWORK = "import socket\nsocket.socket.connect = socket.getaddrinfo = None\n"
# Appended to the snippet: has the model memorized the story, and do figures need a home?
MORE = """
from gpt import calc_loss_loader
from support.files import read_text
from support.inspection.plots import plot_temperature
from support.training.data import eval_loader, split_tokens
plot_temperature(model(token_ids[:, -256:])[0, -1].detach(), tokenizer).savefig("next.png")
ids = text_to_token_ids(read_text("story.txt"), tokenizer)[0]
print(calc_loss_loader(eval_loader(split_tokens(ids, 256)[0], 256, 2), model))
"""
# The app and its user in one process, because nothing reaches it from outside its namespace.
APP_AND_PERSON = """
import socket, sys
from pathlib import Path
from test_places import first_continuation, serving
print("interfaces:", [name for _, name in socket.if_nameindex()])
with serving(Path.cwd(), sys.argv[1]) as server:
    print("memorized:", first_continuation(server)[1]["share"] > 0.5)
"""


def first_continuation(server):
    """Return a person's continuation, which is greedy, and the passages that it copies."""

    async def scene():
        async with Person(server) as person:
            shown = await person.write(PROMPT, max_new_tokens=40, temperature=0)
            _, answer = await person.act("look", what="copied", ids=shown.ids)
            return shown, answer["response"]

    return asyncio.run(scene())


def output(command, folder, **environment):
    """Return the output of a command that must succeed."""
    process = run(command, folder, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


def refused_start(script, folder, prefix=(), **environment):
    """Return what `chainlit run` reports, and check that it ends with an error."""
    need_chainlit()
    # Port 0 is any free one, for an app that starts although it should not.
    command = [sys.executable, "-m", "chainlit", "run", str(script), "-h", "--port", "0"]
    process = run([*prefix, *command], folder, **environment)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    return process.stderr


@pytest.fixture(scope="module")
def homeless(tmp_path_factory):
    """Return a command that runs another one, which neither has nor can create a home folder.

    File permissions then hold for root, too.
    """
    if not hasattr(os, "geteuid"):
        pytest.skip("it needs the permissions of Unix")
    closed = tmp_path_factory.mktemp("closed")
    closed.chmod(0o555)
    variables = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TIKTOKEN_CACHE_DIR")
    command = ["env", *(f"-u{name}" for name in variables), f"HOME={closed / 'home'}"]
    if os.geteuid() == 0:
        command += ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    assert run([*command, "sh", "-c", "echo $HOME"], closed).stdout.endswith("home\n")
    assert run([*command, "sh", "-c", "mkdir $HOME"], closed).returncode != 0
    return command


def copy_with_a_story_from_windows(folder):
    folder.mkdir()
    story = read_text(ROOT / "dataset" / "story.txt")
    copy_app(folder, story="\ufeff" + story.replace("\n", "\r\n"))
    assert b"\r\n" in (folder / "dataset" / "story.txt").read_bytes()
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a copy in a folder with a difficult name."""
    folder = tmp_path_factory.mktemp("places") / "Mes modèles 故事 (1)"
    return copy_with_a_story_from_windows(folder)


@pytest.fixture
def read_only(tmp_path):
    folder = copy_with_a_story_from_windows(tmp_path / "Lecture seule — 故事")
    output(["chmod", "-R", "a-w", "."], folder)
    yield folder
    output(["chmod", "-R", "u+w", "."], folder)


@pytest.fixture(scope="module")
def server(place, homeless):
    with serving(place, "app.py", homeless) as server:
        yield server


# 1. The snippet -----------------------------------------------------------------------------


def test_the_snippet_from_another_folder_without_a_home_or_a_place_to_write(
    read_only, homeless, tmp_path
):
    code = f"{NO_NETWORK}import sys\nsys.path.insert(0, {str(read_only)!r})\n{SNIPPET}{MORE}"
    for name in ("pretrain-story-model.pth", "dataset/story.txt"):
        (tmp_path / Path(name).name).symlink_to(read_only / name)
    for write in ("echo > new", "echo >> app.py"):
        assert run([*homeless, "sh", "-c", write], read_only).returncode != 0
    printed = output([*homeless, sys.executable, "-W", "error", "-c", code], tmp_path)
    text, loss = printed.rstrip().rsplit("\n", 1)
    assert text.startswith("Everyone knew who the Babbingtons were.") and len(text) > 150
    assert float(loss) < 0.5
    assert (tmp_path / "next.png").read_bytes().startswith(b"\x89PNG")


# 2. The app ---------------------------------------------------------------------------------


def test_the_app_analyses_a_story_from_windows_alike(server, story, tokenizer):
    shown, copied = first_continuation(server)
    assert f"{PROMPT}{shown.text}"[:100] in story  # the model has memorized it
    story_ids = text_to_token_ids(story, tokenizer)[0].tolist()
    assert copied["share"] == verbatim_share(verbatim_spans(shown.ids, story_ids), 40) > 0.5
    assert b"<title>A small GPT</title>" in server.call("GET", "/").content  # its own settings
    script = "public/elements/Text.jsx"
    assert server.call("GET", f"/{script}").content == (ROOT / script).read_bytes()


@pytest.fixture
def no_network_at_all(tmp_path):
    """Return a command that runs another one with only the loopback network; [] if none can."""
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not shutil.which("unshare"):
        return []
    if os.geteuid() != 0:
        command.insert(1, "--map-root-user")
    return command if run([*command, "true"], tmp_path).returncode == 0 else []


def test_a_second_app_needs_no_network_and_may_end(server, no_network_at_all, tmp_path):
    (tmp_path / "link").symlink_to(server.folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {"HOME": str(tmp_path), "PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}"}
    environment["CHAINLIT_APP_ROOT"] = str(tmp_path / "link")
    script = str(server.folder / "app.py")
    command = [*no_network_at_all, sys.executable, "-c", APP_AND_PERSON, script]
    interfaces, memorized = output(command, elsewhere, **environment).splitlines()
    assert memorized == "memorized: True"
    assert not (server.folder / ".files").exists()  # the other app deleted them
    assert first_continuation(server)[1]["share"] > 0.5
    if not no_network_at_all:
        pytest.skip("no network namespace can be made here, so the second app had a network")
    assert interfaces == "interfaces: ['lo']"


@pytest.mark.parametrize("variables", [{}, {"CHAINLIT_APP_ROOT": "."}], ids=["", "variable"])
def test_started_elsewhere_the_app_says_where_to_start_it(place, tmp_path, variables):
    error = refused_start(place / "app.py", tmp_path, **variables)
    change, start = re.findall("^    (.*)$", error, re.MULTILINE)
    show = f'{change} && echo "$CHAINLIT_APP_ROOT" && pwd'
    assert output(["sh", "-c", show], tmp_path, **variables) == f"\n{place}\n"
    assert start == "chainlit run app.py"


def test_as_a_python_script_the_app_names_its_command(place):
    process = run([sys.executable, "app.py"], place)
    assert process.returncode == 1
    assert "\n    chainlit run app.py\n" in process.stderr and "Traceback" not in process.stderr


def test_a_read_only_app_says_what_it_cannot_write(read_only, homeless):
    """Somebody else, who could write there, has run it before; otherwise, Chainlit itself ends."""
    output(["chmod", "u+w", ".", ".chainlit"], read_only)
    output([sys.executable, "-c", "import chainlit.config"], read_only)
    output(["chmod", "-R", "a-w", "."], read_only)
    error = refused_start("app.py", read_only, homeless)
    assert str(read_only / ".files") in error.splitlines()[-1]
    assert "must be writable" in README


# 3. Other systems ---------------------------------------------------------------------------


COMMANDS = {"torch": ("pretrain.py", "support/lesson/__main__.py"), "chainlit": ("app.py",)}


@pytest.mark.parametrize(
    ("version", "package", "needs"),
    [
        ((3, 8), "torch", "this project needs 3.11 to 3.14"),
        ((3, 15), "torch", "this project needs 3.11 to 3.14"),
        ((3, 10), "chainlit", "the page needs 3.11 to 3.13"),
        ((3, 14), "chainlit", "the page needs 3.11 to 3.13"),
    ],
)
def test_one_line_on_another_python(version, package, needs):
    """With -S, Python finds no installed packages. An old Python must parse the commands."""
    for command in COMMANDS[package]:
        source = (ROOT / command).read_text(encoding="utf-8")
        ast.parse(source, feature_version=(3, 8))
        code = f"import sys, runpy; sys.version_info = {version}; sys.path.insert(0, '')\n"
        code += f"runpy.run_path({command!r}, None, '__main__')"
        process = run([sys.executable, "-S", "-c", code], ROOT)
        assert process.returncode == 1
        (line,) = process.stderr.splitlines()
        assert line.startswith(f"This is Python {version[0]}.{version[1]}, but {needs}: ")


def test_a_later_python_with_its_own_pytorch_will_do(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 99))
    require_python("torch")


def test_python_versions_are_the_same_everywhere():
    oldest, newest, of_page = (f"3.{version[1]}" for version in (OLDEST, *NEWEST.values()))
    for path, words in {
        "README.md": f"Python {oldest} to {of_page}; on {newest}, everything except the web page",
        "requirements.txt": f'python_version < "{newest}"',
        ".github/workflows/ci.yml": f'python: ["{oldest}", "{newest}"]',
        "pyproject.toml": f'target-version = "py{oldest.replace(".", "")}"',
    }.items():
        assert words in read_text(ROOT / path), path


def test_pytest_can_import_the_tests_on_windows():
    """Modules and names that Windows lacks are used within functions only."""
    lacking = re.compile(r"resource|fcntl|pwd|grp|termios|SIGALRM|SIGKILL|geteuid|AF_UNIX")
    for path in TESTS.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = [ast.Pass()]
        values = (vars(node).get(key) for node in ast.walk(tree) for key in ("id", "attr", "name"))
        assert not [value for value in values if lacking.fullmatch(str(value))], path.name


def test_git_on_windows_leaves_what_must_not_change(tmp_path, git_checkout):
    clone = tmp_path / "clone"
    output(["git", "clone", "-q", "-c", "core.autocrlf=true", str(ROOT), str(clone)], tmp_path)
    assert b"\r\n" in (clone / "app.py").read_bytes()  # Git may change other files
    names = output(["git", "ls-files", "-z"], clone).split("\0")
    kept = [n for n in names if re.search(r"^dataset/|^\.ci/|\.(pth|jpg|png)$", n)]
    assert len(kept) >= 8
    for name in kept:
        stored = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=clone, stdout=subprocess.PIPE)
        assert (clone / name).read_bytes() == stored.stdout, name
