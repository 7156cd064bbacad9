"""Examine the embedded benchmark: the gates that its design must pass, as one table.

    python -m benchmarks.vit_mini.examine --datasets emoji animals --seeds 1 2 3

Base-to-novel with 16 shots, of zero-shot CLIP, the control without labels, CoOp, KgCoOp and IVLP
alone; finished runs are skipped. ``--report`` adds, for all methods whose runs have finished
elsewhere, how base and novel accuracy correlate and how the ranks compare with the papers'.

Exit codes: 0 all gates were measured, whether they pass or not, 1 a run failed or a result is
damaged, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from configs.protocols import BASE2NEW
from dassl.command import Parser, run, say
from dassl.errors import UserError
from experiments.intervals import mean_and_half_width, mean_difference
from experiments.published import AVERAGES, Accuracies
from experiments.runs import Job, Run, runs_of
from experiments.scores import Scores
from experiments.sweep import check_folders, run_all
from experiments.table import add_run_arguments, known_datasets, known_methods, tabulate
from experiments.writing import brief, markdown, render

if TYPE_CHECKING:
    from clip import CLIP

DATASETS = ("emoji", "animals", "food", "faces", "shapes", "glyphs", "digits")
CONTROL = "StandardizedCLIP"
METHODS = ("ZeroshotCLIP", CONTROL, "CoOp", "KgCoOp", "IVLP")
SHOTS = 16
EXEMPT = ("digits",)  # of the gate of the interval: it has 539 test pictures in all
RANDOM_CONTEXT = "X X X X {}."
# {dataset: {class name: a name of it that is in no caption of the model's training}}
SYNONYMS: dict[str, dict[str, str]] = {
    "emoji": {
        "house": "cottage",
        "castle": "fortress",
        "tent": "wigwam",
        "canoe": "kayak",
        "motorcycle": "motorbike",
        "rocket": "spacecraft",
        "watch": "wristwatch",
        "fire": "blaze",
        "glasses": "spectacles",
        "crown": "tiara",
        "trumpet": "bugle",
        "violin": "cello",
        "hammer": "mallet",
        "ladder": "stepladder",
        "telescope": "spyglass",
        "pill": "capsule",
        "door": "gate",
        "chair": "armchair",
        "bed": "mattress",
        "sailboat": "schooner",
        "backpack": "knapsack",
    },
    "animals": {
        "pig": "hog",
        "horse": "stallion",
        "dog": "hound",
        "cat": "feline",
        "crocodile": "alligator",
        "monkey": "chimpanzee",
        "frog": "toad",
        "rabbit": "hare",
        "honeybee": "wasp",
        "eagle": "hawk",
        "duck": "mallard",
        "deer": "antelope",
    },
    "food": {
        "cookie": "biscuit",
        "hot pepper": "chili",
        "hamburger": "cheeseburger",
        "french fries": "chips",
        "spaghetti": "noodles",
        "teapot": "kettle",
        "ice cream": "gelato",
        "cheese wedge": "cheddar",
        "cucumber": "gherkin",
        "cupcake": "muffin",
        "bread": "bun",
    },
}

PASS, FAIL, EXEMPTED = "pass", "FAIL", "exempt"
NOT_MEASURED, NOTHING_GIVEN = "not measured", "-"


class Gate(NamedTuple):
    """A row of the table."""

    name: str
    figure: str
    bound: str
    verdict: str


def gate(name: str, figure: str, bound: str, passed: bool) -> Gate:
    return Gate(name, figure, bound, PASS if passed else FAIL)


def leaves_room(base: float, novel: float) -> Gate:
    """Judge zero-shot accuracy: neither chance nor already solved."""
    passed = all(45 <= value <= 80 for value in (base, novel))
    figure = f"base {base:.1f}, novel {novel:.1f}"
    return gate("zero-shot accuracy", figure, "45 to 80 in each half", passed)


def costs_novel(coop: float, zero_shot: float) -> Gate:
    """Judge novel accuracy: learning a context for base classes costs the others."""
    figure = f"CoOp {coop:.1f}, zero-shot {zero_shot:.1f}"
    return gate("CoOp on novel classes", figure, "below zero-shot", coop < zero_shot)


def fits_base(gain: float, half_width: float) -> Gate:
    """Judge CoOp's gain on base classes over zero-shot, with the interval of the difference."""
    figure = f"{gain:+.1f} (± {half_width:.1f})"
    bound = "at least +3 and more than the interval"
    return gate("CoOp on base classes", figure, bound, gain >= 3 and gain > half_width)


