"""Which files of a register path are run, which never are, and what is said when one cannot be."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from config_tasks import MINIMAL, load

from runformer import plugins
from runformer.config import Task
from runformer.errors import ConfigError
from runformer.plugins.registry import REGISTRY

pytestmark = pytest.mark.usefixtures("no_plugins")

HALF = """
from runformer import plugins

@plugins.schedule("HalfLR")
def half(total_steps, steps_per_epoch, learning_rate=1.0):
    return lambda step: learning_rate / 2
"""
USED = "lr_schedule: {type: HalfLR}\n"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plug").mkdir(mode=0o755)


def put(name: str, text: str) -> Path:
    path = Path("plug", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return path


def load_with(extra: str = "", *arguments: str) -> Task:
    return load(Path.cwd(), MINIMAL + extra, "--register_path", "plug", *arguments)


def error_of(extra: str = "", *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_with(extra, *arguments)
    return str(caught.value)


def notices(task: Task) -> str:
    return "\n".join(task.notices)


def test_a_plugin_is_run_and_the_run_says_so() -> None:
    put("half_rate.py", HALF)
    task = load_with(USED)
    assert "plug-ins: plug/half_rate.py (schedule HalfLR)" in task.notices
    assert task.plugins == ("plug/half_rate.py",)
    assert task.train is not None
    assert (task.train.schedule.kind, task.train.schedule.parameters) == ("HalfLR", {})


def test_other_files_stay_untouched() -> None:
    boom = "raise SystemExit('run')\n"
    put("mindspore_model.py", "import mindspore\nfrom mindformers import LlamaForCausalLM\n" + boom)
    put("convert_weight.py", "from runformer.checkpoint import load_weights\n" + boom)
    put("python2.py", "print 'runformer'\n")
    put("notes.py", "# from runformer import plugins\n" + boom)
    put("invalid_escape.py", "'runformer \\d'\n" + boom)
    put("package/inner.py", HALF)
    task = load_with()
    assert task.plugins == ()
    assert "plug-ins" not in notices(task)


def test_without_plugins_a_folder_may_be_anyones() -> None:
    put("convert_weight.py", "import mindspore\n")
    Path("plug").chmod(0o777)
    assert load_with().plugins == ()


@pytest.mark.parametrize(
    "line",
    ["from runformer import plugins", "import runformer.plugins", "from runformer.plugins import schedule"],
)
def test_every_way_to_import_the_registry_makes_a_plugin(line: str) -> None:
    put("plain_one.py", f"def later():\n    {line}\n")
    assert load_with().plugins == ("plug/plain_one.py",)


def test_plugins_import_each_other_and_their_helpers_also_later() -> None:
    late = "def half(total_steps, steps_per_epoch):\n    import aa_late\n    return aa_late.curve\n"
    put("aa_first.py", f"from runformer import plugins\nimport zz_helper\n{late}plugins.schedule('HalfLR')(half)\n")
    put("zz_helper.py", "from zz_package import number\n")
    put("zz_package/__init__.py", "from .numbers import number\n")
    put("zz_package/numbers.py", "number = 1\n")
    put("aa_late.py", "curve = abs\n")
    path = list(sys.path)
    task = load_with(USED)
    assert task.plugins == (
        "plug/aa_first.py",
        "plug/aa_late.py",
        "plug/zz_helper.py",
        "plug/zz_package/__init__.py",
        "plug/zz_package/numbers.py",
    )
    assert sys.path == path
    found = REGISTRY.find("schedule", "HalfLR")
    assert found is not None
    assert found.target(1, 1) is abs


def test_a_file_is_run_once_in_a_process() -> None:
    put("counting.py", HALF + "import os\nos.environ['COUNT'] = os.environ.get('COUNT', '') + 'x'\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COUNT", "")
        load_with(USED)
        assert load_with(USED).plugins == ("plug/counting.py",)
        import os

        assert os.environ["COUNT"] == "x"


# --- Whose code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["plug", "plug/half_rate.py", "plug/helper_of_half.py"])
def test_what_everyone_can_write_is_refused_unless_the_command_line_trusts_it(what: str) -> None:
    put("half_rate.py", HALF + "import helper_of_half\n")
    put("helper_of_half.py", "")
    Path(what).chmod(Path(what).stat().st_mode | 0o002)
    for arguments in ((), ("--trust_remote_code", "False")):
        message = error_of(USED + "trust_remote_code: True\n" if not arguments else USED, *arguments)
        assert message.startswith(f"{what}: every user of this machine can write here, so code from it is not run")
        assert f"chmod o-w {what}" in message
        assert "--trust_remote_code True to the command line" in message
    assert REGISTRY.of_kind("schedule") == {}
    assert load_with(USED, "--trust_remote_code", "True").plugins != ()


def test_what_a_link_leads_to_counts() -> None:
    Path("elsewhere").mkdir(mode=0o755)
    Path("elsewhere/half_rate.py").write_text(HALF)
    Path("elsewhere/half_rate.py").chmod(0o644)
    Path("plug/half_rate.py").symlink_to(Path("elsewhere/half_rate.py").absolute())
    Path("elsewhere").chmod(0o777)
    assert "elsewhere: every user" in error_of(USED)


def test_compiled_code_that_others_could_have_written_is_refused() -> None:
    compiled = Path(importlib.util.cache_from_source(str(put("half_rate.py", HALF))))
    compiled.parent.mkdir()
    compiled.parent.chmod(0o777)
    assert "__pycache__: every user" in error_of(USED)


# --- What goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nx = 1 / 0\n", "plug/broken.py:9: loading this plug-in raised ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "plug/broken.py:8: loading this plug-in raised SystemExit: 3"),
        ("import no_such_module_x\n", "plug/broken.py:7: loading this plug-in raised ModuleNotFoundError"),
        ("def f(:\n", "plug/broken.py:7: this plug-in is not valid Python: invalid syntax"),
        ("import mindspore as ms\n", "plug/broken.py:7: this plug-in imports mindspore"),
        ("from mindformers.core import X\n", "plug/broken.py:7: this plug-in imports mindformers.core"),
        ("def f():\n    import mindformers\nf()\n", "plug/broken.py:8: loading this plug-in raised ModuleNotF"),
        (
            "plugins.schedule('CosineWithWarmUpLR')(half)\n",
            "plug/broken.py:7: the schedule 'CosineWithWarmUpLR' is buil",
        ),
        ("@plugins.callback\nclass C: pass\n", 'broken.py:7: the callback needs a name: @plugins.callback("Name")'),
        ("plugins.schedule('X')(abs)\n", "the schedule X cannot be called with (total_steps, steps_per_epoch, **keys)"),
        ("plugins.schedule('X')(3)\n", "broken.py:7: the schedule X is of type int, which cannot be called"),
        (
            "plugins.model_family('x', options={'qkvbias': 1})\n",
            "sets 'qkvbias', which ModelOptions does not have",
        ),
        ("plugins.model_family('x', names=['LlamaConfig'])\n", "the model family 'LlamaConfig' is built in"),
        ("plugins.optimizer('adamw')(print)\n", "the optimizer 'adamw' is built in"),
    ],
)
def test_a_broken_plugin_is_one_message_with_its_line(text: str, message: str) -> None:
    put("broken.py", HALF + text)
    said = error_of(USED)
    assert message in said
    assert said.startswith("plug/broken.py:")
    assert "Traceback" not in said
    assert ("docs/plugins.md" in said) == ("import mind" in text or "from mind" in text)


def test_a_plugin_that_failed_leaves_nothing_behind() -> None:
    put("broken.py", HALF + "x = 1 / 0\n")
    error_of(USED)
    put("broken.py", "\n\n" + HALF)
    assert load_with(USED).plugins == ("plug/broken.py",)


def test_one_name_in_two_files_is_refused() -> None:
    put("one_half.py", HALF)
    put("other_half.py", "\n" + HALF)
    message = error_of(USED)
    assert "plug/other_half.py:5: the schedule 'HalfLR' is already registered at plug/one_half.py:4" in message


@pytest.mark.parametrize("name", ["json.py", "torch.py", "runformer.py", "pytest/__init__.py"])
def test_the_name_of_another_module_is_refused(name: str) -> None:
    put(name, HALF)
    put("importing.py", f"import {name.partition('/')[0].removesuffix('.py')}\nimport runformer.plugins\n")
    message = error_of(USED)
    assert "is also the name of another module" in message
    assert "rename" in message


def test_a_file_that_cannot_be_imported_by_its_name_is_refused() -> None:
    put("half-rate.py", HALF)
    assert "plug/half-rate.py: a plug-in's file needs a name that Python can import" in error_of(USED)


# --- auto_register ------------------------------------------------------------------------------------------------

PLAIN = "class HalfLR:\n    def __init__(self, total_steps, steps_per_epoch, rate=1.0):\n        self.rate = rate\n"


def test_a_class_that_a_section_names_is_registered_under_its_own_name() -> None:
    put("plain_class.py", PLAIN)
    task = load_with("lr_schedule: {type: HalfLR, rate: 2, auto_register: plain_class.HalfLR}\n")
    assert "plug-ins: plug/plain_class.py (schedule HalfLR)" in task.notices
    assert task.train is not None
    assert task.train.schedule.parameters == {"rate": 2}


def test_what_the_file_registers_itself_counts_more() -> None:
    put("half_rate.py", HALF)
    task = load_with("lr_schedule: {type: HalfLR, auto_register: half_rate.half}\n")
    found = REGISTRY.find("schedule", "HalfLR")
    assert task.train is not None
    assert found is not None
    assert found.line == 4


def test_callbacks_and_handlers_may_be_named_as_well() -> None:
    put("named_parts.py", "class Stop:\n    on_step_end = None\nclass Mask:\n    __call__ = None\n")
    task = load_with(
        "callbacks: [{type: Stop, auto_register: named_parts.Stop}]\n",
        "--train_dataset.data_loader.handler",
        "[{type: Mask, auto_register: named_parts.Mask}]",
    )
    assert "plug-ins: plug/named_parts.py (callback Stop, data handler Mask)" in task.notices
    assert task.train is not None
    assert [item.kind for item in (*task.train.callbacks, *task.train.data.handlers)] == ["Stop", "Mask"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("plain_clas.HalfLR", "there is no file plug/plain_clas.py; did you mean 'plain_class'?"),
        ("plain_class.HalLR", "there is no HalLR in plug/plain_class.py; did you mean 'HalfLR'?"),
        ("HalfLR", "is 'HalfLR'; it should name a file and a class in it, as file.Class"),
        ("a.b.HalfLR", "it should name a file and a class in it"),
        ("../x.HalfLR", "it should name a file and a class in it"),
    ],
)
def test_what_is_not_there_is_named_with_its_place(reference: str, message: str) -> None:
    put("plain_class.py", PLAIN)
    said = error_of(f"lr_schedule: {{type: HalfLR, auto_register: {reference}}}\n")
    line = MINIMAL.count("\n") + 1
    assert said.startswith(f"task.yaml:{line}:44: lr_schedule.auto_register: ")
    assert message in said


def test_with_a_built_in_type_it_has_no_effect() -> None:
    put("not_even_python.py", "import mindspore\n")
    schedule = "{type: ConstantWarmUpLR, learning_rate: 1, auto_register: not_even_python.X}"
    task = load_with(f"lr_schedule: {schedule}\noptimizer: {{type: AdamW, auto_register: missing.X}}\n")
    assert task.plugins == ()
    assert "auto_register: it is read only with a type that is not built in" in notices(task)


def test_a_family_must_be_registered_by_its_file() -> None:
    put("their_model.py", "class TheirConfig: pass\n")
    path = "--model.model_config"
    model = (f"{path}.type", "TheirConfig", f"{path}.auto_register", "their_model.TheirConfig")
    assert "plug/their_model.py does not register the model family 'TheirConfig'" in error_of("", *model)
    put("their_script.py", "import mindspore\n")
    message = error_of("", *model[:3], "their_script.TheirConfig")
    assert "plug/their_script.py:1: this plug-in imports mindspore" in message
    assert "PyTorch code: docs/plugins.md" in message


# --- The registry -------------------------------------------------------------------------------------------------


def test_importing_the_registry_imports_no_torch() -> None:
    code = "import sys; from runformer import plugins; assert not {'torch', 'numpy', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_program_may_register_without_a_folder() -> None:
    plugins.schedule("HalfLR")(lambda *_: abs)
    task = load(Path.cwd(), MINIMAL + USED)
    assert task.train is not None
    assert task.train.schedule.kind == "HalfLR"
