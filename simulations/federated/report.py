"""The page people look at: one self-contained HTML file, its figures beside it as PNG and SVG."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedspk.files import write_text
from fedspk.metrics import det_curve
from fedspk.page import ShownFigure, page_template, save_figure, show_figure, show_p_value
from fedspk.significance import compare
from simulations.federated import figures
from simulations.federated.results import Json
from simulations.federated.trials import FloatArray, TrialScores

_SIGNIFICANT = 0.05
_SHOWN_AS_THEY_ARE = ("config", "corpus", "devices", "secure", "summary", "versions")
_TRAINED_ON_DEVICE = ("individual", "federated", "personalised")


def write_report(folder: Path, results: Json, scores: Mapping[str, TrialScores]) -> Path:
    """Write `report.html` and `figures/` for a finished run.

    Args:
        folder: the run's folder.
        results: what `results.json` holds.
        scores: headline trials of all devices together, by arm.
    """
    shown = _figures(folder / "figures", results, scores)
    page = page_template(
        Path(__file__).parent,
        percent=_percent,
        number=_number,
        signed=lambda value: "-" if value is None else f"{value:+.1%}",
        share=lambda value: "-" if value is None else f"{value:.0%}",
    ).render(
        title="Individual or federated?",
        figures=shown,
        verdict=verdict(results),
        best=best_arm(results),
        comparisons=_comparisons(results),
        failed_rounds=_failed_rounds(results),
        provenance=json.dumps(
            {key: results[key] for key in ("config", "versions", "seed", "models")}, indent=2
        ),
        **{key: results[key] for key in _SHOWN_AS_THEY_ARE},
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def best_arm(results: Json) -> str | None:
    """Return the arm with the lowest mean EER among those that a device can run by itself."""
    candidates = [arm for arm in results["summary"] if _base(arm) != "pooled"]
    return min(candidates, key=lambda arm: results["summary"][arm]["mean_eer"], default=None)


def verdict(results: Json) -> list[str]:
    """Return the result in plain sentences: which arm to use, and how sure that is."""
    summary, sentences = results["summary"], []
    best = best_arm(results)
    if best is None:
        return ["No arm was run that a device could use."]
    sentences.append(f"Use the {best} model: mean EER {summary[best]['mean_eer']:.2f} %.")
    for rival in ("individual", "initial"):
        if rival in summary and rival != best:
            sentences.append(_against(results, rival, best))
    if best == "initial" and len(summary) > 1:
        sentences.append("Training on the devices did not help on this corpus.")
    return sentences


def write_det(folder: Path, target: FloatArray, nontarget: FloatArray) -> None:
    """Write `det.png` and `det.svg` for one set of scores."""
    plot = figures.det_plot({"scores": det_curve(target, nontarget)}, "")
    save_figure(plot, folder, "det")


def summary_table(results: Json) -> str:
    """Return the summary as a plain-text table for the terminal."""
    header = ("arm", "EER %", "within", "outsiders", "classifier", "minDCF", "seconds")
    rows = [
        (
            arm,
            _percent(row["mean_eer"]),
            _percent(row["mean_eer_within_session"]),
            _percent(row["mean_eer_outsiders"]),
            _percent(row["mean_eer_classifier"]),
            _number(row["min_dcf"], 3),
            _number(row["cost"]["seconds"], 0),
        )
        for arm, row in results["summary"].items()
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    )


def _against(results: Json, rival: str, best: str) -> str:
    entry = headline_test(results, rival, best)
    improvement, p = entry["relative_improvement"], entry["p_value"]
    sure = "significant" if p is not None and p < _SIGNIFICANT else "not significant"
    if improvement is None:
        return f"The {rival} arm has no errors to improve on."
    change = f"{abs(improvement):.0%} {'lower' if improvement >= 0 else 'higher'}"
    return (
        f"That is {change} than the {rival} arm's {results['summary'][rival]['mean_eer']:.2f} %, "
        f"{entry['devices_improved']} of {len(results['devices'])} devices improved, "
        f"{sure} (paired t-test, p = {show_p_value(p)})."
    )


def headline_test(results: Json, a: str, b: str) -> Json:
    """Return the paired t-test of arm `b` against arm `a` on the headline metric."""
    columns = [[device["eer"][arm] for device in results["devices"]] for arm in (a, b)]
    rows = compare(a, columns[0], b, columns[1]).to_rows()
    return next(row for row in rows if row["test"] == "paired t")


def _comparisons(results: Json) -> list[Json]:
    """Return one row a pair of arms on the headline metric, all tests' p-values together."""
    rows: dict[tuple[str, str], Json] = {}
    for entry in results["tests"]:
        if entry["metric"] == "eer":
            row = rows.setdefault((entry["a"], entry["b"]), entry | {"p": {}})
            row["p"][entry["test"]] = entry["p_value"]
    return list(rows.values())


