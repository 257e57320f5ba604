"""What can be known of the CUDA kernels without a GPU: registers, shared memory, instructions.

The compilations take minutes and are long; the rules of the sources are quick.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sass
from budgets import beyond

# Bytes of shared memory: what a block may have unasked, and what blocks share of a multiprocessor
# of sm_86 and sm_89, each taking 1 KiB more than it asks for.
MOST_OF_A_BLOCK = 48 * 1024
OF_A_MULTIPROCESSOR, OF_EVERY_BLOCK = 100 * 1024, 1024


def compiled(test: Callable) -> Callable:
    """Marks a test of what nvcc makes of the kernels."""
    for mark in (pytest.mark.long, pytest.mark.needs("nvcc", "nvdisasm", "compiler", "sources")):
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sass")


@pytest.fixture(scope="module")
def kernels(folder) -> list[sass.Kernel]:
    """All of them, for two architectures; the fused one of float32 and 11 for all."""
    return sass.compile_all(sass.units(), folder)


@pytest.fixture(scope="module")
def sizes(folder) -> dict[str, int]:
    return sass.sizes(folder)


@pytest.fixture(scope="module")
def measured(kernels, folder) -> dict[str, dict[str, float]]:
    return sass.measured(kernels, folder)


def each(kernels: list[sass.Kernel], wrong: Callable[[sass.Kernel], object]) -> dict[str, object]:
    """What is wrong, by kernel."""
    found = {f"{k.name}, sm_{k.architecture}": wrong(k) for k in kernels}
    return {name: what for name, what in found.items() if what}


# ---- registers and shared memory ----------------------------------------------------------------


@compiled
def test_every_kernel_is_compiled(kernels):
    sources = "".join(path.read_text() for path in sorted(sass.KERNELS.glob("*.cu*")))
    code = without_comments(sources)
    declared = set(re.findall(r"__global__[^;{]*?(\w+)\(const __grid_constant__ ", code))
    declared |= set(re.findall(r"__global__[^;{]*?(\w+)\((?:const )?[A-Z]\w+(?:<A>)? p\)", code))
    assert len(re.findall(r"__global__", code)) == len(declared)
    assert declared == {kernel.name.split("<")[0] for kernel in kernels}
    names = [(kernel.name, kernel.architecture) for kernel in kernels]
    assert len(set(names)) == len(names)
    variants = len(sass.WINDOWS) * (4 * len(sass.ELEMENTS) + 1)
    more = 9 + 9  # for an 8-bit y, and for masks
    for architecture in sass.ARCHITECTURES:
        fused = [n for n, a in names if a == architecture and n.startswith("sweep<")]
        assert len(fused) == more + (variants if architecture in sass.EVERY_KERNEL_FOR else 4)


@compiled
def test_nothing_is_spilled(kernels):
    assert (
        each(kernels, lambda k: (k.spills or k.stack) and f"{k.spills} bytes, {k.stack} deep") == {}
    )


@compiled
def test_figures_are_within_their_budgets(measured):
    assert {
        section: over for section in measured if (over := beyond(section, measured[section]))
    } == {}
    # Every row is seen by eleven windows in two passes: far fewer words would be a miscount.
    assert min(measured["words of shared memory of a pixel"].values()) >= 20


def is_masked(kernel: sass.Kernel) -> bool:
    return kernel.name.startswith("sweep<") and sass.variant(kernel.name)[-1] == "kMasked"


def threads_of(kernel: sass.Kernel, sizes: dict[str, int]) -> int:
    """The most that the kernel is launched with."""
    if kernel.name.startswith("sweep"):
        return sizes["masked" if is_masked(kernel) else "sweep"]
    name = kernel.name.split("<")[0]
    return sizes[next(h for h, of in sass.OTHERS.items() if any(n.startswith(name) for n in of))]


@compiled
def test_a_block_of_the_most_threads_fits(kernels, sizes):
    assert each(kernels, lambda k: k.registers * threads_of(k, sizes) > 65536 and k.registers) == {}


@compiled
def test_as_many_threads_are_resident_as_the_plan_takes_for_granted(kernels, sizes):
    """In blocks of 128, as far as registers go."""

    def missing(kernel: sass.Kernel) -> object:
        promised = sizes["resident 2" if "kGradientBoth" in kernel.name else "resident 1"]
        promised = sizes["resident masked"] if is_masked(kernel) else promised
        got = sass.resident_threads(kernel, 128)
        return got < promised and f"{kernel.registers} registers: {got} of {promised} threads"

    assert each([k for k in kernels if k.name.startswith("sweep")], missing) == {}


@compiled
def test_shared_memory_is_dynamic(kernels):
    assert each(kernels, lambda k: k.static_shared) == {}


@pytest.mark.needs("compiler", "sources")
def test_shared_memory_fits(sizes):
    for window in sass.WINDOWS:
        for which in ("forward", "gradient"):
            assert sizes[f"{which} {window} 192"] <= MOST_OF_A_BLOCK
            two = 2 * (sizes[f"{which} {window} 192"] + OF_EVERY_BLOCK)
            assert two <= OF_A_MULTIPROCESSOR
            three = 3 * (sizes[f"{which} {window} 128"] + OF_EVERY_BLOCK)
            assert three <= OF_A_MULTIPROCESSOR
    assert sizes["masked 11"] <= MOST_OF_A_BLOCK
    assert 2 * (sizes["masked 11"] + OF_EVERY_BLOCK) <= OF_A_MULTIPROCESSOR


# ---- whether the above would find something ------------------------------------------------------

PLANTED = """
__global__ void local(float* out, int n) {
  float values[100];
  for (int i = 0; i < n; ++i) values[i] = out[i];
  out[n] = values[out[n] > 1 ? 0 : n - 1];
}

