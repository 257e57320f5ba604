"""Training of CycleGAN (Zhu et al. 2017, arXiv:1703.10593): the loop, its log, exact resume."""

import io
import json
import math
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.utils import make_grid
from tqdm import tqdm

from cyclegan import checkpoints
from cyclegan.data import Batches, UnpairedImages, load_test_images
from cyclegan.errors import UserError
from cyclegan.evaluate import check_inception, distances, evaluate, round_trips
from cyclegan.files import fingerprint, write_bytes, write_text, writing
from cyclegan.guards import Diverged, Watch, check_finite, luminance_correlation
from cyclegan.images import as_rgb, normalise, to_image
from cyclegan.loading import batches_of, count_workers, ignore_interrupts, processes_here
from cyclegan.log import RunLog, best_test
from cyclegan.model import LOSSES, CycleGan, precision_of
from cyclegan.own_data import OwnPairs
from cyclegan.progress import progress
from cyclegan.report import sample_grids, thin_out_grids, write_report
from cyclegan.settings import Settings, parse_period
from cyclegan.translate import find_device

TRACKED = "cyclegan"  # project of the trackers, and TensorBoard's folder in run_dir
GRID_ROWS = 8  # test images per direction in a sample grid
MOST_SAVING = 0.02  # part of the time that saves by the clock may take


