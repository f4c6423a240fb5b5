"""OneSug without representation enhancement, aligned to preferences."""

from dataclasses import replace

from onesug import EXPERIMENT as ONESUG
from onesug_plain_sft import EXPERIMENT as PLAIN

EXPERIMENT = replace(
    ONESUG,
    name="plain",
    title="OneSug without related queries",
    suggest=replace(ONESUG.suggest, encoder="", start=PLAIN.name),
)
