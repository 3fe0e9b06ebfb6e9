"""Builds the library with SwiftPM while the wheel is built, and names the wheel after the machine that it is for."""

import platform
import subprocess
import sys
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LibraryHook(BuildHookInterface):
    def initialize(self, version, build_data):
        package = Path(self.root) / "src" / "swift_flash_attention"
        script = Path(self.root).parent / "Scripts" / "build-library"
        subprocess.run([str(script), str(package), sys.executable, "-m", "ziglang"], check=True)
        # Python opens the library by its own name.
        for other in ("flash_attention.h", "libflash_attention.so.1"):
            (package / other).unlink()
        # The oldest glibc that the script links for.
        build_data["tag"] = f"py3-none-manylinux_2_28_{platform.machine()}"
        build_data["pure_python"] = False
        build_data["artifacts"].append("src/swift_flash_attention/libflash_attention.so")
