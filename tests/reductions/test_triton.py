"""Run ``by_triton`` by Triton's interpreter and on a GPU, in processes of their own.

Triton reads the environment when it is imported, which compilers in this process may have done.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integrations.training import needs

ROOT = Path(__file__).parents[2]
POINTERS = {
    "fp64": "shift in_ones in_radius by_position by_context units found tallies about offset "
    "square around added weights differences open_sum edges context_square context_mean e total "
    "squares values least greatest",
    "i64": "contexts order positions count counts slots ends kept open_count kept_count number",
    "i1": "real first keep fresh begun where shifted",
    "fp32": "raw kept_sum",
}
LOCAL = {  # the same names of other things
    "_count": {"by_position": "*i64", "by_context": "*i64"},
    "_follow": {"by_position": "i32", "by_context": "i32"},
}


def run_file(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("by_triton.py"))],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert not done.returncode, f"{done.stdout}\n{done.stderr}"


def test_by_the_interpreter() -> None:
    needs("triton")
    run_file(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_the_gpu() -> None:
    needs("triton")
    run_file(TRITON_INTERPRET="0")


def compile_for_gpu(name: str, capability: int, state: str, **constants: int) -> None:
    """Compile a kernel down to machine code, which takes no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from geomhooks.gpu import adds
    from geomhooks.reductions import kernels

    kernel = getattr(kernels if hasattr(kernels, name) else adds, name)
    types = {n: f"*{kind}" for kind, names in POINTERS.items() for n in names.split()}
    types |= {"h": f"*{state}", "y": f"*{state}"} | LOCAL.get(name, {})
    chosen = {n: constants.get(n, True) for n in kernel.arg_names if n.isupper()}
    signature = {n: "constexpr" if n in chosen else types.get(n, "i32") for n in kernel.arg_names}
    compiled = triton.compile(
        ASTSource(kernel, signature, chosen),
        target=GPUTarget("cuda", capability, 32),
        options={"enable_fp_fusion": True, "num_warps": 8},
    )
    assert compiled.asm["cubin"]


@pytest.mark.parametrize(
    ("name", "state", "constants"),
    [
        ("scan", "bf16", {"CONTEXTS": 1, "STRIPES": 8, "C": 8, "N": 3, "E": 256, "D": 1024}),
        ("scan", "fp16", {"CONTEXTS": 2, "STRIPES": 8, "C": 2, "N": 4, "E": 1024, "D": 4096,
                          "KNOWN": 0, "ALONE": 0, "POSITIONS": 0}),
        ("scan", "fp32", {"CONTEXTS": 0, "STRIPES": 8, "C": 8, "N": 2, "E": 256, "D": 512,
                          "KNOWN": 0, "POSITIONS": 0, "UNITS": 0, "STATE": 0}),
        ("add_by_position", "bf16", {"C": 32, "D": 256}),
        ("finish_tokens", "bf16", {"C": 128, "D": 1024}),
        ("finish_tokens", "bf16", {"C": 128, "D": 1024, "KNOWN": 0, "UNITS": 0, "STATE": 0}),
        ("finish_directions", "bf16", {"STRIPES": 8, "D": 8192}),
        ("_count", "bf16", {"C": 256}),
        ("_count", "bf16", {"C": 256, "COLUMNS": 0, "BY_ROW": 0}),
        ("_follow", "bf16", {"C": 64, "D": 256}),
        ("_follow", "bf16", {"C": 64, "D": 256, "INTERVAL": 0}),
        ("_follow", "bf16", {"C": 64, "D": 256, "FOLD": 0}),
        ("_add_directions", "bf16", {"GROUPS": 2, "D": 256}),
        ("_settle", "bf16", {"C": 1024}),
        ("_add_moments", "bf16", {"C": 64}),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)  # fmt: skip
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile(
    name: str, state: str, constants: dict[str, int], capability: int
) -> None:
    """The interpreter forgives what the compiler does not."""
    needs("triton")
    compile_for_gpu(name, capability, state, **constants)
