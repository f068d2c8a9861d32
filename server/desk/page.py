"""The page at /web: OpenEnv asks for it by `builder`, and it replaces OpenEnv's own.

Importing this loads Gradio, so it is imported only where the page is enabled.
"""

# gradio leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ml_trainer_env.server.desk import cards
from ml_trainer_env.server.desk.play_tab import PlayTab
from ml_trainer_env.server.desk.records_tab import RecordsTab
from ml_trainer_env.server.desk.seats import Seats
from ml_trainer_env.server.desk.watch_tab import Guests, WatchTab
from ml_trainer_env.server.settings import Settings

HERE = Path(__file__).parent


def build(make: Any, guests: Guests, settings: Settings) -> gr.Blocks:
    """The page. `make()` gives a visitor's environment, `guests()` all that are open."""
    seats = Seats(make)
    style = (HERE / "desk.css").read_text(encoding="utf-8")
    script = (HERE / "desk.js").read_text(encoding="utf-8")
    with gr.Blocks(analytics_enabled=False) as page:
        # OpenEnv mounts the page with a style and a theme of its own, so ours is part of it.
        gr.HTML(f"<style>{style}</style>", elem_id="desk-style", padding=False)
        gr.HTML(cards.masthead())
        with gr.Tabs(elem_id="desk-tabs"):
            with gr.Tab("Desk", id="desk") as desk:
                PlayTab(seats, settings.session_timeout)
            with gr.Tab("Watch", id="watch") as watch:
                pass
            with gr.Tab("Records", id="records") as records:
                RecordsTab(settings.records_dir, records)
            with watch:
                WatchTab(guests, seats, watch, (desk, records))
        page.load(None, js=script)

        def leave(request: gr.Request) -> None:
            seats.leave(request.session_hash)

        page.unload(leave)
    page.queue(default_concurrency_limit=None)
    return page
