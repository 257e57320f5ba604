"""What nvcc makes of the CUDA kernels, without a GPU: registers, and instructions a pixel.

The kernels are compiled apart from torch, one architecture at a time, and ptxas tells what each of
them takes. To bound the time, ``units`` has all kernels for two architectures, and the fused kernel
for float32 and a window of 11 in its four variants for all of them.

Instructions are counted in the main loop of the fused kernel, as nvdisasm prints it. Barriers cut
an iteration into phases, and a phase has many paths: a thread may bring a second chunk of columns
or none, evaluate up to four windows, write gradients or not. Which paths are taken, and how often,
is not guessed: the same source runs in the emulator, with the plan that a shape gets, and leaves
what each thread did between two barriers (reads and writes of shared memory, reciprocals, chunks
from and to global memory). Each such trace finds the path through the machine code that does the
same; among several the one of most floating-point instructions, so that counts are bounds from
above. What a block does once, before and after the loop, is not counted.

``python tests/sass.py`` prints the tables of docs/cuda.md; ``python tests/budgets.py`` renews the
budgets that tests hold the figures to.
"""

import json
import operator
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"
KERNELS = CSRC / "cuda"

ARCHITECTURES = (75, 80, 86, 90, 100, 120)
EVERY_KERNEL_FOR = (80, 90)
ELEMENTS = ("float", "__half", "__nv_bfloat16")
WINDOWS = (7, 9, 11)

# ---- tools --------------------------------------------------------------------------------------


@cache
def tool(name: str) -> str | None:
    """Where a program is: on PATH, beside nvcc, or in the triton that came with torch."""
    if found := shutil.which(name):
        return found
    toolkits = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    folders = [Path(toolkit) / "bin" for toolkit in toolkits if toolkit]
    folders += [Path(p) / "triton" / "backends" / "nvidia" / "bin" for p in sys.path if p]
    return next((str(f / name) for f in folders if os.access(f / name, os.X_OK)), None)