class Trainer:
    """Trains a `CycleGan` on a folder of images, and keeps what a run tells and needs to go on.

    In several processes (``accelerate launch``), each has its share of every batch, and all the
    same weights, pools and logs; the first one writes.

    Args:
        settings: see `Settings`.
        resume: "no": a new run, for which run_dir must hold no checkpoint. "auto": from the latest
            whole checkpoint of run_dir, or a new run. A path: from that checkpoint. Or what
            `checkpoints.choose` made of one of these, for run_dir.
        data: pairs (real_a, real_b), each (C, H, W) in [-1, 1], in place of the images of
            settings.data; see `OwnPairs`.
        tests: (N, C, H, W) in [-1, 1] of A and of B, in place of those of settings.data.
        networks: all four, by the names in NETWORKS, in place of those of the settings.
        cycle_loss: module(reconstruction, image) -> scalar, in place of settings.cycle_loss.

    Raises:
        UserError: settings, images or a checkpoint cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        resume: str | checkpoints.Start = "no",
        *,
        data: Dataset | None = None,
        tests: tuple[Tensor, Tensor] | None = None,
        networks: Mapping[str, nn.Module] | None = None,
        cycle_loss: nn.Module | None = None,
    ):
        self.warnings: list[str] = []  # that the page does not show yet
        with self._warnings_noted():
            self._build(settings, resume, data, tests, networks, cycle_loss)

    def _build(self, settings, resume, data, tests, networks, cycle_loss) -> None:
        self.settings = s = settings
        self.run_dir = Path(s.run_dir)
        if not isinstance(resume, checkpoints.Start):
            resume = checkpoints.choose(resume, self.run_dir)
        checkpoint, self._known_checkpoints = resume
        self.accelerator = make_accelerator(settings)
        self.device = self.accelerator.device
        self.processes = self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.step = 0
        self.seconds = 0.0  # of training
        self.interrupted: signal.Signals | None = None
        self._saved = False  # whether there is a checkpoint of this step
        self.log = RunLog(self.run_dir)
        self.watch = Watch()

        if s.score:
            check_inception(s.inception_weights)
        self._find_images(data, tests)
        s = self.settings
        self.settings = s = replace(s, steps=s.count_steps(self.epoch, self.images_per_step))

        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(s.seed % 2**32)
        self.model = CycleGan(s, self.accelerator, networks, cycle_loss)
        if checkpoint is not None:
            self._load(checkpoint)
        elif s.init_from:
            self.model.start_from(Path(s.init_from))
        steps = self.accelerator.gather(torch.tensor([self.step], device=self.device)).tolist()
        if len(set(steps)) > 1:  # a folder that not all of them see alike
            raise UserError(f"the processes go on from different checkpoints: of steps {steps}")

    def _find_images(self, data: Dataset | None, tests: tuple[Tensor, Tensor] | None) -> None:
        s, in_memory = self.settings, False
        self.images_per_step = s.batch_size * self.processes  # of each domain
        if data is None:
            self.pairs = UnpairedImages(s)
            self.settings = s = self.pairs.settings  # with a value_range, if that was measured
            self.counts = tuple(len(folder.paths) for folder in self.pairs.folders)
            in_memory = self.pairs.in_memory
        else:
            self.pairs = OwnPairs(data, s.seed)
            self.counts = (len(data), len(data))
        self.epoch = max(self.counts)  # images of each domain
        self.workers = count_workers(s.workers, in_memory, self.device.type, processes_here())
        self.test_a, self.test_b = tests or (load_test_images(s, a) for a in "ab")

    @contextmanager
    def _warnings_noted(self) -> Iterator[None]:
        """Adds the warnings of the block to `warnings`; they are shown as ever."""
        show = warnings.showwarning

        def note(message, *where, **options) -> None:
            self.warnings.append(str(message))
            show(message, *where, **options)

        warnings.showwarning = note
        try:
            yield
        finally:
            warnings.showwarning = show

    def train_step(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        """One update of all networks; see `CycleGan.train_step`."""
        s = self.settings
        rate = s.learning_rate * linear_decay(s.steps, s.decay_start)(self.step)
        losses = self.model.train_step(real_a, real_b, rate, self.step)
        self.step += 1
        self._saved = False
        return losses

    # ---- The loop -------------------------------------------------------------------------------

    def train(self) -> None:
        """All steps that are left, with a progress bar on stderr; log, report, sample grids and
        checkpoints on the way. SIGINT and SIGTERM end it early, with a checkpoint: `interrupted`
        is then the signal. (Several processes agree to end when they next look at the losses.)

        Raises:
            Diverged: a loss or a weight is not finite; nothing is saved then.
            UserError: another process trains in run_dir, or has since this trainer was made.
        """
        s = self.settings
        with self._run_dir_locked(), self._warnings_noted():
            if self.is_main:
                self._forget_after(self.step)
                write_text(json.dumps(asdict(s), indent=1), self.run_dir / "settings.json")
                self._introduce()
            tested = [r["step"] for r in self.log.records("test")] if self.is_main else []
            self._init_trackers()
            try:
                # The start of training; fails now if it cannot be written.
                self._test_and_show(unless=self.step in tested)
                bar = progress("training", "step", s.steps, self.step)
                with self._signals_noted(), bar, batches_of(self._loader()) as batches:
                    self._loop(batches, bar)
            finally:
                with writing(self.run_dir / TRACKED):
                    for tracker in self.accelerator.trackers:  # end_training parts the processes
                        tracker.finish()

    def _introduce(self) -> None:
        """Say on stderr and in the log what the run begins, or goes on, with."""
        s, (images_a, images_b) = self.settings, self.counts
        epochs = s.steps * self.images_per_step / self.epoch
        print(
            f"images: {images_a} of A, {images_b} of B; {s.steps:,} steps of "
            f"{self.images_per_step} are {epochs:,.4g} epochs of {self.epoch}\n"
            f"{self.pairs.describe()}\n"
            f"device: {self.device}; processes: {self.processes}; in each, "
            f"threads: {torch.get_num_threads()}, workers: {self.workers}\n"
            f"precision: {precision_of(s, self.device)}",
            file=sys.stderr,
        )
        device = str(self.device)
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        start = {"images_a": images_a, "images_b": images_b, "epochs": epochs, "device": device}
        self.log.append(step=self.step, start={**start, "processes": self.processes})

    def _init_trackers(self) -> None:
        names = self.settings.tracker_names()
        if names:
            # A run that begins again is tested again, too.
            again = {"tensorboard": {"purge_step": self.step + 1 if self.step else 0}}
            with writing(self.run_dir / TRACKED):
                self.accelerator.init_trackers(TRACKED, init_kwargs=again)
        if "wandb" in names:  # TensorBoard would show the settings as another run, an empty one
            self.accelerator.get_tracker("wandb").store_init_configuration(asdict(self.settings))

    def _track(self, values: dict[str, float]) -> None:
        if self.settings.trackers:
            with writing(self.run_dir / TRACKED):
                self.accelerator.log(values, self.step)

    @contextmanager
    def _run_dir_locked(self) -> Iterator[None]:
        """No other process trains in run_dir meanwhile, nor has since this trainer read what is
        there. The lock is the operating system's where the file system has such (flock), and then
        ends with the processes that have it, however they end; the file stays."""
        lock = FileLock(self.run_dir / ".lock")
        problem: Exception | None = None
        try:
            if self.is_main:
                try:
                    self.run_dir.mkdir(parents=True, exist_ok=True)
                    lock.acquire(timeout=0)
                    if checkpoints.in_run(self.run_dir) != self._known_checkpoints:
                        problem = UserError(
                            f"the checkpoints in {self.run_dir} are not those that this run found "
                            "when it began: another process has trained there; begin again"
                        )
                except Timeout:
                    problem = UserError(
                        f"another process trains in {self.run_dir}; wait for it, or choose another "
                        "run_dir"
                    )
                except NotImplementedError as error:  # of filelock, where there is no flock
                    problem = UserError(f"cannot lock {self.run_dir}: {error}")
                except OSError as error:
                    problem = error
            # All processes end then: the others would wait for the first one.
            failed = torch.tensor([int(problem is not None)], device=self.device)
            if self.accelerator.gather(failed).any():
                raise problem or UserError(f"the first process cannot train in {self.run_dir}")
            yield
        finally:
            lock.release()

    def _forget_after(self, step: int) -> None:
        """Deletes everything that was written after `step`, where the run goes on or begins."""
        self.log.cut(step if step else -1)
        checkpoints.forget_after(self.run_dir, step)
        self._known_checkpoints = checkpoints.in_run(self.run_dir)
        for of_step, path in sample_grids(self.run_dir):
            if of_step > step:
                path.unlink()

    def _loop(self, batches: Iterable, bar: tqdm) -> None:
        s = self.settings
        self._last_look, self._recent = (self.step, self.seconds), []
        began = time.perf_counter() - self.seconds
        self._set_schedules()
        for batch in batches:
            real_a, real_b = (self._to_device(images) for images in batch)
            losses = self.train_step(real_a, real_b)
            self._recent.append(torch.stack([losses[name] for name in LOSSES]))
            bar.update()
            ends = self.step == s.steps
            saves = ends or bool(self._save_steps and self.step % self._save_steps == 0)
            # Processes can only agree to end where they talk about the losses anyway.
            signalled = self.interrupted is not None and self.processes == 1
            if not (saves or signalled or self._is_look_due()):
                continue
            stop, clock_says_save = self._look_at_losses(bar, began)
            if saves or stop or clock_says_save:
                self._check_weights()
                self._save_and_test()
                began = time.perf_counter() - self.seconds  # without the time that saving took
            if stop:
                break
        if not self._saved:  # nothing was left to do for a run that goes on in another folder
            self.save_checkpoint()

    def _to_device(self, images: Tensor) -> Tensor:
        """A batch in [-1, 1] on the device; one of uint8, a quarter of the bytes, becomes that
        there."""
        images = images.to(self.device, non_blocking=True, memory_format=self.model.memory_format)
        return normalise(images) if images.dtype == torch.uint8 else images

    def _set_schedules(self) -> None:
        """Turn settings.log_every and save_every into steps (0: there is none) and seconds."""
        epoch = self.epoch / self.images_per_step
        log, save = (
            parse_period(n, getattr(self.settings, n)) for n in ("log_every", "save_every")
        )
        self._log_steps, self._save_steps = log.in_steps(epoch), save.in_steps(epoch)
        self._log_seconds, self._save_seconds = 60 * log.amount, 60 * save.amount
        self._next_look = self.step + 1  # where looks go by the clock
        self._next_save = math.inf if self._save_steps else time.perf_counter() + self._save_seconds

    def _is_look_due(self) -> bool:
        if self._log_steps:
            return self.step % self._log_steps == 0
        return self.step >= self._next_look

    def _save_and_test(self) -> None:
        start = time.perf_counter()
        self.save_checkpoint()  # first: who sent a signal may not wait for long
        self._test_and_show(start)
        if not self._save_steps:
            now = time.perf_counter()
            pause = max(self._save_seconds, (now - start) / MOST_SAVING)
            self._next_save = now + pause

    def _loader(self) -> DataLoader:
        s = self.settings
        place = (self.accelerator.process_index, self.processes)
        return DataLoader(
            self.pairs,
            batch_sampler=Batches(self.step, s.steps, s.batch_size, *place),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator(),  # or it would draw from the stream that is resumed
        )

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM is noted; a second one does what it did before."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number, _):
            self.interrupted = signal.Signals(number)
            signal.signal(number, before[number])
            print(f"{self.interrupted.name}: saving, then stopping", file=sys.stderr)

        try:
            for number in before:
                signal.signal(number, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _look_at_losses(self, bar: tqdm, began: float) -> tuple[bool, bool]:
        """Read, check and log the losses since the last look; whether training is to end now, and
        whether the clock says that it is time to save. The only place in which a step waits for the
        device."""
        correlations = {n: luminance_correlation(*i) for n, i in self.model.last_images.items()}
        since, seconds = self._last_look
        self.seconds = time.perf_counter() - began
        pace = (self.seconds - seconds) / (self.step - since)
        # The last row: correlations, whether this process was told to end, and, by the clock of the
        # first process, whether to save, and in how many steps to look again.
        extra = torch.zeros(len(LOSSES), device=self.device)
        extra[: len(correlations)] = torch.stack([*correlations.values()])
        extra[-3] = float(self.interrupted is not None)
        if self.is_main:
            extra[-2] = self.processes * float(time.perf_counter() >= self._next_save)
            extra[-1] = self.processes * min(self._log_seconds / pace, 1e6)
        rows = self.accelerator.reduce(torch.stack([*self._recent, extra]), "mean").tolist()
        self._recent.clear()
        *extra, told_to_end, saves, until_look = rows.pop()
        self._last_look = (self.step, self.seconds)
        self._next_look = self.step + max(1, round(until_look))
        check_finite(since + 1, rows, LOSSES)
        losses = dict(zip(LOSSES, np.mean(rows, 0).tolist(), strict=True))
        if self.is_main:
            self.watch.look(self.step, losses, dict(zip(correlations, extra, strict=False)))
            speed = 2 * self.images_per_step / pace
            short = {name: f"{value:.3f}" for name, value in in_short(losses, speed).items()}
            bar.set_postfix(short, refresh=False)
            record = {"losses": losses, "images_per_second": speed, "seconds": self.seconds}
            self.log.append(step=self.step, **record)
            self._track({**losses, "images_per_second": speed})
        return told_to_end > 0, saves > 0.5

    def _check_weights(self) -> None:
        """A checkpoint must not be of weights that the last step spoilt."""
        for name, network in self.model.networks.items():
            finite = [p.isfinite().all() for p in network.parameters()]
            if not torch.stack(finite).all():
                raise Diverged(f"training diverged: weights of {name} at step {self.step}")

    # ---- What others see ------------------------------------------------------------------------

    def generators(self) -> dict[str, nn.Module]:
        """The generators that translate, by "ab" and "ba": the averaged ones if there are any."""
        return self.model.generators()

    def tests(self) -> dict[str, Tensor]:
        """The test images that are scored, (N, C, H, W) by "a" and "b"."""
        return {"a": self.test_a, "b": self.test_b}

    def round_trips(self, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(real, fake, reconstruction) of the test images on the CPU: A-B-A, then B-A-B."""
        g, tests = self.generators(), self.tests()
        for a, b in ("ab", "ba"):
            batches = round_trips(tests[a][:limit], g[a + b], g[b + a], self.device)
            yield tuple(torch.cat(images) for images in zip(*batches, strict=True))

    def test_scores(self) -> dict[str, float]:
        """The "mean" of `evaluate` on the test images and, if settings.score, of `distances`."""
        s = self.settings
        scores = evaluate(self.generators(), self.tests(), self.device)["mean"]
        if s.score:
            place = (s, self.device, s.inception_weights)
            scores |= distances(self.generators(), *place)["mean"]
        return scores

    @property
    def samples_path(self) -> Path:
        """Where this step's sample grid is."""
        return self.run_dir / "samples" / f"step_{self.step:07d}.jpg"

    def save_samples(self) -> None:
        """A grid of round trips: columns real_a, fake_b, rec_a, real_b, fake_a, rec_b."""
        rows = min(GRID_ROWS, len(self.test_a), len(self.test_b))
        columns = [as_rgb(images) for trip in self.round_trips(rows) for images in trip]
        cells = torch.stack(columns, 1).flatten(0, 1)
        grid = to_image(make_grid(cells, nrow=len(columns), pad_value=1))
        file = io.BytesIO()
        grid.save(file, "JPEG", quality=92, subsampling=0)
        write_bytes(file.getvalue(), self.samples_path)

    def _test_and_show(self, start: float | None = None, unless: bool = False) -> None:
        """Score the test images, log that, and write a sample grid and the report.

        Args:
            start: when saving began, in seconds of time.perf_counter.
            unless: whether there is nothing to do: the step has been tested.
        """
        if self.is_main and not unless:
            start = time.perf_counter() if start is None else start
            scores = self.test_scores()
            self.save_samples()
            for warning in self.warnings:
                self.log.append(step=self.step, warning=warning)
            self.warnings.clear()
            self.log.append(step=self.step, test=scores, saving=time.perf_counter() - start)
            self._track({f"test/{name}": score for name, score in scores.items()})
            thin_out_grids(self.run_dir)
            write_report(self.run_dir, self.log)
        self.accelerator.wait_for_everyone()

    # ---- Checkpoints ----------------------------------------------------------------------------

    def save_checkpoint(self) -> Path:
        """Everything that the rest of the run depends on; returns the checkpoint's folder."""
        place = (self.is_main, self.accelerator.wait_for_everyone)
        folder = checkpoints.write(self.run_dir, self.step, self._files(), *place)
        if self.is_main:
            best = best_test(self.log.records("test"), self.settings.score)
            kept = () if best is None else (best["step"],)
            checkpoints.keep_latest(self.run_dir, self.settings.keep, kept)
            self._known_checkpoints = checkpoints.in_run(self.run_dir)
        self._saved = True
        return folder

    def _files(self) -> dict[str, bytes]:
        """The files of a checkpoint that this process writes. (Whole, and then written by Python:
        where the disk is full, the writers of torch and safetensors raise errors of their own.)"""
        rank = self.accelerator.process_index
        files = {f"process_{rank}.pt": to_bytes(random_state(self.device))}
        if not self.is_main:
            return files
        for name, module in self.model.weights_by_file().items():
            state = {key: value.contiguous() for key, value in module.state_dict().items()}
            files[f"{name}.safetensors"] = save(state)
        config = {
            "format": checkpoints.FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "processes": self.processes,
            "images": self.pairs.digest(),
            "feature_weights": self._feature_weights(),
            "settings": asdict(self.settings),
        }
        files[checkpoints.CONFIG] = json.dumps(config, indent=1).encode()
        files["training.pt"] = to_bytes(self.model.state_dict())
        return files

    def _feature_weights(self) -> dict | None:
        file = self.settings.feature_weights
        return fingerprint(Path(file)) if file else None

    def _load(self, folder: Path) -> None:
        config = checkpoints.read_config(folder)
        if "processes" not in config:
            raise UserError(f"{folder} holds generators only; --init-from starts a run from them")
        self.settings.check_resumes(Settings(**config["settings"]))
        if config["processes"] != self.processes:
            raise UserError(
                f"the run cannot go on from {folder}: it has {config['processes']} processes, and "
                f"here there are {self.processes}"
            )
        for what, ours in (
            ("images", self.pairs.digest()),
            ("feature_weights", self._feature_weights()),
        ):
            if config[what] != ours:
                raise UserError(f"the run cannot go on from {folder}: it has other {what}")
        if config["step"] > self.settings.steps:
            raise UserError(f"steps must be at least {config['step']}, which {folder} has done")
        for name, module in self.model.weights_by_file().items():
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        state = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state)
        self.step, self.seconds = config["step"], config["seconds"]
        self._saved = folder.resolve() == checkpoints.folder_of(self.run_dir, self.step).resolve()
        rank = self.accelerator.process_index
        set_random_state(torch.load(folder / f"process_{rank}.pt", weights_only=True), self.device)


