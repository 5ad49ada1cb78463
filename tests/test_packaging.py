"""The wheel and the sdist install in fresh environments and work from any folder."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = """
import sys
import onnx_compress.passes
from onnx_compress.cli import main
names = sorted(kind.name for kind in onnx_compress.passes.PASSES)
assert names == ["cluster", "fp16", "int4", "int8", "prune", "sparsify", "svd"], names
assert "passes" not in sys.modules
print(onnx_compress.__version__)
"""


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return {"wheel": next(folder.glob("*.whl")), "sdist": next(folder.glob("*.tar.gz"))}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installs_and_runs_from_another_folder(archives: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """Dependencies come from the environment that runs the tests; the package itself only from the archive."""
    home = tmp_path / "env"
    venv.create(home, system_site_packages=False, with_pip=False)
    target = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(target), str(archives[kind])], check=True, cwd=tmp_path)
    own = Path(pytest.__file__).parents[1]
    (target / "dependencies.pth").write_text(f"{own}\n")
    # > -P and not the folder of the script: nothing of the checkout may be found
    run = subprocess.run(
        [str(home / "bin" / "python"), "-P", "-c", CHECK + "print(onnx_compress.__file__)"],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert str(target) in run.stdout


def test_top_level_passes_refuses_to_be_imported(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import passes"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 1
    assert "onnx_compress.passes" in run.stderr
    del tmp_path


def test_sdist_holds_the_passes(archives: dict[str, Path]) -> None:
    import tarfile

    with tarfile.open(archives["sdist"]) as archive:
        names = archive.getnames()
    assert any(name.endswith("/passes/prune/prune.py") for name in names)


def test_every_package_is_listed() -> None:
    """setuptools packs only what is listed, and says nothing of the rest."""
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    here = {path.parent.relative_to(ROOT) for path in (ROOT / "onnx_compress").glob("**/__init__.py")}
    there = {
        Path("onnx_compress") / path.parent.relative_to(ROOT)
        for path in (ROOT / "passes").glob("**/__init__.py")
    }
    assert sorted(listed) == sorted(".".join(path.parts) for path in here | there)