def is_beyond_color(zero_shot: Accuracies, control: Accuracies, ivlp: Accuracies) -> Gate:
    """Judge what a standardization without labels gains, against what IVLP gains on base."""
    controls, ivlps = control.base - zero_shot.base, ivlp.base - zero_shot.base
    means = [method.harmonic_mean - zero_shot.harmonic_mean for method in (control, ivlp)]
    figure = f"base: control {controls:+.1f}, IVLP {ivlps:+.1f}"
    figure += f"; harmonic mean: {means[0]:+.1f}, {means[1]:+.1f}"
    # where IVLP gains nothing there is nothing to explain, and nothing to learn
    passed = ivlps > 0 and 3 * controls < ivlps
    return gate(
        "control without labels", figure, "less than a third of IVLP's gain on base", passed
    )


def has_pictures(base: float, novel: float, is_exempt: bool) -> Gate:
    """Judge the half-widths of zero-shot's 95% test-set intervals."""
    figure, bound = f"base ± {base:.1f}, novel ± {novel:.1f}", "at most ± 1.5 in each half"
    found = gate("test-set interval", figure, bound, max(base, novel) <= 1.5)
    return found._replace(verdict=EXEMPTED) if is_exempt else found


def needs_context(loss: float, half_width: float) -> Gate:
    """Judge what zero-shot loses with a random context instead of the template."""
    figure = f"{-loss:+.1f} (± {half_width:.1f})"
    bound = "loses at least 2 and more than the interval"
    return gate(f'context "{RANDOM_CONTEXT}"', figure, bound, loss >= 2 and loss > half_width)


def understands(named: float, renamed: float, chance: float) -> Gate:
    """Judge accuracy on pictures of classes whose names are replaced by unknown synonyms."""
    figure = f"synonym {renamed:.1f}, name {named:.1f}, chance {chance:.1f}"
    bound = "at least half of the name's, above 3 times chance"
    passed = 2 * renamed >= named and renamed > 3 * chance
    return gate("unknown class names", figure, bound, passed)


class Half:
    """Zero-shot CLIP, and its features of the test pictures of one half of the classes."""

    def __init__(self, run: Run) -> None:
        import train
        from dassl.engine import build_trainer

        with contextlib.redirect_stdout(io.StringIO()):
            cfg = train.setup_cfg(train.build_parser().parse_args(run.arguments))
            trainer = build_trainer(cfg)
        self.model = trainer.model
        self.features, self.labels = self.model.frozen_features(trainer.test_loader)
        self.class_names = list(self.model.class_names)
        self.pictures = [item.impath for item in trainer.dm.dataset.test]
        self.template = self.model.templates[0]

    def right(
        self, template: str = "", renamed: Mapping[str, str] | None = None
    ) -> dict[str, float]:
        """Return {picture: 1 if it is recognized, else 0}.

        Args:
            template: instead of the dataset's.
            renamed: {class name: another name}.
        """
        from trainers.base import Towers

        renamed = renamed or {}
        self.model.templates = [template or self.template]
        self.model.set_classes([renamed.get(name, name) for name in self.class_names])
        text = self.model.class_features(Towers())["text"].cpu()
        right = (self.features @ text.T).argmax(dim=1) == self.labels
        return dict(zip(self.pictures, right.float().tolist(), strict=True))

    def of_classes(self, names: Iterable[str]) -> list[str]:
        """Return the pictures of those of these classes that the half has."""
        chosen = {label for label, name in enumerate(self.class_names) if name in set(names)}
        labels = zip(self.pictures, self.labels.tolist(), strict=True)
        return [picture for picture, label in labels if label in chosen]


def nearest_words(
    model: CLIP, unknown: Sequence[str], known: Sequence[str], count: int = 3
) -> dict[str, list[tuple[str, float]]]:
    """Return for each unknown word the nearest known ones, by the cosine of token embeddings.

    Args:
        model: the CLIP.
        unknown: words of one or more tokens, whose embeddings are averaged.
        known: words.
        count: how many to return; none for a word whose embedding is zero.
    """
    import torch
    import torch.nn.functional as F

    from clip.tokens import tokenizer

    def vectors(words: Sequence[str]) -> torch.Tensor:
        table = model.token_embedding.weight.detach().float()
        means = [table[tokenizer().encode(word)].mean(dim=0) for word in words]
        return F.normalize(torch.stack(means), dim=1)

    mine = vectors(unknown)
    cosines = mine @ vectors(known).T
    nearest = cosines.argsort(dim=1, descending=True, stable=True)[:, :count].tolist()
    return {
        word: [(known[i], float(cosines[row, i])) for i in nearest[row]] if mine[row].any() else []
        for row, word in enumerate(unknown)
    }


