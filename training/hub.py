"""An adapter to the Hub, with a card: what it is, what it learned from, how good it is."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from training.errors import RunFailedError


def push(run: Path, repository: str, *, private: bool = False, dry: bool = False) -> str:
    """Upload `run/adapter` and its card; with `dry` only write the card into the run's folder.

    Raises:
        RunFailedError: The folder holds no finished run, or the Hub refuses.
    """
    if not (run / "run.json").is_file() or not (run / "adapter").is_dir():
        raise RunFailedError(f"{run} holds no finished run (run.json and adapter/)")
    card = model_card(run, repository)
    (run / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    if dry:
        return f"wrote {run / 'MODEL_CARD.md'}; nothing was uploaded"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "adapter"
        shutil.copytree(run / "adapter", staged)
        (staged / "README.md").write_text(card, encoding="utf-8")
        for record in ("run.json", "evaluation.json"):
            if (run / record).is_file():
                shutil.copy(run / record, staged / record)
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repository, folder_path=staged)
        except (HfHubHTTPError, OSError) as error:
            raise RunFailedError(
                f"The Hub refused {repository} ({type(error).__name__}): {error}; "
                "log in with `hf auth login`, or try --dry-run"
            ) from error
    return str(commit)


def model_card(run: Path, repository: str) -> str:
    """README.md in the Hub's form, from the run's own records."""
    card: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    config = card["config"]
    languages = "\n".join(f"- {language}" for language in sorted(card["data"]["languages"]))
    licences = ", ".join(f"{name} ({count})" for name, count in card["data"]["licences"].items())
    share_alike = any("SA" in name for name in card["data"]["licences"])
    method = config["method"]
    lines = [
        "---",
        "library_name: peft",
        "pipeline_tag: text-generation",
        f"license: {'cc-by-sa-4.0' if share_alike else 'apache-2.0'}",
        "language:",
        languages,
        "tags: [multiple-choice-questions, question-generation, lora]",
        "---",
        "",
        f"# {repository}",
        "",
        config["description"] or "Writes multiple-choice questions about a paragraph.",
        "",
        f"A LoRA adapter for `{config['base']}` in {card['base']['precision']}, prompt format "
        f"`{config['prompt_format']}`. It fits exactly these weights: fingerprint "
        f"`{json.dumps(card['base']['fingerprint'])}`.",
        "",
        "## Data",
        "",
        card["data_statement"],
        f"\n{card['data']['examples']} questions, {card['data']['rows']} training rows; "
        f"licences: {licences}.",
        "",
        "## Recipe",
        "",
        f"r={method['r']}, alpha={method['lora_alpha']}, rsLoRA {method['use_rslora']}, "
        f"{config['fit']['num_train_epochs']:g} epochs at {config['fit']['learning_rate']:g}, "
        f"on {card['hardware']} in {card['seconds']:.0f} s.",
        "",
        "## Evaluation",
        "",
        _evaluation(run),
        "",
        "## Limits",
        "",
        "Questions are written by a small language model and can be wrong: keys, distractors and "
        "facts need a teacher's eye. It knows only the passage's register and the two languages it "
        "was trained on.",
    ]
    return "\n".join(lines) + "\n"


def _evaluation(run: Path) -> str:
    path = run / "evaluation.json"
    if not path.is_file():
        return "Not evaluated."
    metrics = json.loads(path.read_text(encoding="utf-8"))["unconstrained"]
    lines = ["Greedy, on held-out passages; shares with 95 % intervals.", "", "| | |", "|---|---|"]
    for name, value in metrics.items():
        if isinstance(value, dict) and "share" in value and value["of"]:
            interval = f"[{value['low']:.0%}, {value['high']:.0%}]"
            lines.append(f"| {name.replace('_', ' ')} | {value['share']:.1%} {interval} |")
        elif isinstance(value, float):
            lines.append(f"| {name.replace('_', ' ')} | {value:.2f} |")
    return "\n".join(lines)
