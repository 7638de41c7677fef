"""What Prometheus sees of a gateway."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from gateway_stage import Gateway
from prometheus_client.parser import text_string_to_metric_families

from imagetasks_server.config import Settings
from imagetasks_server.observation import measured


@dataclass(frozen=True)
class Scrape:
    """One look at `/metrics`.

    Attributes:
        text: As it was sent.
        samples: By name and labels, written as in a query.
    """

    text: str
    samples: dict[str, float]

    def __getitem__(self, sample: str) -> float:
        return self.samples.get(sample, 0.0)


@dataclass(frozen=True)
class Prometheus:
    """What scrapes a gateway.

    Attributes:
        url: What it asks.
    """

    url: str

    async def scrape(self) -> Scrape:
        """Look once."""
        async with aiohttp.ClientSession() as session, session.get(self.url) as response:
            assert response.status == 200
            text = await response.text()
        return Scrape(text, samples(text))


def samples(text: str) -> dict[str, float]:
    """What a scrape says, by name and labels in order."""
    return {
        _written(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextlib.asynccontextmanager
async def watched_by_prometheus(gateway: Gateway, **more: Any) -> AsyncIterator[Prometheus]:
    """Serve the gateway's metrics, on a free port."""
    settings = Settings(metrics_listen="127.0.0.1:0")
    async with measured(settings, gateway.gateway, **more) as address:
        yield Prometheus(f"http://{address}/metrics")


def _written(name: str, labels: dict[str, str]) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name
