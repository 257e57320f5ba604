"""What can be known of the CUDA kernels without a GPU: registers, shared memory, instructions.

Where nvcc or nvdisasm is missing, only the sources are looked at.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sass

# ---- budgets: measured, and a little more --------------------------------------------------------

# Registers of a thread, whatever the architecture; "*" stands for any element type that has no line
# of its own. ptxas hands them out by eight.
REGISTERS = {
    "sweep<*, 7, kForward, false>": 168,
    "sweep<*, 7, kGradientX, false>": 216,
    "sweep<*, 7, kGradientX, true>": 192,
    "sweep<*, 7, kGradientBoth, false>": 232,
    "sweep<*, 9, kForward, false>": 176,
    "sweep<*, 9, kGradientX, false>": 232,
    "sweep<*, 9, kGradientX, true>": 208,
    "sweep<*, 9, kGradientBoth, false>": 248,
    "sweep<*, 11, kForward, false>": 184,
    "sweep<*, 11, kGradientX, false>": 248,
    "sweep<*, 11, kGradientX, true>": 224,
    "sweep<*, 11, kGradientBoth, false>": 255,
    "row_moments<*>": 56,
    "statistics<float>": 64,
    "statistics<double>": 88,
    "column_adjoint<*>": 64,
    "gradients<*>": 56,
    "pool_pair<*>": 40,
    "fold_records": 88,
    "finish_terms<*>": 72,
    "combine_planes<*>": 88,
    "combine_groups<*>": 72,
    "scale_runs<*>": 48,
    "scale_elements<*>": 48,
    "collapse_pyramid<float>": 88,
    "collapse_pyramid<double>": 168,
}

# Of sweep<float, 11, kGradientX, true>, for one pixel of one channel on an H100, machine code of
# sm_80 and sm_90: FP instructions (FFMA, FADD, FMUL, MUFU), words of shared memory that are
# read or written, barriers of an iteration.
FP_BUDGETS = dict(zip(sass.SHAPES, (219.0, 230.0, 231.0, 225.0, 240.0), strict=True))
WORDS_BUDGETS = dict.fromkeys(sass.SHAPES, 42.0)
BARRIERS = {"kForward": 2, "kGradientX": 3, "kGradientBoth": 3}

# Bytes of shared memory: what a block may have where least is allowed, and what blocks share of a
# multiprocessor of sm_86 and sm_89, each taking 1 KiB more than it asks for.
MOST_OF_A_BLOCK = 64 * 1024  # sm_75
OF_A_MULTIPROCESSOR, OF_EVERY_BLOCK = 100 * 1024, 1024

needs_sources = pytest.mark.skipif(
    not sass.KERNELS.is_dir(), reason="the sources of the kernels are not beside the tests"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    if reason := sass.why_not():
        pytest.skip(reason)
    return tmp_path_factory.mktemp("sass")


@pytest.fixture(scope="module")
def kernels(folder) -> list[sass.Kernel]:
    """All of them, for two architectures; the fused one of float32 and 11 for all."""
    return sass.compile_all(sass.units(), folder)


@pytest.fixture(scope="module")
def sizes(folder) -> dict[str, int]:
    return sass.sizes(folder)


@pytest.fixture(scope="module")
def loops(kernels) -> dict[tuple[str, int], sass.Loop]:
    """The main loops of the fused kernel for float32 and 11, by variant and architecture."""
    return {
        (k.name, k.architecture): sass.loop_of(k)
        for k in kernels
        if k.name.startswith("sweep<float, 11,")
    }


def each(kernels: list[sass.Kernel], wrong: Callable[[sass.Kernel], object]) -> dict[str, object]:
    """What is wrong, by kernel."""
    found = {f"{k.name}, sm_{k.architecture}": wrong(k) for k in kernels}
    return {name: what for name, what in found.items() if what}


def budget_of(name: str) -> str:
    """The line of REGISTERS for a kernel."""
    if name in REGISTERS:
        return name
    return re.sub(r"<(float|double|__half|__nv_bfloat16)", "<*", name)


# ---- registers and shared memory ----------------------------------------------------------------


def test_every_kernel_is_compiled(kernels):
    sources = "".join(path.read_text() for path in sorted(sass.KERNELS.glob("*.cu*")))
    code = without_comments(sources)
    declared = set(re.findall(r"__global__[^;{]*?(\w+)\(const __grid_constant__ ", code))
    declared |= set(re.findall(r"__global__[^;{]*?(\w+)\((?:const )?[A-Z]\w+(?:<A>)? p\)", code))
    assert len(re.findall(r"__global__", code)) == len(declared)
    assert declared == {kernel.name.split("<")[0] for kernel in kernels}
    names = [(kernel.name, kernel.architecture) for kernel in kernels]
    assert len(set(names)) == len(names)
    variants = 4 * len(sass.WINDOWS) * len(sass.ELEMENTS)
    for architecture in sass.ARCHITECTURES:
        fused = [n for n, a in names if a == architecture and n.startswith("sweep<")]
        assert len(fused) == (variants if architecture in sass.EVERY_KERNEL_FOR else 4)


def test_nothing_is_spilled(kernels):
    assert (
        each(kernels, lambda k: (k.spills or k.stack) and f"{k.spills} bytes, {k.stack} deep") == {}
    )


def test_registers_are_within_their_budgets(kernels):
    assert {budget_of(k.name) for k in kernels} == set(REGISTERS), "REGISTERS has other kernels"
    assert each(kernels, lambda k: k.registers > REGISTERS[budget_of(k.name)] and k.registers) == {}


def threads_of(kernel: sass.Kernel, sizes: dict[str, int]) -> int:
    """The most that the kernel is launched with."""
    if kernel.name.startswith("sweep<"):
        return sizes["sweep"]
    name = kernel.name.split("<")[0]
    return sizes[next(h for h, of in sass.OTHERS.items() if any(n.startswith(name) for n in of))]


def test_a_block_of_the_most_threads_fits(kernels, sizes):
    assert each(kernels, lambda k: k.registers * threads_of(k, sizes) > 65536 and k.registers) == {}


def test_as_many_threads_are_resident_as_the_plan_takes_for_granted(kernels, sizes):
    """In blocks of 128, as far as registers go."""

    def missing(kernel: sass.Kernel) -> object:
        promised = sizes["resident"]
        got = sass.resident_threads(kernel, 128)
        return got < promised and f"{kernel.registers} registers: {got} of {promised} threads"

    assert each([k for k in kernels if k.name.startswith("sweep<")], missing) == {}


def test_shared_memory_is_dynamic(kernels):
    assert each(kernels, lambda k: k.static_shared) == {}


@pytest.mark.parametrize("window", sass.WINDOWS)
@pytest.mark.parametrize("which", ["forward", "gradient"])
def test_shared_memory_fits(sizes, which, window):
    assert sizes[f"{which} {window} 256"] <= MOST_OF_A_BLOCK
    three = 3 * (sizes[f"{which} {window} 128"] + OF_EVERY_BLOCK)
    assert three <= OF_A_MULTIPROCESSOR


# ---- instructions -------------------------------------------------------------------------------

PLAIN = "sweep<float, 11, kGradientX, true>"


def cost(loops, folder: Path, shape: sass.Shape, architecture: int) -> sass.Cost:
    march = sass.march_of(PLAIN, folder)
    return sass.cost_of(loops[PLAIN, architecture], march, shape, sass.DEVICES["H100"])


@pytest.mark.parametrize("architecture", sass.EVERY_KERNEL_FOR)
@pytest.mark.parametrize("shape", FP_BUDGETS, ids=str)
def test_floating_point_instructions(loops, folder, shape, architecture):
    got = cost(loops, folder, shape, architecture)
    assert got.fp <= FP_BUDGETS[shape], got.plan


@pytest.mark.parametrize("architecture", sass.EVERY_KERNEL_FOR)
@pytest.mark.parametrize("shape", WORDS_BUDGETS, ids=str)
def test_words_of_shared_memory(loops, folder, shape, architecture):
    got = cost(loops, folder, shape, architecture)
    # Every row is seen by eleven windows in two passes: far fewer words would be a miscount.
    assert 20 <= got.words <= WORDS_BUDGETS[shape], got.plan


def test_barriers_of_an_iteration(loops):
    for (name, architecture), loop in loops.items():
        assert len(loop.phases) == BARRIERS[sass.variant(name)[2]], (name, architecture)


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
    return lines_with(r"<<<|\bcuda(Launch\w*|GraphLaunch)\b|\bhipLaunch\w*|\bcuLaunch\w*", code)


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


# HIP has shuffles, barriers, __ldg, half types, and all that is named cuda and hipify renames.
CUDA_ONLY = (
    r"\basm\b|\b__asm\w*|\bcooperative_groups\b|\bcuda::(?!std\b)(?!Four\b)(barrier|pipeline|ptx|"
    r"memcpy_async)|\b__pipeline_\w+|\b__cvta_\w+|\b__reduce_\w+_sync\b|\b__match_\w+_sync\b"
    r"|\b__nanosleep\b|\b__ld(cg|ca|cs|lu|cv)\b|\b__st(cg|wb|cs|wt)\b|\b__CUDA_ARCH__\b"
    r"|\b__maxnreg__\b|\b__cluster_dims__\b|\bnvcuda\b|\b__vi\w+_[su]\d|\b__tanhf?\b"
)


def unguarded(code: str) -> list[str]:
    """What only CUDA has, where no condition on __HIP_PLATFORM_AMD__ keeps it from AMD.

    Of a chain of #if, #elif and #else, the branches that AMD does not compile are those whose
    condition asks for its absence, and those after one that asks for its presence.
    """
    found: list[str] = []
    levels: list[
        list[bool]
    ] = []  # [whether a branch before this one was AMD's, whether it is safe]
    for line in without_comments(code).replace("\\\n", " ").split("\n"):
        directive = re.match(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b(.*)", line)
        if directive is None:
            if re.search(CUDA_ONLY, line) and not any(safe for _, safe in levels):
                found.append(line.strip())
            continue
        word, condition = directive.groups()
        if word == "endif":
            levels.pop()
            continue
        if word in ("if", "ifdef", "ifndef"):
            levels.append([False, False])
        amd = "__HIP_PLATFORM_AMD__" in condition
        absent = amd and (word == "ifndef" or re.search(r"!\s*defined\s*\(?\s*__HIP", condition))
        before, _ = levels[-1]
        levels[-1] = [before or bool(amd and not absent), bool(before or absent)]
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
    assert {"host.h", "ssim_cuda.cu", "sweep.cuh"} <= {path.name for path in paths}
    return {path.name: path.read_text() for path in paths}


RULES = [waits_or_allocates, adds_in_any_order, default_streams, unguarded]


@needs_sources
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_sources(rule):
    found = {name: rule(code) for name, code in sources().items()}
    assert not {name: lines for name, lines in found.items() if lines}


@needs_sources
def test_device_code_uses_memory_through_the_accessors():
    device = {
        name: code
        for name, code in sources().items()
        if "SSIMFAST_DEVICE" in code and name != "device.cuh"
    }
    assert len(device) == 6
    shared = device["job.cuh"] + device["image.cuh"]
    found = {name: raw_accesses(code, shared) for name, code in device.items()}
    assert not {name: lines for name, lines in found.items() if lines}


@needs_sources
def test_every_launch_goes_through_the_launcher():
    """Whose constructor takes torch's current stream, of the tensor's device."""
    found = {name: launches(code) for name, code in sources().items()}
    assert {name: len(lines) for name, lines in found.items() if lines} == {"host.h": 1}
    host = sources()["host.h"]
    launcher = host[host.rindex("class Launcher {") :]
    launcher = launcher[: launcher.index("\n};")]
    assert launches(launcher) == found["host.h"]
    assert "aoti_torch_get_current_cuda_stream(device, &current)" in launcher
    assert "stream = static_cast<cudaStream_t>(current);" in launcher
    assert len(re.findall(r"\bstream = ", launcher)) == 1
    assert re.search(
        r"STD_CUDA_CHECK\(cudaLaunchKernel\([^;]*, shared_bytes, stream\)\);", launcher
    )


@pytest.mark.parametrize(
    "rule, planted",
    [
        (waits_or_allocates, "cudaMalloc(&p, 4);"),
        (waits_or_allocates, "STD_CUDA_CHECK(cudaMemcpyAsync(a, b, 4, kind, stream));"),
        (waits_or_allocates, "cudaDeviceSynchronize();"),
        (waits_or_allocates, "cudaStreamSynchronize(stream);"),
        (waits_or_allocates, "cudaEventSynchronize(event);"),
        (waits_or_allocates, "const float v = t.item<float>();"),
        (waits_or_allocates, "t.item ()"),
        (adds_in_any_order, "atomicAdd(sum, v);"),
        (adds_in_any_order, "atomicAdd_block (sum, v);"),
        (launches, "f<float><<<1, 32>>>();"),
        (launches, "cudaLaunchKernelEx(&config, f);"),
        (default_streams, "f<<<1, 32>>>();"),
        (default_streams, "f<<<grid(a, b), 32, 0, 0>>>(x);"),
        (default_streams, "f<<<g(a, h(b, c)), 32, 0>>>(x);"),
        (default_streams, "f<<<static_cast<unsigned>(blocks),\n threads, bytes, other>>>(x);"),
        (default_streams, "f<<<1, 32, 0, stream> > >(x);"),  # by clang-format
        (default_streams, "g(cudaStreamLegacy);"),
        (default_streams, "cudaStream_t stream = nullptr;"),
        (raw_accesses, "void f(const float* from) { g(from[2]); }"),
        (raw_accesses, "struct P {\nA* out;\n};\np.out[i] = a;"),
        (raw_accesses, "A* pooled[2];\njob.pooled[0][i] = a;"),
        (raw_accesses, "const float v = *from;"),
        (raw_accesses, "*(to + i) = v;"),
        (raw_accesses, "g(to->s0);"),
        (raw_accesses, "v = reinterpret_cast<const uint4*>(from + 1)[0];"),
        (raw_accesses, "const T* from = p;\nmemcpy(&v, from, sizeof v);"),
        (raw_accesses, "v = __ldg(from);"),
        (raw_accesses, "__shared__ float words[32];"),
        (unguarded, '  asm("mov.u32 %0, 1;" : "=r"(v));'),
        (unguarded, "#if defined(__HIP_PLATFORM_AMD__)\nasm volatile(x);\n#endif"),
        (unguarded, "#if !defined(__HIP_PLATFORM_AMD__)\n#else\nasm(x);\n#endif"),
        (unguarded, "#ifndef __HIP_PLATFORM_AMD__\n#endif\n__pipeline_commit();"),
        (unguarded, "#if defined(OTHER)\nint a;\n#else\nasm(x);\n#endif"),
    ],
)
def test_rules_find_what_is_planted(rule, planted):
    assert rule(planted)
    assert rule(f"int before;\n{planted}\nint after;")
    assert not rule("// " + planted.replace("\n", "\n// "))


@pytest.mark.parametrize(
    "rule, right",
    [
        (waits_or_allocates, "items(); x.items; cudaDeviceGetAttribute(&n, which, device);"),
        (waits_or_allocates, 'check(ok, "cudaMalloc() failed");'),
        (default_streams, "f<<<unsigned(g(a, b)), threads, bytes, stream>>>(x, y);"),
        (default_streams, "stream = static_cast<cudaStream_t>(current);"),
        (raw_accesses, "A* const to = p.to + 2 * i;\nwrite(to + 1, a * b * (c) + read(from));"),
        (raw_accesses, "A* pooled[2];\nA values[4];\nwrite(job.pooled[0] + 1, values[2]);"),
        (raw_accesses, "T values[4];\nmemcpy(&word, values, sizeof word);"),
        (unguarded, "#if defined(__HIP_PLATFORM_AMD__)\nint a;\n#else\nasm(x);\n#endif"),
        (
            unguarded,
            "#if defined(E)\n#elif defined(__HIP_PLATFORM_AMD__)\n#else\n"
            "#if 1\nasm(x);\n#endif\n#endif",
        ),
        (unguarded, "#if !defined(__HIP_PLATFORM_AMD__)\nasm(x);\n#endif"),
        (unguarded, "#if defined(E) || defined(__HIP_PLATFORM_AMD__)\n#else\nasm(x);\n#endif"),
    ],
)
def test_rules_let_pass_what_is_right(rule, right):
    assert not rule(right)
