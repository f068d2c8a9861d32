"""Writes the rows of NeMo Gym's data: `python rows.py varied_mlp/train/17 >example.jsonl`.

A row tells the model of the task, and of the tools in the form of the Responses API.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ml_trainer_env.adapters import text
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.task_ids import TaskId

ROWS = 5  # as many as NeMo Gym wants of an example


def row(task_id: TaskId, seed: int = 0) -> dict[str, Any]:
    """What the model is asked."""
    session = LocalSession()
    status = session.begin(task_id, seed)
    tools = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
            "strict": False,
        }
        for tool in session.tools()
    ]
    session.close()
    messages = [
        {"role": "developer", "content": text.rules(status)},
        {"role": "user", "content": text.opening(status)},
    ]
    return {"responses_create_params": {"input": messages, "tools": tools}}


if __name__ == "__main__":
    for _ in range(ROWS):
        print(json.dumps(row(sys.argv[1])))
