"""Libraries that stand in for CUDA's, so that the package onnxruntime-gpu loads its CUDA provider where there is none.

Memory is the host's and copies are real and counted (``stand_in_copied(1)`` of libcudart is bytes to the device, 2 from it); kernels do
nothing. It is enough to see which kernels the provider registers, and where
ONNX Runtime itself places each node of a graph. They are made with gcc of the names that the provider asks for.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_OWNERS = {"createInfer": "libnvinfer.so.10", "getInfer": "libnvinfer.so.10", "getPlugin": "libnvinfer.so.10",
           "createNv": "libnvonnxparser.so.10", "cuTensor": "libcuda.so.1"}  # fmt: skip
_LIBRARIES = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcudnn.so.9",
              "libcuda.so.1", "libnvinfer.so.10", "libnvonnxparser.so.10")  # fmt: skip
# What machine/gpus.py asks the driver.
_DRIVER = ("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDriverGetVersion")
# Every other function returns 0, CUDA's word for success.
_SOURCE = """
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDeviceProperties(char *p, int d) { memset(p, 0, 1008); strcpy(p, "stand-in"); return 0; }
int cudaDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : 0; return 0; }
int cudaGetDevice(int *n) { *n = 0; return 0; }
int cudaMemGetInfo(size_t *a, size_t *b) { *a = *b = (size_t)80 << 30; return 0; }
int cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
int cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
int cudaMalloc(void **p, size_t n) { *p = aligned_alloc(256, (n + 255) / 256 * 256); return *p ? 0 : 2; }
int cudaMallocHost(void **p, size_t n) { *p = malloc(n); return 0; }
int cudaHostAlloc(void **p, size_t n, unsigned f) { *p = malloc(n); return 0; }
int cudaFree(void *p) { free(p); return 0; }
int cudaFreeHost(void *p) { free(p); return 0; }
int cudaMemcpy(void *d, const void *s, size_t n, int k) { memcpy(d, s, n); copied[k] += n; return 0; }
int cudaMemcpyAsync(void *d, const void *s, size_t n, int k, void *t) { return cudaMemcpy(d, s, n, k); }
long stand_in_copied(int k) { return copied[k]; }
int cudaMemset(void *d, int v, size_t n) { memset(d, v, n); return 0; }
int cudaMemsetAsync(void *d, int v, size_t n, void *t) { memset(d, v, n); return 0; }
int cudaStreamCreate(void **s) { *s = malloc(8); return 0; }
int cudaStreamCreateWithFlags(void **s, unsigned f) { *s = malloc(8); return 0; }
int cudaEventCreate(void **s) { *s = malloc(8); return 0; }
int cudaEventCreateWithFlags(void **s, unsigned f) { *s = malloc(8); return 0; }
int cublasCreate_v2(void **s) { *s = malloc(8); return 0; }
int cublasLtCreate(void **s) { *s = malloc(8); return 0; }
void *__cudaRegisterFatBinary(void *f) { return malloc(8); }
int cuInit(unsigned f) { return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetName(char *p, int n, int d) { strcpy(p, "stand-in"); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : 0; return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
char *cudaGetErrorString(int e) { return "stand-in"; }
char *cudaGetErrorName(int e) { return "stand-in"; }
char *cublasGetStatusString(int e) { return "stand-in"; }
char *cublasGetStatusName(int e) { return "stand-in"; }
"""


def make_libraries(capi: Path, folder: Path) -> None:
    """Write into ``folder``, for LD_LIBRARY_PATH, what the providers in ``capi`` (onnxruntime's folder of libraries) are linked with."""
    wanted: dict[str, set[str]] = {name: set() for name in _LIBRARIES}
    wanted["libcuda.so.1"] |= set(_DRIVER)
    wanted["libcudart.so.13"] |= {"cudaMemcpy", "stand_in_copied"}
    for provider in ("cuda", "tensorrt"):
        command = ["nm", "-D", "--undefined-only", str(capi / f"libonnxruntime_providers_{provider}.so")]
        for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
            name, _, library = line.split()[-1].partition("@")
            owner = library or next((owner for start, owner in _OWNERS.items() if name.startswith(start)), "")
            if owner in wanted:
                wanted[owner].add(name)
    real = {match[1]: line for line in _SOURCE.splitlines() if (match := re.search(r"(\w+)\(", line))}
    folder.mkdir(parents=True, exist_ok=True)
    for library, names in wanted.items():
        functions = [real.get(name, f"long {name}() {{ return 0; }}") for name in sorted(names)]
        source, symbols = folder / f"{library}.c", folder / f"{library}.map"
        source.write_text(
            "#include <stdlib.h>\n#include <string.h>\nstatic long copied[5];\n" + "\n".join(functions) + "\n"
        )
        symbols.write_text(f"{library} {{ global: *; }};\n")
        command = ["gcc", "-w", "-shared", "-fPIC", "-o", str(folder / library), str(source)]
        subprocess.run([*command, f"-Wl,-soname,{library}", f"-Wl,--version-script={symbols}"], check=True)