def _failed_rounds(results: Json) -> list[str]:
    """Return why rounds of federated arms came to nothing, a sentence each."""
    return [
        f"Arm {arm}: {record['failure']}"
        for arm, history in results["history"].items()
        for record in history
        if record.get("failure")
    ]


def _figures(folder: Path, results: Json, scores: Mapping[str, TrialScores]) -> list[ShownFigure]:
    eer = {arm: [device["eer"][arm] for device in results["devices"]] for arm in results["summary"]}
    own = {arm: values for arm, values in eer.items() if _base(arm) in _TRAINED_ON_DEVICE}
    curves = {arm: det_curve(trials.target, trials.nontarget) for arm, trials in scores.items()}
    histories = {arm: rounds for arm, rounds in results["history"].items() if rounds}
    shown = [
        show_figure(
            folder,
            "devices",
            "EER of every device",
            figures.device_lines(own or eer, ""),
            "Dashed: the mean over devices. The twin of the paper's Figures 2 and 3.",
        ),
        show_figure(
            folder,
            "boxes",
            "EER over the devices",
            figures.box_plots(eer, ""),
            "Box: quartiles; line: median; diamond: mean. The twin of the paper's Figure 4.",
        ),
        *_impostor_figures(folder, results, eer),
        show_figure(
            folder,
            "det",
            "Detection error trade-off",
            figures.det_plot(curves, ""),
            "All devices' trials together; the dotted line is where the EER is read.",
        ),
    ]
    if histories:
        shown.append(
            show_figure(
                folder,
                "learning",
                "Learning by round",
                figures.learning_curve(histories),
                "The round with the lowest validation loss is the one that is kept.",
            )
        )
    return shown


def _impostor_figures(
    folder: Path, results: Json, eer: Mapping[str, Sequence[float]]
) -> list[ShownFigure]:
    """Return the figure that compares kinds of impostors, where a run has several."""
    federated = [arm for arm in eer if _base(arm) == "federated"]
    if len(federated) < 2:
        return []
    shown = [arm for arm in ("individual", *federated) if arm in eer]
    kinds = dict(zip(federated, results["config"]["impostors"], strict=True))
    named = {f"federated, {kinds[arm]}" if arm in kinds else arm: eer[arm] for arm in shown}
    sentences = [
        _tested(results, a, b) for a, b in itertools.combinations(shown, 2) if b in federated
    ]
    return [
        show_figure(
            folder,
            "impostors",
            "Whose speech the devices trained against",
            figures.box_plots(named, ""),
            " ".join(["The twin of the paper's Figure 3.", *sentences]),
        )
    ]


def _tested(results: Json, a: str, b: str) -> str:
    p = {
        row["test"]: row["p_value"]
        for row in results["tests"]
        if (row["metric"], row["a"], row["b"]) == ("eer", a, b)
    }
    return (
        f"{a} to {b}: paired t-test p = {show_p_value(p.get('paired t'))}, "
        f"Welch's t-test p = {show_p_value(p.get('Welch t'))}."
    )


def _base(arm: str) -> str:
    """Return the arm's kind: `federated-gan` is a federated arm."""
    return arm.split("-", maxsplit=1)[0]


def _percent(value: float | None) -> str:
    return _number(value, 2)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
