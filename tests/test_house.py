"""The house: layers, style, and a README whose commands are what they say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import diffusion_jax

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_layers_import_only_from_below():
    result = run(sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")
    assert result.returncode == 0, result.stdout


def _names(tree: ast.Module, package: str) -> set[str]:
    """What a package's own lines bind, but for its modules."""
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ImportFrom) and node.module != package:
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_no_name_of_a_package_hides_a_module_of_it():
    """Else `import package.module` gives a function, or takes the function away."""
    hidden = []
    for init in (ROOT / "diffusion_jax").rglob("__init__.py"):
        package = ".".join(init.parent.relative_to(ROOT).parts)
        modules = {path.stem for path in init.parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
        names = _names(ast.parse(init.read_text()), package)
        hidden += [f"{package}.{name}" for name in sorted(modules & names)]
    assert not hidden


def test_style():
    for check in (["check", "--output-format=concise"], ["format", "--check"]):
        result = run(sys.executable, "-m", "ruff", *check, ".")
        assert result.returncode == 0, result.stdout


def test_the_base_install_needs_no_other_framework():
    """No TensorFlow, PyTorch or transformers, neither required nor needed."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    banned = ("tensorflow", "torch", "transformers")
    assert not [name for name in required if re.split(r"[<>=\[ ]", name)[0] in banned]
    # Where they are installed, other packages may import them: here nobody can.
    code = (
        "import sys\n"
        "class Nowhere:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] in {banned!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Nowhere())\n"
        "import diffusion_jax.train, diffusion_jax.sample, diffusion_jax.evaluate, diffusion_jax.reference_stats\n"
        "import diffusion_jax.convert, diffusion_jax.edit, diffusion_jax.post_hoc_ema"
    )
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


def test_the_readme_begins_with_the_two_commands():
    """A stranger's first command ends in pictures, the second in tests; CI runs the second word for word."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.S | re.M)
    (first_kind, first), (second_kind, second) = blocks[:2]
    assert first_kind == second_kind == "bash"
    assert "experiments.mnist_cascade" in first and "[demo]" in first
    assert "pytest" in second and "[test]" in second


def test_every_page_that_is_linked_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_versions_agree():
    assert f'__version__ = "{diffusion_jax.__version__}"' in (ROOT / "diffusion_jax" / "__init__.py").read_text()
