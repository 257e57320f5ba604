"""The command line: python -m cyclegan COMMAND --help."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path

from cyclegan.threads import choose_waiting

if __name__ == "__main__":  # before torch is loaded
    choose_waiting(os.environ)

import torch
from accelerate import PartialState
from torch import distributed

from cyclegan import checkpoints
from cyclegan.compare import compare
from cyclegan.data import load_test_images
from cyclegan.demo_data import write_demo_data
from cyclegan.download import ARCHIVES, download
from cyclegan.errors import UserError
from cyclegan.evaluate import TITLES, check_inception, distances, evaluate, lpips_network
from cyclegan.export import export_onnx
from cyclegan.log import best_test
from cyclegan.report import scores_of
from cyclegan.settings import Settings
from cyclegan.trainer import Trainer
from cyclegan.translate import find_device, load_generator, load_generators, translate_files
from cyclegan.weights import import_generators

CHECKPOINT_HELP = "a run's folder, of which the latest checkpoint is taken, or a checkpoint's"
LPIPS_HELP = "file with torchvision's weights of AlexNet; adds LPIPS (torchmetrics)"
RECIPES = """\
The paper's training, at 256 pixels, of two of its data sets:
  python -m cyclegan download horse2zebra DATA
  python -m cyclegan train --data DATA/horse2zebra --run-dir RUN --epochs 200
    (1,334 images an epoch: 266,800 steps of one pair)
  python -m cyclegan download monet2photo DATA
  python -m cyclegan train --data DATA/monet2photo --run-dir RUN --epochs 200
    (6,287 images an epoch: 1,257,400 steps of one pair)
With --batch-size 4, or in four processes, a quarter of the steps are 200 epochs.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. An error that is no bug is one line on stderr and exit code 2; an interrupt
    is one line and exit code 130."""
    args = make_parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        args.command(args)
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, UserError, RuntimeError) as error:
        message = message_of(error)
        if message is None:
            raise
        print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
        return 2
    return 0


def message_of(error: OSError | UserError | RuntimeError) -> str | None:
    """The message for a user; None for a bug, which gets a traceback."""
    if isinstance(error, OSError | UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU is out of memory; smaller images or batches need less: {error}"
    lost = "/gloo/" in str(error)  # gloo raises RuntimeError and names its source file
    if lost or distributed.is_available() and isinstance(error, distributed.DistError):
        return "another process has ended, and this one cannot go on; its own error says why"
    return None


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cyclegan", description="Train CycleGANs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run, name: str, help: str, **options) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help, description=help, **options)
        one.set_defaults(command=run)
        return one

    add_training(command)
    add_use_of_checkpoints(command)
    return parser


def add_training(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that make data sets and train on them."""
    demo = command(run_demo_data, "demo-data", "make an unpaired data set; needs no download")
    demo.add_argument("dir", type=Path, metavar="DIR", help="where to put trainA, trainB, ...")
    demo.add_argument("--train-count", type=int, default=240, help="images in each train folder")
    demo.add_argument("--seed", type=int, default=0, help="of the crops and their hues")
    demo.add_argument("--crop-size", type=int, default=71, help="side of training images (71)")

    fetch = command(run_download, "download", "download a data set of the paper into DIR/NAME")
    fetch.add_argument("name", metavar="NAME", help=", ".join(ARCHIVES))
    fetch.add_argument("dir", type=Path, metavar="DIR")

    train = command(
        run_train,
        "train",
        "train a model; `accelerate launch -m` for several GPUs",
        usage="python -m cyclegan train --data DATA --run-dir RUN --epochs N [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=RECIPES,
    )
    train.add_argument(
        "--resume",
        default="no",
        metavar="no|auto|PATH",
        help="auto: go on from the run's latest checkpoint, or begin where there is none; PATH: go "
        "on from that one. Settings that are not given are then those of the run",
    )
    add_settings(train, needed="needed, but where a run is resumed")

    side_by_side = command(
        run_compare,
        "compare",
        "train each of several cycle losses",
        usage="python -m cyclegan compare --data DATA --run-dir RUN --epochs N "
        "--cycle-losses LOSS,LOSS [options]",
    )
    side_by_side.add_argument(
        "--cycle-losses",
        required=True,
        help="with commas: paper_l1,ssim,0.84*ssim+0.16*paper_l1,tandon:ssim (PRESET:LOSS)",
    )
    side_by_side.add_argument("--lpips-weights", default="", help=LPIPS_HELP)
    add_settings(side_by_side, without=("cycle_loss",))


