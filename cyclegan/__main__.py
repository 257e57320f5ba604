"""The command line: python -m cyclegan demo-data | train | translate."""

import argparse
import sys
import warnings
from dataclasses import MISSING, fields
from pathlib import Path

from cyclegan.demo_data import write_demo_data
from cyclegan.errors import UserError
from cyclegan.trainer import Settings, Trainer, find_device
from cyclegan.translate import load_generator, translate_folder


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Errors in what the user gave are one line on stderr and exit code 2."""
    args = make_parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        args.command(args)
    except (OSError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cyclegan", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo-data", help="make an unpaired data set; needs no download")
    demo.add_argument("dir", type=Path, metavar="DIR", help="where to put trainA, trainB, ...")
    demo.add_argument("--train-count", type=int, default=320, help="images in each train folder")
    demo.add_argument("--test-count", type=int, default=48, help="images in each test folder")
    demo.add_argument("--seed", type=int, default=0, help="of the crops and the brush strokes")
    demo.set_defaults(command=run_demo_data)

    train = commands.add_parser(
        "train", help="train a model", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for field in fields(Settings):
        required = field.default is MISSING
        train.add_argument(
            "--" + field.name.replace("_", "-"),
            type=field.type,
            required=required,
            default=argparse.SUPPRESS if required else field.default,
            help=field.metadata["help"],
        )
    train.set_defaults(command=run_train)

    translate = commands.add_parser("translate", help="translate a folder of images")
    translate.add_argument("source", type=Path, metavar="IN", help="folder of images")
    translate.add_argument(
        "target",
        type=Path,
        metavar="OUT",
        help="folder for the results; files of the same name in it are replaced",
    )
    translate.add_argument("--checkpoint", type=Path, required=True, help="RUN/checkpoint.pt")
    translate.add_argument("--direction", choices=("ab", "ba"), default="ab", help="default: ab")
    translate.add_argument("--device", default="auto", help="default: cuda where there is one")
    translate.set_defaults(command=run_translate)
    return parser


def run_demo_data(args: argparse.Namespace) -> None:
    write_demo_data(args.dir, args.train_count, args.test_count, args.seed)
    print(f"demo data: {args.dir}")


def run_train(args: argparse.Namespace) -> None:
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    trainer = Trainer(settings)
    before = trainer.cycle_ssim()
    trainer.train()
    after = trainer.cycle_ssim()
    change = f"{before:.3f} before training, {after:.3f} after ({after - before:+.3f})"
    print(f"cycle SSIM on test images: {change}")
    print(f"checkpoint: {trainer.checkpoint_path}")
    print(f"sample grid: {trainer.samples_path}")


def run_translate(args: argparse.Namespace) -> None:
    device = find_device(args.device)
    generator = load_generator(args.checkpoint, args.direction, device)
    count = translate_folder(generator, args.source, args.target, device)
    print(f"translated {count} images into {args.target}")


if __name__ == "__main__":
    sys.exit(main())
