"""The network kinds by the names of `network.type`."""

from __future__ import annotations

from toolkit.registry import Registry

NETWORKS = Registry(
    "network type",
    {
        "lora": "toolkit.networks.lora:LoraNetwork",
        "dora": "toolkit.networks.dora:DoraNetwork",
        "loha": "toolkit.networks.loha:LohaNetwork",
        "lokr": "toolkit.networks.lokr:LokrNetwork",
        "full": "toolkit.networks.full:FullNetwork",
    },
)
