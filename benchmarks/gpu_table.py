"""What a proof holds, as Markdown."""

from typing import Any

__all__ = ["table"]


def table(content: dict[str, Any]) -> str:
    """A line for each step, how it ended and its numbers; then where the time of what was profiled goes."""
    steps = content["steps"]
    card = steps.get("environment.ceilings", {}).get("device", "a card that is not told")
    versions = ", ".join(f"{name} {version}" for name, version in content.get("versions", {}).items())
    lines = [f"{'A rehearsal on a CPU' if content['rehearsal'] else f'Run on one {card}'} ({versions})."]
    lines += ["", "| step | state | seconds | numbers |", "| :-- | :-- | --: | :-- |"]
    for key, step in steps.items():
        lines.append(f"| `{key}` | {step['status']} | {step.get('wall_seconds', 0):.0f} | {_numbers(step)} |")
    for key, step in steps.items():
        if step.get("top"):
            lines += ["", f"`{key}`:", "", "| kernel | calls | milliseconds |", "| :-- | --: | --: |"]
            lines += [
                f"| `{_kernel(row['name'])}` | {row['calls']} | {row['milliseconds']:.1f} |" for row in step["top"]
            ]
    return "\n".join(lines)


def _numbers(step: dict[str, Any]) -> str:
    if step["status"] != "done":
        error = str(step.get("error", "")).strip().splitlines()
        return error[-1].replace("|", "/") if error else ""
    return "; ".join(f"{name} {_text(value)}" for name, value in step.get("summary", {}).items())


def _kernel(name: str) -> str:
    return name.removeprefix("void ").replace("|", "/").replace("`", "")[:80]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