def add_use_of_checkpoints(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that use what has been trained."""
    imported = command(
        run_import, "import", "make a run of the reference implementation's generators"
    )
    imported.add_argument(
        "source", type=Path, metavar="DIR", help="holds latest_net_G_A.pth, or is such a file"
    )
    imported.add_argument("run_dir", type=Path, metavar="OUT", help="the run's folder")

    translate = command(run_translate, "translate", "translate an image or a folder of images")
    translate.add_argument("source", type=Path, metavar="IN", help="image, or folder of images")
    translate.add_argument(
        "target",
        type=Path,
        metavar="OUT",
        help="PNG, TIFF or .npy file, or folder for the results, which are of the images' kinds; "
        "files of the same name are replaced",
    )
    add_checkpoint(translate)
    translate.add_argument("--direction", choices=("ab", "ba"), default="ab", help="default: ab")
    translate.add_argument(
        "--size", default="", help="scale images before: 512 (the shorter side), or 512x768"
    )
    translate.add_argument(
        "--tile",
        type=int,
        help="largest side at once, in pixels; 0: any (1024 where memory has no room for the whole "
        "image). Tiles may differ in tone",
    )
    translate.add_argument("--overlap", type=int, help="pixels that tiles share (an eighth)")

    score = command(run_evaluate, "evaluate", "score reconstructions of test images, as JSON")
    add_checkpoint(score)
    score.add_argument("--data", type=Path, help="folder with testA and testB (the run's)")
    score.add_argument(
        "--test-images", type=int, help="images of each folder; 0: all (those of training)"
    )
    score.add_argument("--lpips-weights", default="", help=LPIPS_HELP)
    score.add_argument(
        "--fid", action="store_true", help="FID and KID of translations too (torch-fidelity)"
    )
    score.add_argument(
        "--inception-weights",
        default="",
        help="file with torch-fidelity's weights; none: it downloads them",
    )

    onnx = command(run_export, "export", "write a generator as ONNX, checked with onnxruntime")
    onnx.add_argument("target", type=Path, metavar="OUT.onnx")
    add_checkpoint(onnx, device=False)
    onnx.add_argument("--direction", choices=("ab", "ba"), default="ab", help="default: ab")


def add_checkpoint(parser: argparse.ArgumentParser, device: bool = True) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    if device:
        parser.add_argument("--device", default="auto", help="default: cuda where there is one")


def add_settings(
    parser: argparse.ArgumentParser, without: tuple[str, ...] = (), needed: str = "needed"
) -> None:
    """An option for each setting; those that are not given are left out of the result."""
    for field in fields(Settings):
        if field.name in without:
            continue
        default = "" if field.default in ("", 0) else f" ({field.default})"
        if field.default is MISSING:
            default = f" ({needed})"
        flag = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=(field.metadata["help"] + default).replace("%", "%%"),
            **(flag if field.type is bool else {"type": field.type}),
        )


def given_settings(args: argparse.Namespace, **others) -> Settings:
    """The settings on the command line, else `others`, else the defaults."""
    names = {field.name: field for field in fields(Settings)}
    settings = {**others, **{k: v for k, v in vars(args).items() if k in names}}
    missing = [n for n, f in names.items() if f.default is MISSING and n not in settings]
    if not settings.get("steps") and not settings.get("epochs"):
        missing.append("epochs")
    if missing:
        options = ", ".join("--" + name.replace("_", "-") for name in missing)
        which = "a new run"
        if getattr(args, "resume", "no") == "auto" and "run_dir" in args:
            which = f"{args.run_dir} holds no checkpoint to go on from, and a new run"
        raise UserError(f"{which} needs {options}")
    return Settings(**settings)


def run_demo_data(args: argparse.Namespace) -> None:
    write_demo_data(args.dir, args.train_count, args.seed, args.crop_size)
    print(f"demo data: {args.dir}")


def run_download(args: argparse.Namespace) -> None:
    print(f"data set: {download(args.name, args.dir)}")


def run_train(args: argparse.Namespace) -> None:
    run_dir = Path(args.run_dir) if "run_dir" in args else None
    start = checkpoints.choose(args.resume, run_dir)
    earlier: dict = {}
    if start.checkpoint is not None:
        earlier = checkpoints.read_config(start.checkpoint)["settings"]
        earlier["run_dir"] = str(checkpoints.run_of(start.checkpoint))  # wherever it is by now
    elif args.resume == "auto" and run_dir and (run_dir / "settings.json").is_file():
        earlier = json.loads((run_dir / "settings.json").read_text(encoding="utf-8"))
    if "epochs" in args:
        earlier.pop("steps", None)
    trainer = Trainer(given_settings(args, **earlier), start)
    trainer.train()
    if not trainer.is_main:
        return
    if trainer.step < trainer.settings.steps:
        print(f"stopped at step {trainer.step}; --resume auto goes on")
    tests = trainer.log.records("test")
    print("test images against their reconstructions:")
    for name, title in scores_of(tests):
        first, last = (test["test"][name] for test in (tests[0], tests[-1]))
        print(f"  {title}: {first:.3f} at first, {last:.3f} now")
    score = trainer.settings.score
    if best := best_test(tests, score):
        folder = checkpoints.folder_of(trainer.run_dir, best["step"])
        print(f"best checkpoint ({TITLES[score]} {best['test'][score]:.4g}): {folder}")
    print(f"samples: {trainer.samples_path}")
    print(f"checkpoint: {checkpoints.folder_of(trainer.run_dir, trainer.step)}")
    print(f"report: {trainer.run_dir / 'report.html'}")


def run_compare(args: argparse.Namespace) -> None:
    losses = [loss.strip() for loss in args.cycle_losses.split(",")]
    page = compare(given_settings(args), losses, args.lpips_weights)
    if PartialState().is_main_process:
        print("stopped; the same command goes on" if page is None else f"comparison: {page}")


def run_import(args: argparse.Namespace) -> None:
    print(f"checkpoint: {import_generators(args.source, args.run_dir)}")


def run_translate(args: argparse.Namespace) -> None:
    device = find_device(args.device)
    generator, settings = load_generator(args.checkpoint, args.direction, device)
    place = (args.source, args.target, device, args.size, args.tile, args.overlap)
    count = translate_files(generator, settings, args.direction, *place)
    print(f"translated into {args.target}: {count}")


def run_evaluate(args: argparse.Namespace) -> None:
    device = find_device(args.device)
    generators, settings = load_generators(args.checkpoint, ("ab", "ba"), device)
    if args.data:
        settings = replace(settings, data=str(args.data))
    if args.test_images is not None:
        settings = replace(settings, test_images=args.test_images)
    lpips = lpips_network(args.lpips_weights) if args.lpips_weights else None
    if args.fid:
        check_inception(args.inception_weights)  # names now what is missing
    tests = {a: load_test_images(settings, a) for a in "ab"}
    results: dict = {"images": {a: len(images) for a, images in tests.items()}}
    results |= evaluate(generators, tests, device, lpips)
    if args.fid:
        found = distances(generators, settings, device, args.inception_weights)
        results["mean"] |= found.pop("mean")
        results |= found
    print(json.dumps(results, indent=1))


def run_export(args: argparse.Namespace) -> None:
    generator, settings = load_generator(args.checkpoint, args.direction, find_device("cpu"))
    error = export_onnx(generator, settings.crop, settings.channels, args.target)
    print(f"{args.target}: differs from PyTorch by at most {error:.1e}")


if __name__ == "__main__":
    sys.exit(main())
