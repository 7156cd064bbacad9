"""Every row of the tables and figures of the HiCroPL, HISF and ProMPT papers, as settings.

A row is a method with some of its settings, run under the protocol of its table; the figures that
the papers print for it are in experiments/data. The list of all
rows in docs/ablations.md is made from it:

    python -m experiments.paper_rows
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from configs.choice import PAPERS
from configs.protocols import (
    BASE2NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
    Protocol,
)
from experiments.cells import AVERAGE
from experiments.published import ABSENT, printed


class Row(NamedTuple):
    """A line of a paper's table, or a point of a figure.

    Args:
        label: its name in the paper.
        method: the trainer.
        options: KEY VALUE pairs for its config.
        paper: the paper's figures; empty if it gives none.
    """

    label: str
    method: str
    options: tuple[str, ...] = ()
    paper: tuple[str, ...] = ()


class Table(NamedTuple):
    """A paper's table or figure.

    Args:
        title: where it is, and what its rows vary.
        rows: its rows, in the paper's order.
        protocol: what they are run under.
    """

    title: str
    rows: list[Row]
    protocol: Protocol = BASE2NEW


# What ``Row.paper`` holds under each protocol: averages over the paper's datasets.
PAPER_COLUMNS = {
    BASE2NEW: ("base", "novel", "harmonic mean"),
    FEW_SHOT: tuple(f"{shots}-shot" for shots in FEW_SHOT.shots),
    CROSS_DATASET: ("ImageNet", "average"),
    DOMAIN_GENERALIZATION: ("ImageNet", "average"),
}
# Where ``published`` has them: dataset of the row, and columns.
_OF_SOURCE = ("imagenet", ("imagenet", "Average"))
PRINTED_COLUMNS = {
    BASE2NEW: (AVERAGE, ("Base", "Novel", "Harmonic mean")),
    FEW_SHOT: (AVERAGE, PAPER_COLUMNS[FEW_SHOT]),
    CROSS_DATASET: _OF_SOURCE,
    DOMAIN_GENERALIZATION: _OF_SOURCE,
}
# The papers' names of trainers, where they differ.
LABELS = {"ZeroshotCLIP": "CLIP", "LinearProbe": "Linear probe CLIP"}


def row_of(method: str, node: str, label: str, paper: str, keys: Mapping[str, object]) -> Row:
    pairs = [(f"TRAINER.{node}.{key}", str(value)) for key, value in keys.items()]
    return Row(label, method, tuple(itertools.chain(*pairs)), tuple(paper.split()))


def hicropl(label: str, paper: str = "", **keys: object) -> Row:
    return row_of("HiCroPL", "HICROPL", label, paper, keys)


def hisf(label: str, paper: str = "", **keys: object) -> Row:
    return row_of("HISF", "HISF", label, paper, keys)


def promp(label: str, paper: str = "", **keys: object) -> Row:
    return row_of("ProMPT", "PROMPT", label, paper, keys)


def methods(*names: str) -> list[Row]:
    """List methods that a paper compares."""
    return [Row(LABELS.get(name, name), name) for name in names]


OF_HICROPL, OF_HISF, OF_PROMP = "85.89 77.99 81.75", "85.39 76.12 80.75", "80.94 74.89 77.80"

# Figures are curves without numbers: their points, other than the paper's setting, are ours.
TABLES: dict[str, Table] = {
    "hicropl1": Table(
        "HiCroPL, Table 1: methods, base to novel",
        methods(
            *("ZeroshotCLIP", "CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC"),
            *("TCP", "MMA", "CoPrompt", "HiCroPL"),
        ),
    ),
    "hicropl2": Table(
        "HiCroPL, Table 2: methods, cross-dataset",
        methods("CoOp", "CoCoOp", "MaPLe", "MMA", "CoPrompt", "HiCroPL"),
        CROSS_DATASET,
    ),
    "hicropl3": Table(
        "HiCroPL, Table 3: methods, domain generalization",
        methods("CoOp", "CoCoOp", "MaPLe", "MMA", "CoPrompt", "HiCroPL"),
        DOMAIN_GENERALIZATION,
    ),
    "hicropl4": Table(
        "HiCroPL, Table 4: directions of the knowledge flow",
        [
            hicropl("none (Table 11)", "82.09 76.02 78.94", FLOW="none"),
            hicropl("I → T", FLOW="i2t"),
            hicropl("T → I", FLOW="t2i"),
            hicropl("I → T, then T → I", FLOW="i2t_t2i"),
            hicropl("T → I, then I → T"),
        ],
    ),
    "hicropl5": Table(
        "HiCroPL, Table 5: layer boundary k",
        [
            hicropl("2", CROSS_LAYER=2),
            hicropl("4", CROSS_LAYER=4),
            hicropl("6"),
            hicropl("8", CROSS_LAYER=8),
            hicropl("10", CROSS_LAYER=10),
        ],
    ),
    "hicropl6": Table(
        "HiCroPL, Table 6: mappers of T → I and I → T",
        [
            hicropl("single-scale, single-scale", MAPPER_SCALE="single"),
            hicropl("single-scale, multi-scale", MAPPER_SCALE="single_multi"),
            hicropl("multi-scale, multi-scale"),
        ],
    ),
    "hicropl7": Table(
        "HiCroPL, Table 7: compression of a layer's prompts",
        [
            hicropl("averaging", COMPRESSION="mean"),
            hicropl("MLP", COMPRESSION="mlp"),
            hicropl("LKP"),
        ],
    ),
    "hicropl8": Table(
        "HiCroPL, Table 8: cost",
        [
            Row("MaPLe", "MaPLe"),
            hicropl("HiCroPL*, without LKP", COMPRESSION="none"),
            hicropl("HiCroPL"),
        ],
    ),
    "hicropl11": Table(
        "HiCroPL, Table 11: knowledge flow (BKF) and consistency loss",
        [
            hicropl("neither", FLOW="none", LAMBD=0.0),
            hicropl("L_cons", FLOW="none"),
            hicropl("BKF", LAMBD=0.0),
            hicropl("BKF + L_cons"),
        ],
    ),
    "hicropl12": Table(
        "HiCroPL, Table 12: frozen prompts",
        [
            hicropl('"a photo of a {}"', FROZEN_TEXT="photo"),
            hicropl("ImageNet's templates", FROZEN_TEXT="imagenet_templates"),
            hicropl("a random description", FROZEN_TEXT="random"),
            hicropl("all descriptions"),
        ],
    ),
    "hicropl13": Table(
        "HiCroPL, Table 13: consistency criterion",
        [
            hicropl("MSE", CRITERION="mse"),
            hicropl("L1", CRITERION="l1"),
            hicropl("Cosine"),
        ],
    ),
    "hicropl14": Table(
        "HiCroPL, Table 14 and Fig. 3: methods, few-shot",
        methods("LinearProbe", "CoOp", "CoCoOp", "MaPLe", "PromptSRC", "HiCroPL"),
        FEW_SHOT,
    ),
    "hicropl_fig4_depth": Table(
        "HiCroPL, Fig. 4 (left): prompt depth",
        [hicropl(str(depth), PROMPT_DEPTH=depth) for depth in range(1, 12)]
        + [hicropl("12", OF_HICROPL)],
    ),
    "hicropl_fig4_length": Table(
        "HiCroPL, Fig. 4 (right): prompt length",
        [
            *(hicropl(str(length), N_CTX=length) for length in (2, 4, 8, 12)),
            hicropl("16", OF_HICROPL, N_CTX=16),
            hicropl("20", N_CTX=20),
        ],
    ),
    "hicropl_update": Table(
        "HiCroPL, as in the paper and as released",
        [
            hicropl("the flow learns", OF_HICROPL),
            hicropl("copied in place, as released", MAPPER_UPDATE="in_place"),
        ],
    ),
    "hisf1": Table(
        "HISF, Table 1: methods, base to novel",
        methods(
            *("ZeroshotCLIP", "CoOp", "CoCoOp", "ProDA", "KgCoOp", "MaPLe", "PromptSRC"),
            *("ProVP", "MetaPrompt", "TCP", "MMA", "HISF"),
        ),
    ),
    "hisf2": Table(
        "HISF, Table 2: methods, cross-dataset",
        methods("CoOp", "CoCoOp", "MaPLe", "PromptSRC", "TCP", "MMA", "HISF"),
        CROSS_DATASET,
    ),
    "hisf3": Table(
        "HISF, Table 3: methods, domain generalization",
        methods("ZeroshotCLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC", "HISF"),
        DOMAIN_GENERALIZATION,
    ),
    "hisf4": Table(
        "HISF, Table 4: modules",
        [
            # "HISF (Maple setting)" has the figures of MaPLe's paper; HISF trains ten times as long
            Row("MaPLe setting", "MaPLe"),
            Row("MaPLe, HISF's steps", "MaPLe", ("OPTIM.MAX_EPOCH", "50")),
            hisf("w/o PI", PROMPT_INIT=False),
            hisf("w/o SF", SEMANTIC_FUSION=False),
            hisf("PI + SF"),
        ],
    ),
    # The table's columns L_CE, L_S and L_LP are not defined in the paper. L_LP is on in every row
    # and is read as the classification loss, L_CE as that of the label (category) embeddings, L_S
    # as semantic alignment; the last two rows read L_CE as cross-entropy and L_LP as L_le instead.
    "hisf5": Table(
        "HISF, Table 5: loss terms",
        [
            hisf("L_cls", LAMBDA_LE=0.0, LAMBDA_SA=0.0),
            hisf("L_cls + L_le + L_sa"),
            hisf("L_cls + L_sa", LAMBDA_LE=0.0),
            hisf("L_cls + L_le", LAMBDA_SA=0.0),
            hisf("L_le", "- - 79.41", LOSS_CLS=False, LAMBDA_SA=0.0),
            hisf("L_le + L_sa", "- - 80.67", LOSS_CLS=False),
        ],
    ),
    "hisf_fig2": Table(
        "HISF, Fig. 2: insertion depth, with a fusion at every fourth layer from there",
        [
            *(hisf(str(first), FUSION_LAYERS=(first, first + 4, first + 8)) for first in (1, 2)),
            hisf("3", OF_HISF),
            hisf("4", FUSION_LAYERS=(4, 8, 12)),
            *(hisf(str(first), FUSION_LAYERS=(first, first + 4)) for first in (5, 7)),
            *(hisf(str(first), FUSION_LAYERS=(first,)) for first in (9, 11)),
        ],
    ),
    "hisf_readings": Table(
        "HISF, other readings: E of eq. 4 to 9, and the distance of eq. 9",
        [
            hisf("features, norm of the mean"),
            hisf("words, norm of the mean", LABELS="words"),
            hisf("features, mean of norms", LE_DISTANCE="mean_of_norms"),
        ],
    ),
    "promp1": Table(
        "ProMPT, Table 1 and Fig. 5: methods, base to novel",
        methods("ZeroshotCLIP", "CoOp", "CoCoOp", "ProMPT"),
    ),
    "promp2": Table(
        "ProMPT, Table 2: methods, cross-dataset",
        methods("CoOp", "CoCoOp", "ProMPT"),
        CROSS_DATASET,
    ),
    "promp3": Table(
        "ProMPT, Table 3: methods, domain generalization",
        methods("ZeroshotCLIP", "CoOp", "CoCoOp", "ProMPT"),
        DOMAIN_GENERALIZATION,
    ),
    "promp4": Table(
        "ProMPT, Table 4: iterations N",
        [
            promp("0", ITERATIONS=0),
            promp("1", ITERATIONS=1),
            promp("2"),
        ],
    ),
    "promp5": Table(
        "ProMPT, Table 5: components",
        [
            promp("ProMPT"),
            promp("-Iter", ITERATIONS=0),
            promp("-G_V", VISION_GENERATOR=False),
            promp("-G_T", TEXT_GENERATOR=False),
            promp("-G", VISION_GENERATOR=False, TEXT_GENERATOR=False),
            promp("-F", FEATURE_FILTER=False),
        ],
    ),
    "promp_fig8a": Table(
        "ProMPT, Fig. 8 (a): vision prompt length a",
        [
            *(promp(str(length), N_CTX_VISION=length) for length in (2, 4, 6)),
            promp("8", OF_PROMP),
            promp("10", N_CTX_VISION=10),
        ],
    ),
    "promp_fig8b": Table(
        "ProMPT, Fig. 8 (b): text prompt length b",
        [
            *(promp(str(length), N_CTX_TEXT=length) for length in (3, 4)),
            promp("5", OF_PROMP),
            *(promp(str(length), N_CTX_TEXT=length) for length in (6, 7)),
        ],
    ),
    "promp_fig8c": Table(
        "ProMPT, Fig. 8 (c): layers with vision prompts, J",
        [
            *(promp(str(depth), PROMPT_DEPTH_VISION=depth) for depth in (1, 3, 5, 7)),
            promp("9", OF_PROMP),
            *(promp(str(depth), PROMPT_DEPTH_VISION=depth) for depth in (11, 12)),
        ],
    ),
    "promp_fig8d": Table(
        "ProMPT, Fig. 8 (d): loss weighting factor λ",
        [
            *(promp(str(weight), LAMBD=weight) for weight in (0.0, 0.25, 0.5, 0.75)),
            promp("1.0", OF_PROMP),
        ],
    ),
}


def figures(name: str, table: Table) -> Table:
    """Add the paper's figures to the rows that have none of their own."""
    if name not in printed():
        return table
    known = printed()[name]
    dataset, columns = PRINTED_COLUMNS[table.protocol]
    rows = []
    for row in table.rows:
        own = known.figures.get((dataset, row.label if known.about else row.method), {})
        paper = tuple(own.get(column, ABSENT) for column in columns) if own else ()
        rows.append(row if row.paper else row._replace(paper=paper))
    return table._replace(rows=rows)


