"""Builds the native kernels; everything else stands in pyproject.toml.

Each instruction set is a file compiled with its own flags; the library chooses at run time. Where
no compiler works, the package installs without the library and computes in plain torch.
"""

import functools
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, PlatformError

NATIVE = Path("src/tauten/runtime/native")
COMMON = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-pthread"]
# Each product is rounded before it is added, as the plain torch reference does.
COMMON += ["-ffp-contract=off", "-fno-math-errno"]
SANITIZE = []  # of `make sanitize`: a touch outside of memory or an overflow ends the process
if os.environ.get("TAUTEN_SANITIZE"):
    SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    COMMON += ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv", *SANITIZE]
COMMON += ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"]  # false alarms in GCC
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vnni"))]
X86 = {"isa_avx2.cpp": AVX2, "isa_avxvnni.cpp": AVX2, "isa_avx512.cpp": AVX512}
NEWER = {"isa_avxvnni.cpp": ["-mavxvnni"]}  # left out where the compiler doesn't know them


class BuildKernels(build_ext):
    """Compiles each source with the flags of its instruction set; failure is a notice."""

    def build_extension(self, ext: Extension) -> None:
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        target = self.get_ext_fullpath(ext.name)

        def compile_one(source: str) -> list[str]:
            flags = X86.get(Path(source).name, []) if x86 else []
            newer = NEWER.get(Path(source).name, []) if x86 else []
            compile = functools.partial(
                self.compiler.compile, [source], output_dir=self.build_temp, depends=ext.depends
            )
            try:
                return compile(extra_postargs=[*COMMON, *flags, *newer])
            except CompileError:
                if not newer:
                    raise
                return compile(extra_postargs=[*COMMON, *flags])

        try:
            with ThreadPoolExecutor() as pool:
                objects = [path for made in pool.map(compile_one, ext.sources) for path in made]
            self.compiler.link_shared_object(
                objects, target, extra_postargs=["-pthread", *SANITIZE], target_lang="c++"
            )
        except (CompileError, LinkError, PlatformError) as error:
            self.warn(f"{error}: tauten is installed without native kernels, in plain torch only")


kernels = Extension(
    "tauten.runtime.native._kernels",
    sources=[str(path) for path in sorted(NATIVE.glob("*.cpp"))],
    depends=[str(path) for path in sorted(NATIVE.glob("*.h"))],
    optional=True,  # copying a library that wasn't built is no failure either
)
setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels})