def gates_of_text(
    dataset: str, halves: Sequence[Half], synonyms: Mapping[str, str]
) -> tuple[list[Gate], list[str]]:
    """Return the gates that zero-shot CLIP alone decides, and lines on the synonyms.

    Raises:
        UserError: a synonym is for a class that the dataset does not have.
    """
    names = [name for half in halves for name in half.class_names]
    for name in synonyms:
        if name not in names:
            raise UserError(f"SYNONYMS: expected class names of {dataset}, got '{name}'")
    usual = [half.right() for half in halves]
    random = [half.right(RANDOM_CONTEXT) for half in halves]
    gates = [needs_context(*mean_difference(merged(usual), merged(random)))]
    if not synonyms:
        return [*gates, Gate("unknown class names", "no synonyms given", "", NOTHING_GIVEN)], []
    named, renamed, chance = [], [], []
    for half, right in zip(halves, usual, strict=True):
        ours = half.of_classes(synonyms)
        again = half.right(renamed=synonyms)
        named += [right[picture] for picture in ours]
        renamed += [again[picture] for picture in ours]
        chance += [1 / len(half.class_names)] * len(ours)
    gates.append(understands(*(100 * fmean(values) for values in (named, renamed, chance))))
    known = sorted({word for name in names for word in name.split()})
    nearest = nearest_words(halves[0].model.clip, list(synonyms.values()), known)
    return gates, [
        f"- {word}: "
        + (
            ", ".join(f"{name} {cosine:.2f}" for name, cosine in found)
            or "none, its embedding is zero"
        )
        for word, found in nearest.items()
    ]