def why_not() -> str | None:
    """Why device code cannot be looked at here, if so."""
    if not KERNELS.is_dir():
        return "the sources of the kernels are not beside the tests"
    missing = [name for name in ("nvcc", "nvdisasm", "c++filt", "g++") if tool(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """What a program prints; its complaints as an exception if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


# ---- registers ----------------------------------------------------------------------------------


class Unit(NamedTuple):
    """A translation unit, and the architecture that it is compiled for."""

    name: str
    source: str
    architecture: int


@dataclass(frozen=True)
class Kernel:
    """What ptxas tells about a kernel, in registers of a thread and bytes."""

    name: str  # as in the source: sweep<float, float, 11, kGradientX, kPlain>
    symbol: str
    architecture: int
    cubin: Path
    registers: int
    stack: int  # of the kernel and whatever it calls
    spills: int
    static_shared: int
    barriers: int


def sweep_unit(element: str, window: int, architecture: int) -> Unit:
    """The variants of the fused kernel without a mask, and those of all levels of a pyramid."""
    levels = f"template FusedLevels select_levels<{window}>(Kind);" if element == "float" else ""
    source = f"""#include "cuda/select.cuh"
    namespace ssimfast::cuda {{
    template Fused select_kind<{element}, {window}>(Kind, bool);
    {levels}
    }}"""
    return Unit(f"sweep_{element}_{window}", source, architecture)


def bytes_unit(window: int, architecture: int) -> Unit:
    """The fused kernel for uint8, which has no gradients."""
    source = f"""#include "cuda/select.cuh"
    namespace ssimfast::cuda {{
    template Fused fused<uint8_t, uint8_t, {window}, Kind::kForward, Serves::kAny>();
    }}"""
    return Unit(f"sweep_uint8_{window}", source, architecture)


def masked_unit(architecture: int) -> Unit:
    """The fused kernels for masks and for an 8-bit y."""
    source = (KERNELS / "sweep_11_more.cu").read_text()
    return Unit("sweep_11_more", source, architecture)


# Addresses instantiate kernels whatever their parameters are.
OTHERS = {
    "separable": [
        *(
            f"{kernel}<{arithmetic}>"
            for kernel in (
                "row_moments",
                "column_moments",
                "statistics",
                "axis_adjoint",
                "gradients",
            )
            for arithmetic in ("float, false", "float, true", "double, false", "double, true")
        ),
    ],
    "reduce": [
        f"{kernel}<{arithmetic}>"
        for kernel in ("fold_records", "finish_terms", "combine_levels")
        for arithmetic in ("float", "double")
    ],
    "pool": ["pool_pyramid<float>", "pool_pyramid<double>"],
    "pyramid": [
        f"{kernel}<{arithmetic}>"
        for kernel in ("scale_runs", "scale_elements", "collapse_pyramid")
        for arithmetic in ("float", "double")
    ],
}


def other_unit(header: str, architecture: int) -> Unit:
    """All kernels of a header besides the fused one."""
    source = f"""#include <tuple>
    #include "cuda/{header}.cuh"
    auto kernels() {{
      using namespace ssimfast::cuda;
      return std::make_tuple({", ".join(f"&{kernel}" for kernel in OTHERS[header])});
    }}"""
    return Unit(header, source, architecture)


def variant(name: str) -> list[str]:
    """Element types, window, kind and what it serves, of a fused kernel, from its name."""
    return re.findall(r"\w+", name.split("<")[1].replace("unsigned char", "uint8_t"))


def units() -> list[Unit]:
    """All that the tests look at: the slow ones first."""
    every = [sweep_unit(e, k, a) for k in WINDOWS[::-1] for e in ELEMENTS for a in EVERY_KERNEL_FOR]
    every += [sweep_unit("float", 11, a) for a in ARCHITECTURES if a not in EVERY_KERNEL_FOR]
    every += [bytes_unit(k, a) for k in WINDOWS for a in EVERY_KERNEL_FOR]
    every += [masked_unit(a) for a in ARCHITECTURES]
    return every + [other_unit(header, a) for header in OTHERS for a in EVERY_KERNEL_FOR]


def readable(symbol: str) -> str:
    """The name of a kernel as in the source."""
    name = run(tool("c++filt") or "c++filt", symbol).strip()
    name = name.split("ssimfast::cuda::", 1)[-1].rsplit("(", 1)[0]
    return re.sub(r"\(ssimfast::cuda::(\w+)\)(\d)", lambda m: constants(m[1])[int(m[2])], name)


@cache
def constants(enum: str) -> tuple[str, ...]:
    """Their names, of an enum of the fused kernel."""
    source = (KERNELS / "sweep.cuh").read_text()
    body = re.search(rf"enum class {enum} \{{(.*?)\}}", source, re.DOTALL)
    assert body is not None, f"sweep.cuh has no {enum}"
    return tuple(re.findall(r"^\s*(k\w+)", body[1], re.MULTILINE))


def compile_unit(unit: Unit, folder: Path) -> list[Kernel]:
    """The kernels of a unit, with what ``ptxas -v`` prints about them."""
    source = folder / f"{unit.name}_{unit.architecture}.cu"
    cubin = source.with_suffix(".cubin")
    source.write_text(unit.source)
    report = run(
        *(tool("nvcc") or "nvcc", "-std=c++20", f"-arch=sm_{unit.architecture}", "-O3", "-cubin"),
        *("-Xptxas", "-v", f"-I{CSRC}", str(source), "-o", str(cubin)),
    )
    return [
        Kernel(readable(symbol), symbol, unit.architecture, cubin, **figures)
        for symbol, figures in read_report(report).items()
    ]


def read_report(report: str) -> dict[str, dict[str, int]]:
    """The figures of each kernel, by its symbol, from what ``ptxas -v`` prints.

    Functions that a kernel calls and that were not inlined are told of after it.
    """

    def last(pattern: str, text: str) -> int:
        return int(([0, *re.findall(pattern, text)])[-1])

    kernels = {}
    for part in report.split("Compiling entry function '")[1:]:
        frames = re.findall(r"(\d+) bytes stack frame", part)
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", part)
        assert frames and "registers" in part, f"ptxas tells something else now:\n{part}"
        kernels[part.split("'")[0]] = {
            "registers": last(r"Used (\d+) registers", part),
            "stack": max(sum(map(int, frames)), last(r"(\d+) bytes cumulative stack size", part)),
            "spills": sum(map(int, spills)),
            "static_shared": last(r"(\d+) bytes smem", part),
            "barriers": last(r"used (\d+) barriers", part),
        }
    return kernels


def compile_all(wanted: Iterable[Unit], folder: Path) -> list[Kernel]:
    with ThreadPoolExecutor(2) as pool:
        compiled = pool.map(lambda unit: compile_unit(unit, folder), wanted)
        return [kernel for kernels in compiled for kernel in kernels]


def resident_threads(kernel: Kernel, threads: int) -> int:
    """Threads of a multiprocessor at a time, as far as registers go, in blocks of so many."""
    of_a_warp = (32 * kernel.registers + 255) // 256 * 256
    return 65536 // of_a_warp * 32 // threads * threads


# ---- instructions -------------------------------------------------------------------------------


class Counts(NamedTuple):
    """Of one thread on one path."""

    fp: int = 0
    reads: int = 0  # of shared memory; a vector is one
    writes: int = 0
    reciprocals: int = 0
    words: int = 0  # of 4 bytes, read from or written to shared memory
    load_bytes: int = 0  # from global memory
    store_bytes: int = 0
    barriers: int = 0
    instructions: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(*map(operator.add, self, other))


# With immediates (32I), packed (2) and of three operands (3).
FLOATING = re.compile(r"(FFMA|FADD|FMUL|MUFU)(32I|2|3)?$")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    operands: str
    targets: tuple[int, ...] = ()  # of a jump

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    def bytes(self) -> int:
        for suffix, size in ((r"128", 16), (r"64", 8), (r"[US]16", 2), (r"[US]8", 1)):
            if re.search(rf"\.{suffix}(\.|$)", self.opcode):
                return size
        return 4

    def counts(self) -> Counts:
        name = self.name
        shared, size = name in ("LDS", "STS"), self.bytes()
        return Counts(
            fp=int(FLOATING.match(name) is not None),
            reads=int(name == "LDS"),
            writes=int(name == "STS"),
            reciprocals=int(name == "MUFU"),
            words=(size + 3) // 4 if shared else 0,
            load_bytes=size if name == "LDG" else 0,
            store_bytes=size if name == "STG" else 0,
            barriers=int(name == "BAR"),
            instructions=1,
        )


LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*)$")


@cache
def listing(cubin: Path) -> str:
    return run(tool("nvdisasm") or "nvdisasm", "-c", str(cubin))


def disassemble(kernel: Kernel) -> list[Instruction]:
    """The instructions of a kernel, and of what it calls, that stands behind it."""
    section = listing(kernel.cubin).split(f".section\t.text.{kernel.symbol},", 1)[1]
    return parse(section.split("\t.section\t", 1)[0])


def parse(text: str) -> list[Instruction]:
    """Instructions with labels resolved, those of jumps by a table too."""
    lines, labels, waiting = [], {}, []
    for line in text.split("\n"):
        if match := LINE.search(line):
            address = int(match[1], 16)
            labels |= dict.fromkeys(waiting, address)
            waiting = []
            operands = match[4].replace(" ", "")
            lines.append((address, match[2] or "", match[3], operands))
        elif match := re.match(r"\s*([.$]\S+):\s*$", line):
            waiting.append(match[1])
    return [
        # ptxas writes far jumps as calls; the name of what is really called has no .L.
        Instruction(
            address,
            predicate,
            opcode,
            operands,
            tuple(labels[label] for label in re.findall(r"\.L_x_\d+", operands))
            if re.match(r"(BRA|BRX|JMX|JMP|CALL)", opcode)
            else (),
        )
        for address, predicate, opcode, operands in lines
    ]


@dataclass
class Block:
    """Instructions that are executed one after another, and where they lead."""

    counts: Counts
    barrier: bool  # the last one is a barrier of the thread block
    next: list[int]


def blocks_of(code: list[Instruction]) -> dict[int, Block]:
    """The control flow of a function, by the address of each block."""
    begin, end = code[0].address, code[-1].address + 16
    begins = {begin}
    jumps: dict[int, list[int]] = {}  # where to, of what ends a block
    for i in code:
        by_table = i.name.startswith(("BRX", "JMX"))
        assert i.targets or not by_table, f"nvdisasm tells no targets of {i}"
        if i.targets or i.name in ("EXIT", "RET", "BAR"):
            conditions = i.predicate or (not by_table and re.search(r"\bU?P\d", i.operands))
            goes_on = i.name == "BAR" or conditions
            jumps[i.address] = [*i.targets, *([i.address + 16] if goes_on else [])]
            begins |= {a for a in (*jumps[i.address], i.address + 16) if begin <= a < end}
    blocks = {}
    for i in code:
        if i.address in begins:
            here = blocks[i.address] = Block(Counts(), False, [])
        here.counts = here.counts.plus(i.counts())
        here.barrier = i.name == "BAR"
        here.next = [a for a in jumps.get(i.address, [i.address + 16]) if begin <= a < end]
    return blocks


def natural_loop(blocks: dict[int, Block], head: int, tail: int) -> set[int]:
    """All blocks that lead to the tail without passing the head."""
    before = defaultdict(set)
    for address, block in blocks.items():
        for following in block.next:
            before[following].add(address)
    loop, waiting = {head}, [tail]
    while waiting:
        address = waiting.pop()
        if address not in loop:
            loop.add(address)
            waiting += before[address]
    return loop


def loops_with_barriers(blocks: dict[int, Block]) -> list[tuple[int, dict[int, Block]]]:
    """Of each its first block, and its blocks without the ways out; the smallest loop first."""
    reachable, waiting = set(), [min(blocks)]
    while waiting:
        address = waiting.pop()
        if address not in reachable:
            reachable.add(address)
            waiting += blocks[address].next
    loops = [
        (head, natural_loop(blocks, head, tail))
        for tail in reachable
        for head in blocks[tail].next
        if head <= tail
    ]
    # With barriers. ptxas ends a function with a jump to itself, which is none; a jump back from
    # rare code to where it was left is no loop: the walk back from it ends at the function's entry.
    loops = [
        (head, loop)
        for head, loop in loops
        if any(blocks[a].barrier for a in loop) and min(blocks) not in loop - {head}
    ]
    loops.sort(key=lambda pair: sum(blocks[a].counts.instructions for a in pair[1]))
    return [
        (
            head,
            {
                a: Block(b.counts, b.barrier, [n for n in b.next if n in loop])
                for a, b in blocks.items()
                if a in loop
            },
        )
        for head, loop in loops
    ]


def order_of(loop: dict[int, Block], start: int) -> tuple[list[int], set[tuple[int, int]]]:
    """Blocks from the start to the next barrier, each before those it leads to; ways back."""
    order: list[int] = []
    back: set[tuple[int, int]] = set()
    active, done = set(), set()

    def visit(address: int) -> None:
        active.add(address)
        for following in [] if loop[address].barrier else loop[address].next:
            if following in active:
                back.add((address, following))
            elif following not in done:
                visit(following)
        active.discard(address)
        done.add(address)
        order.append(address)

    visit(start)
    return order[::-1], back


class Trace(NamedTuple):
    """What a thread did between two barriers, as the emulator saw it."""

    reads: int
    writes: int
    reciprocals: int
    loads: int  # chunks of both images
    stores: int  # groups of four gradients


class Paths(NamedTuple):
    """Of all paths that leave one trace, that of most and that of fewest FP instructions."""

    most: Counts
    fewest: Counts


Menu = dict[Trace, Paths]  # of a phase


def better(a: Paths, b: Paths) -> Paths:
    """Where FP instructions are as many, the shorter path: vectors, not elements one by one."""
    return Paths(
        max(a.most, b.most, key=lambda c: (c.fp, -c.instructions)),
        min(a.fewest, b.fewest, key=lambda c: (c.fp, c.instructions)),
    )


def menu_of(loop: dict[int, Block], start: int, chunk: int, group: int) -> tuple[Menu, int]:
    """All paths from a block to the next barrier, and the block of the barrier.

    Inner loops run once or twice: the loop over columns does, in write_gradients.
    """
    order, back = order_of(loop, start)
    ends = [a for a in order if loop[a].barrier]
    assert len(ends) == 1, "a phase that ends at several barriers: count it in another way"

    def trace(c: Counts) -> Trace:
        return Trace(
            *(c.reads, c.writes, c.reciprocals),
            -(-c.load_bytes // chunk),
            -(-c.store_bytes // group),
        )

    # States: (turns, block). What leads to them, by bytes too, for only sums of these are rounded.
    found: dict[tuple[int, int], dict[tuple, Paths]] = defaultdict(dict)
    found[0, start] = {(): Paths(Counts(), Counts())}
    for turn in (0, 1):
        for address in order:
            for paths in found[turn, address].values():
                here = Paths(*(c.plus(loop[address].counts) for c in paths))
                key = (*trace(here.most), here.most.load_bytes, here.most.store_bytes)
                for following in [0] if loop[address].barrier else loop[address].next:
                    to = turn + ((address, following) in back)
                    if to < 2:
                        options = found[to, following]
                        options[key] = better(options.get(key, here), here)
    menu: Menu = {}
    for paths in [*found[0, 0].values(), *found[1, 0].values()]:
        key = trace(paths.most)
        menu[key] = better(menu.get(key, paths), paths)
    return menu, ends[0]


@dataclass(frozen=True)
class Loop:
    """The main loop of the fused kernel."""

    phases: list[Menu]  # from barrier to barrier: the first ends at the first barrier of the body

    def paths(self, phase: int, trace: Trace) -> Paths:
        """Those of a trace; of any global memory where machine code loads what it may not need."""
        menu = self.phases[phase]
        if trace in menu:
            return menu[trace]
        alike = [paths for key, paths in menu.items() if key[:3] == trace[:3]]
        if not alike:
            raise LookupError(
                f"phase {phase}: no path of the machine code does {trace}; is a vector of shared "
                f"memory split, or a loop unrolled? There are {sorted(menu)}"
            )
        return reduce(better, alike)


def loop_of(kernel: Kernel) -> Loop:
    element, other, _, which, serves = variant(kernel.name)
    sizes = {"float": 4, "uint8_t": 1}
    of_x, of_y = (sizes.get(name, 2) for name in (element, other))
    chunk = 4 * (of_x + of_y + 4 * (serves == "kMasked"))
    return phases_of(disassemble(kernel), chunk, 4 * of_x * (1 + (which == "kGradientBoth")))


def phases_of(code: list[Instruction], chunk: int, group: int) -> Loop:
    """The main loop of a kernel that loads chunks and stores groups of so many bytes."""
    head, loop = loops_with_barriers(blocks_of(code))[-1]
    # From the head to the first barrier, and from each barrier to the next one.
    _, barrier = menu_of(loop, head, chunk, group)
    phases, first = [], barrier
    while not phases or barrier != first:
        (start,) = loop[barrier].next
        menu, barrier = menu_of(loop, start, chunk, group)
        phases.append(menu)
    barriers = sum(block.counts.barriers for block in loop.values())
    assert len(phases) == barriers, "a barrier in a branch"
    return Loop([phases[-1], *phases[:-1]])


# ---- what threads do ----------------------------------------------------------------------------

SIZES = """
#include <cstdio>
#include "cuda/plan.h"
#include "cuda/pool.cuh"
#include "cuda/pyramid.cuh"
#include "cuda/reduce.cuh"
#include "cuda/separable.cuh"
using namespace ssimfast::cuda;
template <int K> void print() {
  for (int threads : {128, kMostThreads})
    std::printf(", \\"forward %d %d\\": %d, \\"gradient %d %d\\": %d", K, threads,
                Sizes<K, Kind::kForward, false>::shared_bytes(threads), K, threads,
                Sizes<K, Kind::kGradientX, false>::shared_bytes(threads));
}
int main() {
  static_assert(Sizes<11, Kind::kGradientBoth, false>::kSlots ==
                Sizes<11, Kind::kGradientX, false>::kSlots);
  std::printf("{\\"masked\\": %d, \\"masked 11\\": %d, \\"resident masked\\": %d, ",
              most_threads(true),
              Sizes<11, Kind::kGradientX, true>::shared_bytes(most_threads(true)),
              resident_threads(1, true));
  std::printf("\\"sweep\\": %d, \\"separable\\": %d", kMostThreads, kPixelThreads);
  std::printf(", \\"reduce\\": %d, \\"pyramid\\": %d", kMostSumThreads,
              std::max(kScaleThreads, kCollapseThreads));
  std::printf(", \\"pool\\": %d", kPoolThreads);
  for (int gradients : {1, 2})
    std::printf(", \\"resident %d\\": %d", gradients, resident_threads(gradients, false));
  print<7>(), print<9>(), print<11>();
  std::printf("}\\n");
}
"""

# Runs the fused kernel in the emulator, on one plane, and prints the plan and what threads do
# between barriers. Instead of the emulator's checks, its hooks count here. Blocks that do the same
# run once: of many strips and many runs, the first two and the last two.
MARCH = """
#include "emulator.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace probe {
using namespace emulator;

using Trace = std::array<int, 5>;  // reads, writes, reciprocals, bytes loaded, bytes stored
constexpr int kMost = 1024;
inline Trace now[kMost];
inline int barriers[kMost], block = -1;
inline std::vector<std::array<Trace, kMost>> intervals;  // of the block

void finish_block();

inline Trace& mine() { return now[threadIdx.x]; }
inline void shared_read(const void*, size_t) { ++mine()[0]; }
inline void shared_write(const void*, size_t) { ++mine()[1]; }
inline float approximate_reciprocal(float v) { return ++mine()[2], 1 / v; }
inline void global_read(const void*, size_t size) { mine()[3] += int(size); }
inline void global_read_own(const void* from, size_t size) { global_read(from, size); }
inline void global_write(const void*, size_t size) { mine()[4] += int(size); }
inline void barrier(int line, const char* file) {
  if (block != int(blockIdx.x)) {
    finish_block();
    block = int(blockIdx.x);
  }
  const size_t n = size_t(barriers[threadIdx.x]++);
  if (intervals.size() <= n) intervals.emplace_back();
  intervals[n][threadIdx.x] = mine();
  mine() = {};
  (__syncthreads)(line, file);
}
}  // namespace probe

#define emulator probe
#define __syncthreads() probe::barrier(__LINE__, __FILE__)
#include "cuda/plan.h"

using namespace ssimfast;
using namespace ssimfast::cuda;

constexpr int kHalo = WINDOW / 2;
constexpr bool kMasked = Serves::SERVES == Serves::kMasked;
static Plan plan;  // of the few blocks that run
static int phases, strips_between, runs_between;
static std::map<std::string, long> lines;

// Of several strips or runs, the second stands for all that are left out.
static long weight(int index, int between) { return index == 1 ? 1 + between : 1; }

void probe::finish_block() {
  if (block < 0) return;
  const int strips = plan.strips.divisor;
  const long times = weight(block % strips, strips_between) *
                     weight(block / strips % plan.runs, runs_between);
  if ((intervals.size() - 1) % size_t(phases) != 0) std::abort();
  const int chunk = 4 * (sizeof(ELEMENT) + sizeof(OTHER) + (kMasked ? 4 : 0));
  const int group = 4 * sizeof(ELEMENT) * (Kind::KIND == Kind::kGradientBoth ? 2 : 1);
  // The first interval is what comes before the loop.
  for (size_t first = 1; first < intervals.size(); first += size_t(phases)) {
    bool any = false;
    for (int phase = 0; phase < phases; ++phase)
      for (int t = 0; t < plan.threads; ++t) any |= intervals[first + size_t(phase)][t][2] > 0;
    for (int phase = 0; phase < phases; ++phase) {
      for (int warp = 0; warp < plan.threads; warp += 32) {
        std::map<Trace, int> lanes;
        for (int t = warp; t < warp + 32; ++t) {
          Trace trace = intervals[first + size_t(phase)][t];
          trace[3] = (trace[3] + chunk - 1) / chunk;
          trace[4] = (trace[4] + group - 1) / group;
          ++lanes[trace];
        }
        std::string line = std::to_string(phase) + ", " + (any ? "true" : "false");
        for (const auto& [trace, count] : lanes) {
          line += ", [" + std::to_string(count);
          for (int number : trace) line += ", " + std::to_string(number);
          line += "]";
        }
        lines[line] += times;
      }
    }
  }
  intervals.clear();
  for (int& count : barriers) count = 0;
  for (Trace& trace : now) trace = {};
}

// Arguments: barriers of an iteration, multiprocessors, KiB of shared memory of each, planes,
// height, width.
int main(int, char** arguments) {
  const auto number = [&](int i) { return std::atoi(arguments[i]); };
  phases = number(1);
  int height = number(5), width = number(6);
  using Size = Sizes<WINDOW, Kind::KIND, kMasked>;
  constexpr int kGradients = int(Kind::KIND);
  const Plan whole = plan =
      make_plans({{number(4), 1, height, width, kHalo, WINDOW, kGradients, kMasked}},
                 {number(2), number(3) * 1024}, Size::shared_bytes)[0];
  constexpr int kMany = 4;
  strips_between = std::max(0, plan.strips.divisor - kMany);
  runs_between = std::max(0, plan.runs - kMany);
  plan.strips = Divisor(plan.strips.divisor - strips_between);
  plan.runs -= runs_between;
  plan.tiles = Divisor(plan.strips.divisor * plan.runs);
  width -= strips_between * plan.strip_step;
  height -= runs_between * plan.run_rows;
  std::vector<float> x(size_t(height) * width), y = x, by_x = x, by_y = x;
  std::vector<float> weights(size_t(height) * width, 1.0f);
  constexpr Dtype kDtype = std::is_same_v<ELEMENT, float>    ? Dtype::kFloat32
                           : std::is_same_v<ELEMENT, __half> ? Dtype::kFloat16
                                                             : Dtype::kBFloat16;
  const auto image = [&](std::vector<float>& of) {
    return View{of.data(), 0, 0, 0, width, 1, kDtype};
  };
  Job<float> job{};
  job.x = image(x), job.y = image(y), job.grad[0] = image(by_x), job.grad[1] = image(by_y);
  job.mask = {weights.data(), 0, 0, 0, width, 1};
  job.grad_scale = job.scale = 1;
  job.wanted[kSsim] = true;
  job.weight[kSsim] = 1;
  job.planes = job.channels = 1;
  job.height = height, job.width = width;
  for (const Axis axis : {kHeight, kWidth}) {
    Window<float>& window = job.windows[axis];
    window.size = WINDOW;
    window.margin = kHalo;
    for (int i = 0; i < WINDOW; ++i) window.taps[i] = job.weighted_taps[i] = 1.0f / WINDOW;
  }
  job.twice_c1 = job.twice_c2 = 1e-3f;
  job.load_width = job.store_width = width % 4 == 0 ? 4 : width % 2 == 0 ? 2 : 1;
  const auto kernel = sweep<ELEMENT, OTHER, WINDOW, Kind::KIND, Serves::SERVES>;
  emulator::launch(kernel, plan.tiles.divisor, plan.threads,
                   Size::shared_bytes(plan.threads), job, plan);
  probe::finish_block();
  std::printf("{\\"threads\\": %d, \\"strips\\": %d, \\"strip_step\\": %d, \\"runs\\": %d, ",
              whole.threads, whole.strips.divisor, whole.strip_step, whole.runs);
  std::printf("\\"run_rows\\": %d, \\"intervals\\": [", whole.run_rows);
  const char* comma = "";
  for (const auto& [line, times] : lines) {
    std::printf("%s[%ld, %s]", comma, times, line.c_str());
    comma = ", ";
  }
  std::printf("]}\\n");
}
"""


def build(source: str, folder: Path, name: str, *flags: str) -> Path:
    """A program of the host that sees the device code as the emulator does."""
    path = folder / f"{name}.cpp"
    path.write_text(source)
    run(
        *(tool("g++") or "g++", "-std=c++20", "-O1", "-w", *flags),
        *(f"-I{TESTS / 'emulator'}", f"-I{CSRC}"),
        *(str(path), "-o", str(path.with_suffix(""))),
    )
    return path.with_suffix("")


def sizes(folder: Path) -> dict[str, int]:
    """Constants of the sources: threads of launches by header, bytes of shared memory."""
    return json.loads(run(str(build(SIZES, folder, "sizes"))))


class Shape(NamedTuple):
    images: int
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


class Cost(NamedTuple):
    """Of one pixel of one channel. ``issued``: as if idle lanes of a warp had worked too."""

    fp: float
    issued_fp: float
    words: float
    instructions: float
    issued_instructions: float
    plan: dict[str, int]


@cache
def march_of(name: str, folder: Path) -> Path:
    """The program of a fused kernel, one for all architectures."""
    names = ("ELEMENT", "OTHER", "WINDOW", "KIND", "SERVES")
    given = variant(name)
    flags = [f"-D{name}={value}" for name, value in zip(names, given, strict=True)]
    return build(MARCH, folder, "_".join(["march", *given]), *flags)


@cache
def emulate(march: Path, phases: int, shape: Shape, device: "Device") -> dict:
    sent = (phases, *device, shape.images * shape.channels, shape.height, shape.width)
    return json.loads(run(str(march), *map(str, sent), env={}))


def cost_of(loop: Loop, march: Path, shape: Shape, device: "Device") -> Cost:
    """What a kernel does for a shape, on a device."""
    told = emulate(march, len(loop.phases), shape, device)
    sums = dict.fromkeys(Cost._fields[:-1], 0.0)
    for times, phase, any_window, *lanes in told["intervals"]:
        done = []
        for count, *trace in lanes:
            paths = loop.paths(phase, Trace(*trace))
            # Where no thread of a block has a window, none is filtered: all branch around it.
            done.append((count, paths.most if any_window else paths.fewest))
        for key in ("fp", "words", "instructions"):
            sums[key] += times * sum(count * getattr(c, key) for count, c in done)
        for key in ("fp", "instructions"):
            sums[f"issued_{key}"] += times * 32 * max(getattr(c, key) for _, c in done)
    plan = {key: value for key, value in told.items() if key != "intervals"}
    return Cost(**{k: v / (shape.height * shape.width) for k, v in sums.items()}, plan=plan)


# ---- what has a budget --------------------------------------------------------------------------

SHAPES = (Shape(32, 3, 512, 512), Shape(8, 3, 1024, 1024), Shape(8, 3, 1080, 1920),
          Shape(4, 3, 2160, 3840), Shape(1, 3, 1080, 1920))  # fmt: skip


class Device(NamedTuple):
    multiprocessors: int
    shared_kib: int  # of a multiprocessor


DEVICES = {"H100": Device(132, 228), "RTX 4090": Device(128, 100), "RTX 3060": Device(28, 100)}
PLAIN = "sweep<float, float, 11, kGradientX, kPlain>"


def budget_of(name: str) -> str:
    """The budget of a kernel: one for all element types of a sweep, and for others whose
    arithmetic makes no difference."""
    if name.startswith(("statistics", "collapse_pyramid")):
        return name
    element = "(float|double|__half|__nv_bfloat16|unsigned char)"
    if name.startswith("sweep<"):
        return re.sub(f"<{element}, {element}", "<*", name)
    return re.sub(f"<{element}", "<*", name)


def measured(kernels: list[Kernel], folder: Path) -> dict[str, dict[str, float]]:
    """The most that any architecture takes: registers by kernel; by shape, for a pixel of one
    channel on an H100, FP instructions (FFMA, FADD, FMUL, MUFU) of the plain sweep and words of
    shared memory that it reads or writes; by pass, barriers of an iteration."""
    figures: dict[str, dict[str, float]] = {}

    def note(section: str, name: str, value: float) -> None:
        of = figures.setdefault(section, {})
        of[name] = max(of.get(name, 0), value)

    for kernel in kernels:
        note("registers", budget_of(kernel.name), kernel.registers)
        if kernel.name.startswith("sweep<float, float, 11,"):
            loop = loop_of(kernel)
            note("barriers of an iteration", variant(kernel.name)[3], len(loop.phases))
            if kernel.name == PLAIN and kernel.architecture in EVERY_KERNEL_FOR:
                for shape in SHAPES:
                    cost = cost_of(loop, march_of(PLAIN, folder), shape, DEVICES["H100"])
                    note("FP instructions of a pixel", str(shape), cost.fp)
                    note("words of shared memory of a pixel", str(shape), cost.words)
    return figures


# ---- tables -------------------------------------------------------------------------------------


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*cells: str) -> str:
    return f"{row(*cells)}\n{row(*('---' for _ in cells))}"


def registers_table(kernels: list[Kernel]) -> str:
    by_name: dict[str, dict[int, int]] = defaultdict(dict)
    for kernel in kernels:
        by_name[kernel.name][kernel.architecture] = kernel.registers
    lines = [header("registers", *(f"sm_{a}" for a in ARCHITECTURES))]
    for name, of in by_name.items():
        lines.append(row(f"`{name}`", *(of.get(a, "") for a in ARCHITECTURES)))
    return "\n".join(lines)


def variants_table(kernels: list[Kernel], folder: Path) -> str:
    """Every variant for one shape; those of half types differ by less than one in a hundred."""
    shape, device = SHAPES[2], "H100"
    lines = [
        f"{shape} on {DEVICES[device].multiprocessors} multiprocessors, machine code of sm_90; "
        "a pixel-channel:\n",
        header("kernel", "FP", "shared words", "instructions", "barriers an iteration"),
    ]
    for kernel in kernels:
        if kernel.architecture == 90 and kernel.name.startswith("sweep<float"):
            loop = loop_of(kernel)
            cost = cost_of(loop, march_of(kernel.name, folder), shape, DEVICES[device])
            figures = (f"{v:.1f}" for v in (cost.fp, cost.words, cost.instructions))
            lines.append(row(f"`{kernel.name}`", *figures, len(loop.phases)))
    return "\n".join(lines)


def shapes_table(kernel: Kernel, folder: Path) -> str:
    """One kernel for every shape and device."""
    loop, march = loop_of(kernel), march_of(kernel.name, folder)
    lines = [
        f"`{kernel.name}`, machine code of sm_{kernel.architecture}; a pixel-channel, in brackets "
        "with idle lanes:\n",
        header("shape", "device", "plan", "FP", "shared words", "instructions"),
    ]
    for shape in SHAPES:
        for device, limits in DEVICES.items():
            c = cost_of(loop, march, shape, limits)
            plan = "{threads} threads, {strips} strips, {runs} runs of {run_rows}".format(**c.plan)
            lines.append(
                row(
                    *(shape, device, plan, f"{c.fp:.1f} ({c.issued_fp:.1f})", f"{c.words:.1f}"),
                    f"{c.instructions:.1f} ({c.issued_instructions:.1f})",
                )
            )
    return "\n".join(lines)


def main() -> None:
    if reason := why_not():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernels = compile_all(units(), folder)
        print(registers_table(kernels), end="\n\n")
        print(variants_table(kernels, folder), end="\n\n")
        for architecture in (80, 90):
            (kernel,) = (k for k in kernels if k.name == PLAIN and k.architecture == architecture)
            print(shapes_table(kernel, folder), end="\n\n")


if __name__ == "__main__":
    main()
