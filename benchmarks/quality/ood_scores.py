"""Which score tells photos of other things (out-of-distribution, OOD) from those of the classes?

    python -m benchmarks.quality.ood_scores PHOTOS … --others DIR …

Takes folders of photos as training.transfer does. For each, heads are trained on three splits; the
photos of the other folders, and those of --others, are OOD. Prints the means of each score's AUROC
and FPR95: the share of OOD photos at the threshold that 95 % of the validation photos reach.
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.common import command_line, print_table
from training import import_keras
from training.photos.backbones import BACKBONES, DEFAULT, WeightsError, load_backbone
from training.photos.inspect import PhotosError, by_name, files_in, inspect, survey

SEEDS = (0, 1, 2)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("photos", nargs="+", type=Path, help="folders with a folder a class")
    parser.add_argument("--others", nargs="*", type=Path, default=[], help="of anything else")
    parser.add_argument("--backbone", choices=list(BACKBONES), default=DEFAULT)
    parser.add_argument("--weights", help="file of ImageNet weights (shipped, or Keras's download)")
    parser.add_argument("--width", type=float, default=1.0, help="MobileNetV2's alpha")
    args = parser.parse_args()
    import_keras()
    from benchmarks.quality.scores import SCORES, judge
    from training.photos.features import VIEWS, cache_name, features, pooled

    try:
        folders = by_name([*args.photos, *args.others])
        tasks = {folder.name: survey(folder).photos for folder in args.photos}
        others = {
            name: inspect([(path, "") for path in files_in(folder)])[0]
            for name, folder in folders.items()
            if name not in tasks
        }
        maps = load_backbone(args.backbone, args.weights, width=args.width)
    except (PhotosError, WeightsError) as error:
        sys.exit(f"error: {error}")
    network = pooled(maps, BACKBONES[args.backbone].image_size)
    cache = Path("runs", "features", cache_name(network, "stretch"))
    vectors = {
        name: features(network, photos, cache, views=VIEWS if name in tasks else 1)
        for name, photos in (tasks | others).items()
    }

    def rows():
        for name, photos in tasks.items():
            ood = {other: each[:, 0] for other, each in vectors.items() if other != name}
            verdicts = [judge(photos, vectors[name], ood, seed) for seed in SEEDS]
            for other in ood:
                means = (np.mean([v[other, score] for v in verdicts], axis=0) for score in SCORES)
                yield [name, other, *("{:.3f}, {:.0%}".format(*mean) for mean in means)]

    print_table(["classifier", "OOD photos", *(f"{each}: AUROC, FPR95" for each in SCORES)], rows())


if __name__ == "__main__":
    main()