def merged(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    return {key: value for part in parts for key, value in part.items()}


def jobs_of(dataset: str, method: str, arguments: argparse.Namespace) -> list[Job]:
    """List the base-to-novel jobs of a method; one where it is not trained, else one a seed."""
    where = {"root": arguments.root, "output_dir": arguments.output_dir}
    jobs = (
        Job(BASE2NEW, tuple(runs_of(BASE2NEW, method, dataset, seed, SHOTS, **where)))
        for seed in arguments.seeds
    )
    return list(dict.fromkeys(jobs))


def accuracies(jobs: Sequence[Job], scores: Scores) -> Accuracies:
    """Return the means over jobs that have finished."""
    base, novel = (scores.accuracies(runs) for runs in halves_of(jobs))
    means = [mean for job in jobs for mean in scores.summary(job)]
    return Accuracies(fmean(base), fmean(novel), fmean(means))


def halves_of(jobs: Sequence[Job]) -> list[tuple[Run, ...]]:
    """Return the runs on base and those on novel classes."""
    return list(zip(*(job.runs for job in jobs), strict=True))


def gates_of_runs(dataset: str, jobs: Mapping[str, Sequence[Job]], scores: Scores) -> list[Gate]:
    """Return the gates that the runs decide, or one that says that they cannot."""
    halves = [*halves_of(jobs["ZeroshotCLIP"]), halves_of(jobs["CoOp"])[0]]
    shares = [scores.shares(runs) for runs in halves]
    zero_base, zero_novel, coop_base = shares
    complete = all(scores.summary(job) for own in jobs.values() for job in own)
    if not (complete and all(shares) and coop_base.keys() == zero_base.keys()):
        reason = "results or predictions are missing, or of other pictures"
        return [Gate("those of the runs", reason, "", NOT_MEASURED)]
    found = {method: accuracies(own, scores) for method, own in jobs.items()}
    zero_shot, coop = found["ZeroshotCLIP"], found["CoOp"]
    base_width, novel_width = (
        mean_and_half_width(half.values())[1] for half in (zero_base, zero_novel)
    )
    return [
        leaves_room(zero_shot.base, zero_shot.novel),
        costs_novel(coop.novel, zero_shot.novel),
        fits_base(*mean_difference(coop_base, zero_base)),
        is_beyond_color(zero_shot, found[CONTROL], found["IVLP"]),
        has_pictures(base_width, novel_width, dataset in EXEMPT),
    ]


def correlations(found: Mapping[str, Accuracies]) -> tuple[str, ...]:
    """Return the cells of a row of the report from {method: accuracies on a dataset}.

    They are the number of methods, Pearson's r of base and novel accuracy, and over those methods
    that papers have, their number and Spearman's rank correlation of the harmonic means. Fewer
    than three methods have none.
    """
    from scipy.stats import pearsonr, spearmanr

    base, novel = [each.base for each in found.values()], [each.novel for each in found.values()]
    ours = [each.harmonic_mean for method, each in found.items() if method in AVERAGES]
    papers = [AVERAGES[method].harmonic_mean for method in found if method in AVERAGES]

    def shown(correlation: Callable[..., Any], x: Sequence[float], y: Sequence[float]) -> str:
        defined = len(x) > 2 and len(set(x)) > 1 and len(set(y)) > 1
        return f"{correlation(x, y).statistic:.2f}" if defined else "-"

    ranks = shown(spearmanr, ours, papers)
    return str(len(base)), shown(pearsonr, base, novel), str(len(ours)), ranks


def report(arguments: argparse.Namespace) -> str:
    """Render the correlations over all methods that have finished runs; the control is none."""
    rows, scores = [], Scores()  # which need not say how many runs there might be
    for dataset in dict.fromkeys(arguments.datasets):
        found = {}
        for method in known_methods():
            jobs = [job for job in jobs_of(dataset, method, arguments) if scores.summary(job)]
            if jobs and method != CONTROL:
                found[method] = accuracies(jobs, scores)
        rows.append((dataset, *correlations(found)))
    rows.append(("the papers' averages", *correlations(AVERAGES)))
    header = ("Dataset", "Methods", "r of base and novel", "In the papers", "Rank correlation")
    return render(header, rows)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; report an invalid one in one line and exit with code 2."""
    parser = Parser(
        prog="python -m benchmarks.vit_mini.examine",
        description="Measure the gates that the embedded benchmark must pass.",
    )
    parser.add_argument("--datasets", nargs="+", default=DATASETS, choices=known_datasets())
    parser.add_argument(
        "--report",
        action="store_true",
        help="also correlate the accuracies of all methods that have finished runs",
    )
    add_run_arguments(parser)
    return parser.parse_args(argv)


def main(
    argv: Sequence[str] | None = None, synonyms: Mapping[str, Mapping[str, str]] = SYNONYMS
) -> int:
    """Run the command line and return its exit code.

    Raises:
        UserError: a folder or a synonym is wrong.
    """
    arguments = read_arguments(argv)
    check_folders(arguments.root, arguments.output_dir)
    jobs = {
        dataset: {method: jobs_of(dataset, method, arguments) for method in METHODS}
        for dataset in dict.fromkeys(arguments.datasets)
    }
    of_text: dict[str, list[Gate]] = {}
    words: list[str] = []
    for dataset, own in jobs.items():  # before the runs, which take long
        halves = [Half(each) for each in own["ZeroshotCLIP"][0].runs]
        of_text[dataset], lines = gates_of_text(dataset, halves, synonyms.get(dataset, {}))
        words += lines
    every = [job for own in jobs.values() for method in own.values() for job in method]
    code = run_all(every, arguments.jobs)
    if code != 0:
        return code
    scores = Scores()
    table = markdown(tabulate(every, BASE2NEW, scores, intervals=True), brief)
    gates = [
        (dataset, each)
        for dataset in jobs
        for each in [*gates_of_runs(dataset, jobs[dataset], scores), *of_text[dataset]]
    ]
    seeds = " ".join(map(str, arguments.seeds))
    caption = ", ".join(["Accuracy in percent", *scores.backbones, f"{SHOTS} shots, seed {seeds}"])
    header = ("Dataset", "Gate", "Figure", "Demanded", "Verdict")
    say(f"\n{caption}:\n\n{render(header, [(dataset, *each) for dataset, each in gates])}")
    say(f"\n{table}")
    if words:
        say("\nThe nearest known words to those unknown:\n\n" + "\n".join(words))
    if arguments.report:
        say(f"\n{report(arguments)}")
    damaged = scores.report()
    return 1 if damaged or any(each.verdict == NOT_MEASURED for _, each in gates) else 0


if __name__ == "__main__":
    sys.exit(run(main, "stopped; the same command resumes from here"))
