"""What `/metrics` answers, as values."""

from __future__ import annotations

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


def answered(url: str) -> list[Metric]:
    text = httpx.get(url + "/metrics").raise_for_status().text
    return list(text_string_to_metric_families(text))


def scraped(url: str) -> dict[str, float]:
    """Every sample by its name and label values: `ml_trainer_epochs_total trained`."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in answered(url)
        for sample in family.samples
    }