__global__ void __launch_bounds__(1024, 2) spills(float* out) {
  float values[100];
#pragma unroll
  for (int i = 0; i < 100; ++i) values[i] = out[1024 * i + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 100; ++i) out[1024 * i + threadIdx.x] = values[99 - i] * values[i];
}
"""


@pytest.fixture(scope="module")
def planted(folder) -> dict[str, sass.Kernel]:
    kernels = sass.compile_unit(sass.Unit("planted", PLANTED, 80), folder)
    return {kernel.name: kernel for kernel in kernels}


@compiled
def test_spills_and_local_memory_are_found(planted):
    assert planted["spills"].spills > 0
    assert planted["spills"].registers <= 32
    assert planted["local"].stack >= 400 and planted["local"].spills == 0
    assert planted["spills"].barriers == 1 and planted["local"].barriers == 0


# A loop of two phases: a vector is written; it is read, once or twice, and computed with.
LOOP = """
.text.loop:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   STS.128 [R0], R4 ;
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0030*/              @!P3 BRA `(.L_x_2) ;
        /*0040*/                   BRXU UR4 -0x50 (*"BRANCH_TARGETS .L_x_3,.L_x_4"*);
.L_x_4:
        /*0050*/               @P0 CALL.REL.NOINC `(.L_x_2) ;
.L_x_3:
        /*0060*/                   LDS.64 R4, [R0+0x10] ;
        /*0070*/                   FFMA R4, R4, R5, R6 ;
        /*0080*/                   FADD R4, R4, R5 ;
        /*0090*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
        /*00a0*/                   LDG.E.128.CONSTANT R8, [R2.64] ;
        /*00b0*/               @P1 BRA `(.L_x_3) ;
        /*00c0*/                   MUFU.RCP R4, R4 ;
.L_x_2:
        /*00d0*/                   HFMA2.MMA R9, -RZ, RZ, 0, 0 ;
        /*00e0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00f0*/               @P2 BRA `(.L_x_1) ;
        /*0100*/                   STG.E [R2.64], R4 ;
        /*0110*/                   EXIT ;
