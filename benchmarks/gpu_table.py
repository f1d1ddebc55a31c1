"""What a proof holds, as Markdown."""

from typing import Any

__all__ = ["table"]


def table(content: dict[str, Any]) -> str:
    """One line a step: what it is, how it ended, and its numbers."""
    steps = content["steps"]
    ceilings = steps.get("environment.ceilings", {})
    where = ceilings.get("device", "CPU") if not content["rehearsal"] else "a rehearsal on a CPU"
    versions = ", ".join(f"{name} {version}" for name, version in content.get("versions", {}).items())
    lines = [f"Run on: {where} ({versions})", "", "| step | state | seconds | numbers |", "| --- | --- | --- | --- |"]
    for key, step in steps.items():
        lines.append(f"| {key} | {step['status']} | {step.get('wall_seconds', 0):.0f} | {_numbers(step)} |")
    return "\n".join(lines)


def _numbers(step: dict[str, Any]) -> str:
    if step["status"] != "done":
        return str(step.get("error", "")).strip().splitlines()[-1].replace("|", "/") if step.get("error") else ""
    return "; ".join(f"{name} {_text(value)}" for name, value in step.get("summary", {}).items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
