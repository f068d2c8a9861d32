"""What `/metrics` answers, as numbers."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families


def scraped(url: str) -> dict[str, float]:
    """Every sample by its name and label values: `ml_trainer_epochs_total trained`."""
    answer = httpx.get(url + "/metrics").raise_for_status()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