.L_x_5:
        /*0120*/                   BRA `(.L_x_5);
"""


def test_paths_of_a_loop_are_counted():
    loop = sass.phases_of(sass.parse(LOOP), 32, 16)
    assert [set(phase) for phase in loop.phases] == [
        {sass.Trace(0, 1, 0, 0, 0)},
        {sass.Trace(0, 0, 0, 0, 0), sass.Trace(1, 0, 1, 1, 0), sass.Trace(2, 0, 1, 1, 0)},
    ]
    (written,) = loop.phases[0].values()
    # The way back from the second barrier belongs to the first phase.
    assert written.most == sass.Counts(writes=1, words=4, barriers=1, instructions=3)
    for turns in (1, 2):
        for load in (0, 1):  # that nothing is loaded may be what the emulator says
            most, fewest = loop.paths(1, sass.Trace(turns, 0, 1, load, 0))
            assert most.fp == fewest.fp == 2 * turns + 1
            assert (most.words, most.load_bytes) == (2 * turns, 16 * turns)
            # The jump around; those over the table and, for most, not over it; and the rest.
            assert fewest.instructions == 2 + 6 * turns + 3
            assert most.barriers == 1
    with pytest.raises(LookupError, match="no path of the machine code"):
        loop.paths(1, sass.Trace(1, 0, 0, 1, 0))


# ---- the sources --------------------------------------------------------------------------------


def without_comments(code: str) -> str:
    """The same lines, with comments and the contents of strings left out."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)

    def replacement(match: re.Match) -> str:
        text = match[0]
        quote = '""' if text.startswith('"') and not in_include(match) else text
        return quote if text.startswith('"') else "\n" * text.count("\n")

    def in_include(match: re.Match) -> bool:
        return code[code.rfind("\n", 0, match.start()) + 1 :].lstrip().startswith("#include")

    return token.sub(replacement, code)


def lines_with(pattern: str, code: str) -> list[str]:
    return [line.strip() for line in without_comments(code).split("\n") if re.search(pattern, line)]


def waits_or_allocates(code: str) -> list[str]:
    """What would keep a training step from being captured in a CUDA graph."""
    return lines_with(
        r"\bcuda(Malloc|Free|Memcpy|Memset|HostAlloc)\w*\s*\("
        r"|\bcuda(Device|Stream|Event|Thread)Synchronize\b|\bcudaEventQuery\b"
        r"|\.item\s*(<\w+>)?\s*\(|\btorch::stable::accelerator::synchronize|\bnew\s",
        code,
    )


def adds_in_any_order(code: str) -> list[str]:
    """Atomics on whatever type: no kernel needs one, and sums of floats would vary."""
    return lines_with(r"\batomic\w*\s*\(|\bred\.global|\b(cuda|std)::atomic", code)


def launches(code: str) -> list[str]:
    return lines_with(r"<<<|\bcuda(Launch\w*|GraphLaunch)\b|\bcuLaunch\w*", code)


def default_streams(code: str) -> list[str]:
    """Launches without a stream of their own, and streams that torch did not choose."""
    found = lines_with(r"\bcudaStream(Legacy|PerThread|Default|Create\w*)\b|cudaStream_t\(\)", code)
    found += lines_with(r"\bstream\s*(=|\{)\s*(nullptr|0|NULL|\{)", code)
    for arguments in re.findall(r"<<<(.*?)(?:>>>|;)", without_comments(code), re.DOTALL):
        # Commas between brackets belong to an argument.
        while (flat := re.sub(r"<[^<>]*>|\([^()]*\)", "", arguments)) != arguments:
            arguments = flat
        parts = [part.strip() for part in arguments.split(",")]
        if len(parts) != 4 or parts[3] != "stream":
            found.append(f"<<<{', '.join(parts)}>>>")
    return found


def _pointers(code: str, array: str = "") -> set[str]:
    """The names that are declared as pointers, or as arrays of them."""
    declared = rf"[\w>]\* *(?:const +)?(\w+)(?= *{array or '[;,=)({]'})"
    return set(re.findall(declared, without_comments(code)))


def raw_accesses(code: str, others: str = "") -> list[str]:
    """Device code that uses memory by itself, not through device.cuh, so that the emulator neither
    checks nor counts it. ``others``: code whose members it uses, too."""
    own, arrays = _pointers(code), _pointers(code + others, r"\[")
    names, members, arrays = (
        "|".join(some) or "(?!)" for some in (own, own | _pointers(others), arrays)
    )
    return lines_with(
        rf"(?<![.\w])({names})\[|\.({members})\[|\b({arrays})\[[^]]*\]\["  # an element
        rf"|(^|[\s([!&{{,=-])\*[\w(]|->|_cast<[^;]*\*>\([^;]*\)\["  # what is pointed to
        rf"|\bmem(cpy|set|move)\([^;]*(?<!&)\b({members})\b|\b__ldg\b|\b__shared__\b|\bemulator::",
        code,
    )


def sources() -> dict[str, str]:
    paths = [
        path for path in sorted(sass.KERNELS.iterdir()) if path.suffix in (".cu", ".cuh", ".h")
    ]
    assert {"launcher.h", "cuda.cu", "sweep.cuh"} <= {path.name for path in paths}
    return {path.name: path.read_text() for path in paths}


RULES = [waits_or_allocates, adds_in_any_order, default_streams]


@pytest.mark.needs("sources")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_sources(rule):
    found = {name: rule(code) for name, code in sources().items()}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.needs("sources")
def test_device_code_uses_memory_through_the_accessors():
    device = {
        name: code
        for name, code in sources().items()
        if "SSIMFAST_DEVICE" in code and name != "device.cuh"
    }
    assert len(device) == 8
    shared = (sass.CSRC / "problem.h").read_text() + device["image.cuh"]
    found = {name: raw_accesses(code, shared) for name, code in device.items()}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.needs("sources")
def test_every_launch_goes_through_the_launcher():
    """Whose constructor takes torch's current stream, of the tensor's device."""
    found = {name: launches(code) for name, code in sources().items()}
    assert {name: len(lines) for name, lines in found.items() if lines} == {"launcher.h": 1}
    launcher = sources()["launcher.h"]
    launcher = launcher[launcher.index("class Launcher {") :]
    launcher = launcher[: launcher.index("\n};")]
    assert launches(launcher) == found["launcher.h"]
    assert "aoti_torch_get_current_cuda_stream(device, &current)" in launcher
    assert "stream = static_cast<cudaStream_t>(current);" in launcher
    assert len(re.findall(r"\bstream = ", launcher)) == 1
    assert re.search(
        r"STD_CUDA_CHECK\(cudaLaunchKernel\([^;]*, shared_bytes, stream\)\);", launcher
    )


PLANTED_IN_SOURCES = {
    waits_or_allocates: (
        "cudaMalloc(&p, 4);",
        "STD_CUDA_CHECK(cudaMemcpyAsync(a, b, 4, kind, stream));",
        "cudaDeviceSynchronize();",
        "cudaStreamSynchronize(stream);",
        "cudaEventSynchronize(event);",
        "const float v = t.item<float>();",
        "t.item ()",
    ),
    adds_in_any_order: ("atomicAdd(sum, v);", "atomicAdd_block (sum, v);"),
    launches: ("f<float><<<1, 32>>>();", "cudaLaunchKernelEx(&config, f);"),
    default_streams: (
        "f<<<1, 32>>>();",
        "f<<<grid(a, b), 32, 0, 0>>>(x);",
        "f<<<g(a, h(b, c)), 32, 0>>>(x);",
        "f<<<static_cast<unsigned>(blocks),\n threads, bytes, other>>>(x);",
        "f<<<1, 32, 0, stream> > >(x);",  # by clang-format
        "g(cudaStreamLegacy);",
        "cudaStream_t stream = nullptr;",
    ),
    raw_accesses: (
        "void f(const float* from) { g(from[2]); }",
        "struct P {\nA* out;\n};\np.out[i] = a;",
        "A* pooled[2];\njob.pooled[0][i] = a;",
        "const float v = *from;",
        "*(to + i) = v;",
        "g(to->s0);",
        "v = reinterpret_cast<const uint4*>(from + 1)[0];",
        "const T* from = p;\nmemcpy(&v, from, sizeof v);",
        "v = __ldg(from);",
        "__shared__ float words[32];",
    ),
}
RIGHT_IN_SOURCES = {
    waits_or_allocates: (
        "items(); x.items; cudaDeviceGetAttribute(&n, which, device);",
        'check(ok, "cudaMalloc() failed");',
    ),
    default_streams: (
        "f<<<unsigned(g(a, b)), threads, bytes, stream>>>(x, y);",
        "stream = static_cast<cudaStream_t>(current);",
    ),
    raw_accesses: (
        "A* const to = p.to + 2 * i;\nwrite(to + 1, a * b * (c) + read(from));",
        "A* pooled[2];\nA values[4];\nwrite(job.pooled[0] + 1, values[2]);",
        "T values[4];\nmemcpy(&word, values, sizeof word);",
    ),
}


def test_rules_find_what_is_planted():
    for rule, code in PLANTED_IN_SOURCES.items():
        for planted in code:
            assert rule(planted), planted
            assert rule(f"int before;\n{planted}\nint after;"), planted
            assert not rule("// " + planted.replace("\n", "\n// ")), planted


def test_rules_let_pass_what_is_right():
    for rule, code in RIGHT_IN_SOURCES.items():
        assert not [right for right in code if rule(right)]
