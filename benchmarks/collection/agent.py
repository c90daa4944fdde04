"""The agent server of Regimen as a process: the calculator beside the agent that plays it, the model at an endpoint."""

from __future__ import annotations

import os
import subprocess
import sys

AGENT = "calculator_agent"


class AgentServer:
    """`regimen serve policy --environment calculator` on a free port, until it is killed."""

    def __init__(self, model_url: str) -> None:
        command = [sys.executable, "-c", "from regimen.cli.main import main; main()", "serve", "policy"]
        command += ["--model-url", model_url, "--environment", "calculator", "--port", "0"]
        without_tokens = {key: value for key, value in os.environ.items() if not key.startswith("REGIMEN_")}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=without_tokens)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " at http" not in line:
            raise SystemExit(f"error: the agent server did not start: {line}")
        self.url = line.rsplit(" at ", 1)[1].strip()

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