def make_accelerator(settings: Settings) -> Accelerator:
    # Accelerate keeps precision and device of a process's first Accelerator; runs have their own.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    names = settings.tracker_names()
    missing = set(names) - {str(tracker) for tracker in get_available_trackers()}
    if missing:
        raise UserError(f"trackers: {', '.join(sorted(missing))} is not installed: pip install it")
    device = None if settings.device == "auto" else find_device(settings.device)
    if device is not None and torch.device(settings.device).index is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"device must be without a number in several processes; got {device}")
        torch.accelerator.set_device_index(device.index)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
    torch.backends.cudnn.benchmark = True
    on_cpu = device is not None and device.type == "cpu"
    accelerator = Accelerator(
        cpu=on_cpu or not torch.accelerator.is_available(),
        mixed_precision=settings.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.accumulate),
        log_with=names or None,
        project_dir=settings.run_dir if names else None,
    )
    if accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU"):
        raise UserError(f"training cannot use Accelerate's {accelerator.distributed_type.value}")
    if device is not None and accelerator.device.type != device.type:
        raise UserError(f"device must be auto, cpu or {accelerator.device.type}; got {device}")
    if settings.precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("precision must be no or bf16 on a CPU; got 'fp16'")
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise UserError("the processes do not find each other: Accelerate sees one alone")
    several = {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys()  # asked of its launcher
    if several and "RANK" not in os.environ and accelerator.num_processes == 1:
        warnings.warn(
            "accelerate launch starts several processes on GPUs only, and training has one here; "
            "torchrun --nproc-per-node 2 -m cyclegan ... starts two on a CPU",
            stacklevel=2,
        )
    return accelerator


def linear_decay(steps: int, decay_start: float) -> Callable[[int], float]:
    """Factor of the learning rate: 1 until decay_start * steps, then down to 0 at `steps`."""
    start = decay_start * steps
    return lambda step: max(0.0, min(1.0, (steps - step) / (steps - start)))


def in_short(losses: dict[str, float], speed: float) -> dict[str, float]:
    """Sums over both domains, and images per second, for a line of progress."""
    kinds = dict.fromkeys(name[:-2] for name in losses)
    sums = {kind: losses[f"{kind}_a"] + losses[f"{kind}_b"] for kind in kinds}
    return {**sums, "images/s": speed}


def to_bytes(state: dict) -> bytes:
    """The bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def random_state(device: torch.device) -> dict:
    """State of all random generators that code in a process may use, as plain types and tensors."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": (version, list(numbers), gauss),
        "numpy": (name, keys.tolist(), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict, device: torch.device) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