TABLES = {name: figures(name, table) for name, table in TABLES.items()}

PAGE = Path("docs/ablations.md")
HEADING = "## Every row\n"
INTRODUCTION = """
Written by `python -m experiments.paper_rows` from the data in `experiments/paper_rows.py`. A row is
a config file in `configs/trainers/`, here that for ViT-B/16, with the settings beside it as
`KEY VALUE`; "-" is the file as it is. A file with datasets or shots in parentheses is for these
alone.
"""


def config_files(method: str, protocol: Protocol) -> str:
    """Name the config files for ViT-B/16 of a method under a protocol, and when each is used."""
    found = []
    for rule in PAPERS.get(method, ()):
        if rule.protocols and protocol.name not in rule.protocols:
            continue
        # what transfers starts from ImageNet alone
        cases = (
            []
            if protocol.transfers
            else [*rule.datasets, *(f"{shots}-shot" for shots in rule.shots)]
        )
        found.append(f"`{method}/{rule.config}`" + (f" ({', '.join(cases)})" if cases else ""))
        if not cases:
            break
    return ", ".join(found) or f"`{method}`"


def settings(options: tuple[str, ...]) -> str:
    """Write the settings of a row."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return ", ".join(f"`{key} {value}`" for key, value in pairs) or "-"


def section() -> str:
    """Return the part of docs/ablations.md that lists all rows with their configs."""
    parts = [HEADING + INTRODUCTION]
    for name, (title, rows, protocol) in TABLES.items():
        files = {row.method: config_files(row.method, protocol) for row in rows}
        lines = [f"### {title} (`{name}`)", ""]
        if len(files) == 1:
            lines += [f"{files[rows[0].method]}:", "", "| Row | Settings |", "|---|---|"]
            lines += [f"| {row.label} | {settings(row.options)} |" for row in rows]
        else:
            lines += ["| Row | Config file | Settings |", "|---|---|---|"]
            lines += [
                f"| {row.label} | {files[row.method]} | {settings(row.options)} |" for row in rows
            ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.partition(HEADING)[0] + section(), encoding="utf-8")
