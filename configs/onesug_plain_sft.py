"""OneSug without representation enhancement: the writer reads no related queries. Its first stage."""

from dataclasses import replace

from onesug_sft import EXPERIMENT as SFT

EXPERIMENT = replace(
    SFT,
    name="plain_sft",
    title="OneSug without RWR and related queries",
    suggest=replace(SFT.suggest, encoder=""),
)
