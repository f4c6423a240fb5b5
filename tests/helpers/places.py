"""Where things are that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
GOLDEN = ROOT / "tests" / "golden"
COMPARISONS = sorted(CONFIGS.glob("bench_*.py"))  # each of many experiments
EXPERIMENTS = [
    path for path in sorted(CONFIGS.glob("*.py")) if path not in COMPARISONS and not path.stem.startswith("loop_")
]
